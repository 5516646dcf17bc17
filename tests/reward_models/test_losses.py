"""22, 23 and the calibration, by value."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from reward_models.instruction import Calibration, fit_slope
from reward_models.losses import (
    IGNORE,
    cross_seed_loss,
    language_loss,
    masked_after_first_error,
    pairwise_ranking_loss,
    plackett_luce_loss,
    step_loss,
)


def test_23_pairwise_loss_at_the_margin_is_log_2_and_its_gradient_is_known():
    scores = torch.tensor([0.25, 0.0], dtype=torch.float64, requires_grad=True)
    loss, hits = pairwise_ranking_loss(scores, torch.tensor([0, 1]), margin=0.25)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2)) and hits == 1
    assert scores.grad.tolist() == pytest.approx([-0.5, 0.5])
    scores = torch.tensor([1.0, 0.2], dtype=torch.float64, requires_grad=True)
    pairwise_ranking_loss(scores, torch.tensor([0, 2]), margin=0.25)[0].backward()
    assert scores.grad[0].item() == pytest.approx(-1 / (1 + math.exp(0.8 - 0.5)))  # -sigmoid(m - delta)


def test_23_all_pairs_of_a_list_and_ties():
    scores, ranks = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0, 1, 1])
    expected = -sum(math.log(1 / (1 + math.exp(-(3.0 - low)))) for low in (1.0, 2.0)) / 2
    assert pairwise_ranking_loss(scores, ranks)[0].item() == pytest.approx(expected, rel=1e-6)
    tied = torch.tensor([1.0, 2.0], requires_grad=True)
    loss, _ = pairwise_ranking_loss(tied, torch.tensor([1, 1]))
    loss.backward()
    assert loss.item() == 0 and tied.grad.tolist() == [0, 0]


def test_23_plackett_luce_of_two_is_bradley_terry():
    scores, ranks = torch.tensor([0.3, -0.7], dtype=torch.float64), torch.tensor([0, 1])
    assert plackett_luce_loss(scores, ranks)[0].item() == pytest.approx(pairwise_ranking_loss(scores, ranks)[0].item())
    three = torch.tensor([0.1, 2.0, -1.0], dtype=torch.float64)
    by_hand = -(three[1] - torch.logsumexp(three, 0)) - (three[0] - torch.logsumexp(three[[0, 2]], 0))
    assert plackett_luce_loss(three, torch.tensor([1, 0, 2]))[0].item() == pytest.approx(by_hand.item())


def test_cross_seed_pairs_go_by_quality():
    loss = cross_seed_loss(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 1.0]), torch.tensor([0.5]), torch.tensor([1.0]))
    assert loss.item() == pytest.approx(-math.log(1 / (1 + math.exp(-0.5))), rel=1e-6)  # the equal pair counts nothing


def test_22_soft_labels_at_the_ends_are_hard_and_masked_ones_count_nothing():
    logits = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1.0, 0.0, IGNORE, IGNORE, 1.0], [IGNORE, 0.0, IGNORE, 1.0, IGNORE]], dtype=torch.float64)
    kept = labels != IGNORE
    hard = -(
        torch.log(torch.sigmoid(logits))[kept & (labels == 1)].sum() + torch.log(1 - torch.sigmoid(logits))[kept & (labels == 0)].sum()
    )
    assert step_loss(logits, labels).item() == pytest.approx(hard.item())
    changed = logits.detach().clone()
    changed[~kept] = math.nan
    assert step_loss(changed, labels).item() == pytest.approx(hard.item())
    nothing = step_loss(logits, torch.full_like(labels, IGNORE))
    nothing.backward()
    assert nothing.item() == 0 and logits.grad.abs().sum() == 0


def test_a_confident_mistake_in_bf16_still_has_a_gradient():
    logits = torch.tensor([9.0], dtype=torch.bfloat16, requires_grad=True)
    step_loss(logits, torch.tensor([0.0])).backward()
    assert logits.grad.item() > 0.9


def test_balance_weighs_the_classes():
    logits = torch.zeros(4)
    assert step_loss(logits, torch.tensor([1.0, 1.0, 1.0, 0.0]), balance=(3.0, 1.0)).item() == pytest.approx(6 * math.log(2))


def test_nothing_after_the_first_error():
    assert masked_after_first_error([1.0, None, 0.0, 1.0, 0.0]) == [1.0, None, 0.0, None, None]


def test_23_win_rate_is_free_of_shifts_monotone_and_floored():
    calibration = Calibration((0.0, 1.0, -2.0), slope=1.7, floor=0.05, max_length=8)
    shifted = Calibration((5.0, 6.0, 3.0), slope=1.7, floor=0.05, max_length=8)
    scores = [-1e9, -1.0, 0.3, 2.0, 1e9]
    rates = calibration.win_rate(scores)
    assert shifted.win_rate([score + 5 for score in scores]) == pytest.approx(rates)
    assert rates == sorted(rates) and rates[0] == pytest.approx(0.05) and rates[-1] <= 1
    by_hand = np.mean([1 / (1 + math.exp(-1.7 * (0.3 - reference))) for reference in (0.0, 1.0, -2.0)])
    assert rates[2] == pytest.approx(0.05 + 0.95 * by_hand)


def test_the_slope_is_found_and_stays_finite_on_separable_pairs():
    rng = np.random.default_rng(0)
    delta = rng.normal(0, 1, 4000)
    signed = np.where(rng.random(4000) < 1 / (1 + np.exp(-2.0 * delta)), delta, -delta)
    assert fit_slope(signed) == pytest.approx(2.0, rel=0.15)
    assert 0.05 <= fit_slope([1.0] * 50) < 20 and fit_slope([]) == 1.0


def test_language_loss_by_hand():
    """Each weighted token is predicted from the column before it."""
    head = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    hidden = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [9.0, 9.0]]], requires_grad=True)
    ids, weights = torch.tensor([[2, 0, 1]]), torch.tensor([[0.0, 0.5, 2.0]])
    loss = language_loss(hidden, head, ids, weights)
    first = math.log(math.e + 1 + 1) - 1  # token 0 from (1, 0)
    second = math.log(1 + math.exp(2) + 1) - 2  # token 1 from (0, 2)
    assert loss.item() == pytest.approx(0.5 * first + 2 * second)
    loss.backward()
    assert hidden.grad[0, 2].abs().sum() == 0 and hidden.grad[0, 0].abs().sum() > 0
    assert language_loss(hidden, head, ids, torch.zeros(1, 3)).item() == 0
