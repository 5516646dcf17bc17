"""PPO's losses by value."""

from __future__ import annotations

import math

import pytest
import torch

from rlef.rl.advantages import k3
from rlef.rl.losses import adapted_kl_coef, explained_variance, mismatch_weights, policy_loss, token_shares, value_loss

ONE = torch.ones(1, 1)


def gradient(ratio: float, advantage: float, **options) -> float:
    logp = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    loss, _ = policy_loss(logp, torch.zeros(1, 1, dtype=torch.float64), torch.tensor([[advantage]], dtype=torch.float64), ONE, **options)
    loss.backward()
    return logp.grad.item()


@pytest.mark.parametrize(
    "ratio,advantage,flows",
    [
        (1.3, 1.0, False),
        (0.7, -1.0, False),
        (3.5, -1.0, False),  # beyond the dual clip
        (0.7, 1.0, True),
        (1.3, -1.0, True),
        (2.9, -1.0, True),
        (3.5, 1.0, False),
        (1.1, 1.0, True),
        (0.9, -1.0, True),
    ],
)
def test_12_clip_quadrants(ratio, advantage, flows):
    expected = -advantage * ratio if flows else 0.0
    assert gradient(ratio, advantage) == pytest.approx(expected, abs=1e-12)


def test_12_dual_clip_caps_the_loss_at_c_times_the_advantage():
    logp = torch.tensor([[math.log(50.0)]])
    loss, _ = policy_loss(logp, torch.zeros(1, 1), torch.tensor([[-2.0]]), ONE, dual_clip=3.0)
    assert loss.item() == pytest.approx(6.0)
    loss, _ = policy_loss(logp, torch.zeros(1, 1), torch.tensor([[-2.0]]), ONE, dual_clip=None)
    assert loss.item() == pytest.approx(100.0)
    assert gradient(3.5, -2.0, dual_clip=None) == pytest.approx(7.0) and gradient(1.15, 1.0, clip_range=0.1) == 0


def test_12_the_upper_clip_range_may_be_wider():
    assert gradient(1.25, 1.0) == 0 and gradient(1.25, 1.0, clip_range_high=0.28) == pytest.approx(-1.25)
    assert gradient(1.3, 1.0, clip_range_high=0.28) == 0 and gradient(0.75, -1.0, clip_range_high=0.28) == 0


def test_weights_multiply_after_clipping():
    assert gradient(3.5, -2.0, dual_clip=None, weights=torch.tensor([[0.5]])) == pytest.approx(3.5)
    assert gradient(1.3, 1.0, weights=torch.tensor([[7.0]])) == 0  # clipped is clipped


def test_shares_of_the_three_means():
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    losses = torch.tensor([[1.0, 2.0, 3.0, math.nan], [5.0, math.nan, 0.0, 0.0], [9.0] * 4])
    found = {}
    for how in ("token", "sequence", "constant"):
        shares, count = token_shares(mask, how, 8)
        found[how] = (torch.where(mask > 0, losses * shares, 0.0).sum() / count).item()
    assert found == pytest.approx({"token": 11 / 4, "sequence": (2 + 5) / 2, "constant": (6 / 8 + 5 / 8) / 2})


def test_27_mismatch_weights():
    old, rollout = torch.log(torch.tensor([[0.5, 0.9], [0.2, 0.3]])), torch.log(torch.tensor([[0.5, 0.3], [0.4, 0.1]]))
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    assert mismatch_weights(old, old, mask, how="token", cap=2.0).tolist() == [[1, 1], [1, 1]]
    assert mismatch_weights(old, rollout, mask, how="token", cap=2.0).tolist() == [[1, 2], [pytest.approx(0.5), 1]]
    assert mismatch_weights(old, rollout, mask, how="token", cap=9.0)[0, 1].item() == pytest.approx(3)
    # Means of log w: log(3) / 2 = 0.55 and -log(2): only the second leaves the band of 1.8, both stay within 2.1.
    assert mismatch_weights(old, rollout, mask, how="sequence", cap=1.8).tolist() == [[1, 1], [0, 0]]
    assert mismatch_weights(old, rollout, mask, how="sequence", cap=2.1).tolist() == [[1, 1], [1, 1]]
    assert mismatch_weights(old, rollout, mask, how="none", cap=2.0).tolist() == [[1, 1], [1, 1]]
    rollout[0, 0] = math.nan
    assert mismatch_weights(old, rollout, mask, how="token", cap=2.0)[0].tolist() == [1, 2]


def test_27_token_weights_recover_the_gradient_of_the_policy_from_samples_of_another():
    """Enumerated over one token: E_sampler[w A grad log pi] = E_pi[A grad log pi]; without w it is another vector."""
    theta = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sampler = torch.log_softmax(torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), -1)
    advantages, mask = torch.arange(5, dtype=torch.float64)[:, None], torch.ones(5, 1, dtype=torch.float64)
    logp = torch.log_softmax(theta, -1)[:, None]
    (true,) = torch.autograd.grad((logp.detach().exp() * advantages * logp).sum(), theta, retain_graph=True)

    def found(how):
        weights = mismatch_weights(logp.detach(), sampler[:, None], mask, how=how, cap=1e6) * sampler.exp()[:, None]
        return torch.autograd.grad(-policy_loss(logp, logp.detach(), advantages, mask, weights=weights)[0], theta, retain_graph=True)[0]

    assert (found("token") - true).abs().max() < 1e-12 and (found("none") - true).abs().max() > 1e-2


def test_27_token_weights_of_longer_answers_are_biased_but_less_than_none():
    """Two tokens, enumerated, rewarded together: a token's weight leaves out how likely what stands before and after it was; their
    product over the answer does not."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(4, 3, dtype=torch.float64, generator=generator).requires_grad_()  # at the start, and after each first token
    tilted = torch.log_softmax(theta.detach() + 0.5 * torch.randn(4, 3, dtype=torch.float64, generator=generator), -1)
    reward = torch.randn(9, 1, dtype=torch.float64, generator=generator).expand(9, 2)
    first, second = torch.arange(9) // 3, torch.arange(9) % 3
    logp, sampler = (torch.stack([table[0, first], table[1 + first, second]], 1) for table in (torch.log_softmax(theta, -1), tilted))
    chance, mask = sampler.sum(1, keepdim=True).exp(), torch.ones(9, 2, dtype=torch.float64)
    (true,) = torch.autograd.grad((logp.detach().sum(1, keepdim=True).exp() * reward * logp).sum(), theta, retain_graph=True)
    weights = {how: mismatch_weights(logp.detach(), sampler, mask, how=how, cap=1e6) for how in ("token", "none")}
    errors = {}
    for how, weight in (weights | {"whole": weights["token"].prod(1, keepdim=True)}).items():
        loss, _ = policy_loss(logp, logp.detach(), reward, mask, weights=weight * chance)
        errors[how] = (torch.autograd.grad(-loss, theta, retain_graph=True)[0] - true).abs().max().item()
    assert errors["whole"] < 1e-12 and 1e-3 < errors["token"] < 0.7 * errors["none"]


def test_31_the_kl_coefficient_moves_towards_its_target_from_both_sides():
    move = {"target": 6.0, "horizon": 1000, "rows": 100}
    assert adapted_kl_coef(0.1, 6.6, **move) == pytest.approx(0.1 * 1.01) and adapted_kl_coef(0.1, 5.4, **move) == pytest.approx(0.099)
    assert adapted_kl_coef(0.1, 60.0, **move) == pytest.approx(0.102) and adapted_kl_coef(0.1, -3.0, **move) == pytest.approx(0.098)
    assert adapted_kl_coef(0.1, math.nan, **move) == adapted_kl_coef(0.1, 6.0, **move) == 0.1


def test_hand_computed_sum_and_log():
    logp = torch.log(torch.tensor([[1.5, 1.0, 9.0]]))
    loss, sums = policy_loss(logp, torch.zeros(1, 3), torch.tensor([[2.0, -1.0, 5.0]]), torch.tensor([[1.0, 1.0, 0.0]]))
    assert loss.item() == pytest.approx(-2 * 1.2 + 1.0)
    assert sums["clip_fraction"].item() == 1 and sums["ratio"].item() == pytest.approx(2.5)
    assert sums["approx_kl"].item() == pytest.approx(1.5 - 1 - math.log(1.5), rel=1e-5)


def test_4_a_small_kl_is_no_rounding_error():
    """exp(d) - 1 - d in fp32 would be off by ten times what it is."""
    near = torch.tensor([[1e-4]])
    assert policy_loss(near, torch.zeros(1, 1), ONE, ONE)[1]["approx_kl"].item() == pytest.approx(5e-9, rel=0.05)
    assert k3(near, torch.zeros(1, 1)).item() == pytest.approx(5e-9, rel=0.05)


def test_13_huge_log_ratios_stay_finite():
    for sign in (1, -1):
        for advantage in (1.0, -1.0):
            logp = torch.tensor([[sign * 1e4]], requires_grad=True)
            loss, _ = policy_loss(logp, torch.zeros(1, 1), torch.tensor([[advantage]]), ONE)
            loss.backward()
            assert torch.isfinite(loss) and torch.isfinite(logp.grad).all()


def test_3_masked_nan_changes_nothing_and_takes_no_gradient():
    logp = torch.tensor([[0.1, math.nan]], requires_grad=True)
    rest = torch.tensor([[0.0, math.nan]])
    loss, sums = policy_loss(logp, rest, torch.tensor([[1.0, math.nan]]), torch.tensor([[1.0, 0.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(-math.exp(0.1)) and logp.grad[0, 1] == 0
    assert {name: value.item() for name, value in sums.items()} == pytest.approx(
        {"clip_fraction": 0, "ratio": math.exp(0.1), "approx_kl": math.expm1(0.1) - 0.1}, rel=1e-4
    )
    values = torch.tensor([[0.5, math.nan]], requires_grad=True)
    loss, sums = value_loss(values, rest, torch.tensor([[1.0, math.nan]]), torch.tensor([[1.0, 0.0]]), clip=0.2)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * 0.8**2) and sums["clip_fraction"] == 1 and values.grad[0, 1] == 0


def test_value_loss_plain_and_clipped():
    values, old, returns = torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[2.0]])
    assert value_loss(values, old, returns, ONE)[0].item() == pytest.approx(0.5)
    clipped, sums = value_loss(values, old, returns, ONE, clip=0.2)
    assert clipped.item() == pytest.approx(0.5 * 1.8**2) and sums["clip_fraction"].item() == 1


def test_explained_variance():
    returns, values = torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.tensor([1.5, 2.0, 2.5, 4.0])
    error = returns - values
    moments = torch.stack([torch.tensor(4.0), returns.sum(), returns.square().sum(), error.sum(), error.square().sum()])
    assert explained_variance(moments) == pytest.approx(1 - (error.var() / returns.var()).item(), rel=1e-5)
    assert math.isnan(explained_variance(torch.tensor([3.0, 3.0, 3.0, 0.0, 0.0])))
