"""6: a toy of three tokens over three symbols, enumerated: PPO's gradient is the gradient of E[R] - beta * KL."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from rlef.rl.advantages import gae, k1
from rlef.rl.losses import policy_loss
from rlef.rl.reward import Score, place_rewards

SYMBOLS, LENGTH, BETA = 3, 3, 0.07


def prefix_index(prefix):
    index = 0
    for symbol in prefix:
        index = index * SYMBOLS + symbol + 1
    return index


def setting(seed=0):
    generator = torch.Generator().manual_seed(seed)
    states = prefix_index((SYMBOLS - 1,) * LENGTH) + 1
    theta = torch.randn(states, SYMBOLS, generator=generator, dtype=torch.float64, requires_grad=True)
    ref = torch.log_softmax(torch.randn(states, SYMBOLS, generator=generator, dtype=torch.float64), -1)
    values = torch.randn(states, generator=generator, dtype=torch.float64)
    scores = torch.rand(states, generator=generator, dtype=torch.float64)  # a causal PRM: p_k is a function of the prefix
    rows = list(product(range(SYMBOLS), repeat=LENGTH))
    return theta, ref, values, scores, rows


def gathered(table, rows):
    return torch.stack([torch.stack([table[prefix_index(row[:t]), row[t]] for t in range(LENGTH)]) for row in rows])


def placed(rows, scores, mode):
    """Rows that end in symbol 0 are answers without a result: worth nothing, whatever their steps."""
    out = []
    for row in rows:
        steps = tuple(float(scores[prefix_index(row[: t + 1])]) for t in range(LENGTH))
        zeroed = "no_answer" if row[-1] == 0 else None
        answer = 0.0 if zeroed else min(steps)
        score = Score("", ("s",) * LENGTH, steps, tuple(range(LENGTH)), 0.6, answer, zeroed, "1", 0, 0)
        out.append(place_rewards(score, LENGTH, mode=mode))
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("mode", ["min_terminal", "running_min_delta"])
def test_6_mean_ppo_gradient_is_the_exact_one(mode):
    """Of E[r_I * r_A] - beta * KL for both modes: F's total differs from A's by a constant, so its gradient must not."""
    theta, ref, values, scores, rows = setting()
    logp = torch.log_softmax(theta, -1)
    row_logp = gathered(logp, rows)
    chance = row_logp.sum(-1).exp()
    total = [0.0 if row[-1] == 0 else 0.6 * min(float(scores[prefix_index(row[: t + 1])]) for t in range(LENGTH)) for row in rows]
    reward = placed(rows, scores, mode)
    kl = (chance * (row_logp - gathered(ref, rows)).sum(-1)).sum()
    expected = (chance * torch.tensor(total, dtype=torch.float64)).sum() - BETA * kl
    (true,) = torch.autograd.grad(expected, theta, retain_graph=True)

    mask = torch.ones(len(rows), LENGTH, dtype=torch.float64)
    old = row_logp.detach()
    rewards = reward - BETA * k1(old, gathered(ref, rows))
    state_values = torch.stack([torch.stack([values[prefix_index(row[:t])] for t in range(LENGTH)]) for row in rows])
    advantages, _ = gae(rewards, state_values, mask, gamma=1.0, lam=1.0)
    loss, _ = policy_loss(row_logp, old, advantages * chance.detach()[:, None], mask)
    (got,) = torch.autograd.grad(-loss, theta, retain_graph=True)
    assert (got - true).abs().max() < 1e-8 and true.abs().max() > 1e-3

    to_go = rewards.flip(1).cumsum(1).flip(1)
    (reinforce,) = torch.autograd.grad((chance.detach()[:, None] * to_go * row_logp).sum(), theta)
    assert (reinforce - true).abs().max() < 1e-8


@pytest.mark.parametrize("lam", [0.0, 0.95])
@pytest.mark.parametrize("mode", ["min_terminal", "running_min_delta"])
def test_6_below_lambda_one_only_an_exact_critic_leaves_the_gradient_exact(mode, lam):
    """So a value must be that of the state BEFORE its token, for both modes and with the KL among the rewards."""
    theta, ref, values, scores, rows = setting()
    logp = torch.log_softmax(theta, -1)
    row_logp, mask = gathered(logp, rows), torch.ones(len(rows), LENGTH, dtype=torch.float64)
    old = row_logp.detach()
    rewards, chance = placed(rows, scores, mode) - BETA * k1(old, gathered(ref, rows)), old.sum(-1).exp()
    to_go = rewards.flip(1).cumsum(1).flip(1)
    (true,) = torch.autograd.grad((chance[:, None] * to_go * row_logp).sum(), theta, retain_graph=True)
    exact = torch.zeros_like(values)
    for t in range(LENGTH):
        state = torch.tensor([prefix_index(row[:t]) for row in rows])
        here = torch.zeros_like(values).index_add(0, state, chance)
        exact += torch.zeros_like(values).index_add(0, state, chance * to_go[:, t]) / here.clamp(min=1e-300)
    errors = []
    for critic in (exact, values):
        state_values = torch.stack([critic[[prefix_index(row[:t]) for t in range(LENGTH)]] for row in rows])
        advantages, _ = gae(rewards, state_values, mask, gamma=1.0, lam=lam)
        (got,) = torch.autograd.grad(-policy_loss(row_logp, old, advantages * chance[:, None], mask)[0], theta, retain_graph=True)
        errors.append((got - true).abs().max().item())
    assert errors[0] < 1e-12 and errors[1] > 1e-4


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_6_running_min_is_potential_shaping(lam):
    """GAE_F(v) == GAE_A(v + r_I * M_t) for every lambda at gamma 1, and at no other; A pays on the last token, F's slots are causal."""
    _, _, values, scores, rows = setting()
    mask = torch.ones(len(rows), LENGTH, dtype=torch.float64)
    state_values = torch.stack([torch.stack([values[prefix_index(row[:t])] for t in range(LENGTH)]) for row in rows])
    least = torch.stack(
        [
            torch.stack(
                [
                    torch.stack([torch.ones((), dtype=torch.float64), *[scores[prefix_index(row[: k + 1])] for k in range(t)]]).min()
                    for t in range(LENGTH)
                ]
            )
            for row in rows
        ]
    )
    shaped, _ = gae(placed(rows, scores, "running_min_delta"), state_values, mask, gamma=1.0, lam=lam)
    plain, _ = gae(placed(rows, scores, "min_terminal"), state_values + 0.6 * least, mask, gamma=1.0, lam=lam)
    assert (shaped - plain).abs().max() < 1e-12
    discounted = [
        gae(placed(rows, scores, mode), critic, mask, gamma=0.9, lam=lam)[0]
        for mode, critic in (("running_min_delta", state_values), ("min_terminal", state_values + 0.6 * least))
    ]
    assert (discounted[0] - discounted[1]).abs().max() > 1e-2
