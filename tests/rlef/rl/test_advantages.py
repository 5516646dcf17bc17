"""GAE, KL and whitening by value (numbers in names: the list of tests in the algorithm notes)."""

from __future__ import annotations

import math

import pytest
import torch

from rlef.rl.advantages import gae, k1, k3, whiten


def brute_force(rewards, values, mask, gamma, lam):
    """A_t = sum_l (gamma lam)^l delta_{t+l} over the real tokens of each row, straight from the definition."""
    advantages = torch.zeros_like(rewards)
    for row in range(rewards.shape[0]):
        real = [t for t in range(rewards.shape[1]) if mask[row, t]]
        for i, t in enumerate(real):
            total = 0.0
            for j in range(i, len(real)):
                after = values[row, real[j + 1]] if j + 1 < len(real) else 0.0
                total += (gamma * lam) ** (j - i) * (rewards[row, real[j]] + gamma * after - values[row, real[j]])
            advantages[row, t] = total
    return advantages


def random_rows(rows=6, width=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    values = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    mask = (torch.rand(rows, width, generator=generator) < 0.7).double()  # gaps inside rows, too
    mask[0] = 1
    mask[1] = 0
    return rewards, values, mask


@pytest.mark.parametrize("gamma,lam", [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.7, 0.0)])
def test_1_gae_equals_the_definition(gamma, lam):
    rewards, values, mask = random_rows()
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    expected = brute_force(rewards, values, mask, gamma, lam)
    assert torch.allclose(advantages, expected, atol=1e-12)
    assert torch.allclose(returns, (expected + values) * mask, atol=1e-12)


def test_1_one_token():
    advantages, returns = gae(torch.tensor([[2.0]]), torch.tensor([[0.5]]), torch.ones(1, 1))
    assert advantages.item() == 1.5 and returns.item() == 2.0


def test_2_lambda_one_is_reward_to_go_and_zero_is_the_td_error():
    rewards, values, _ = random_rows()
    mask = torch.ones_like(rewards)
    _, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    assert torch.allclose(returns, rewards.flip(1).cumsum(1).flip(1), atol=1e-12)
    advantages, _ = gae(rewards, values, mask, gamma=0.9, lam=0.0)
    after = torch.cat([values[:, 1:], torch.zeros(len(values), 1, dtype=values.dtype)], 1)
    assert torch.allclose(advantages, rewards + 0.9 * after - values, atol=1e-12)


def test_3_masked_nan_changes_nothing():
    rewards, values, mask = random_rows()
    clean = gae(rewards, values, mask)
    dirty = gae(rewards.masked_fill(mask == 0, math.nan), values.masked_fill(mask == 0, math.nan), mask)
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))
    assert torch.equal(whiten(clean[0], mask, lambda x: x), whiten(clean[0].masked_fill(mask == 0, math.nan), mask, lambda x: x))


def test_whitening_gives_mean_zero_and_variance_one_and_leaves_constants_alone():
    rewards, _, mask = random_rows()
    white = whiten(rewards * 7 + 3, mask, lambda x: x)
    chosen = white[mask.bool()]
    assert abs(chosen.mean()) < 1e-12 and abs(chosen.var(unbiased=False) - 1) < 1e-12
    one = torch.zeros(2, 3)
    one[0, 0] = 1
    assert torch.equal(whiten(torch.full((2, 3), 4.0), one, lambda x: x), 4 * one)  # R8: a single valid token
    assert torch.equal(whiten(torch.full((2, 3), 4.0), torch.ones(2, 3), lambda x: x), torch.full((2, 3), 4.0))


def test_7_which_gradient_each_estimator_of_the_kl_gives():
    """Exact enumeration over 7 actions. In the reward E[k grad log pi] is grad KL(pi || ref) for k1 alone; as a loss E[grad k] is that
    for k2 alone, while k1 has none and k3 has the gradient of KL(ref || pi); times the ratio k1 and k3 are right, from any sampler."""
    generator = torch.Generator().manual_seed(0)
    theta, others, samplers = (torch.randn(7, generator=generator, dtype=torch.float64) for _ in range(3))
    theta.requires_grad_()
    logp, ref, sampler = torch.log_softmax(theta, 0), torch.log_softmax(others, 0), torch.log_softmax(samplers, 0)
    estimators = {"k1": k1, "k2": lambda one, other: k1(one, other).square() / 2, "k3": k3}
    told = {name: estimator(logp, ref) for name, estimator in estimators.items()}

    def gradient(value):
        return torch.autograd.grad(value, theta, retain_graph=True)[0]

    def wrong(value, true):
        return (gradient(value) - true).abs().max().item()

    forward, backward = gradient((logp.exp() * (logp - ref)).sum()), gradient((ref.exp() * (ref - logp)).sum())
    chance, ratio = logp.exp().detach(), (logp - sampler).exp()
    in_reward = {name: wrong((chance * value.detach() * logp).sum(), forward) for name, value in told.items()}
    assert in_reward["k1"] < 1e-12 and in_reward["k2"] > 0.05 and in_reward["k3"] > 0.05
    in_loss = {name: wrong((chance * value).sum(), forward) for name, value in told.items()}
    assert in_loss["k2"] < 1e-12 and in_loss["k1"] > 0.05 and in_loss["k3"] > 0.05
    assert wrong((chance * told["k1"]).sum(), 0.0) < 1e-12 and wrong((chance * told["k3"]).sum(), backward) < 1e-12
    off_policy = {name: wrong((sampler.exp() * ratio * value).sum(), forward) for name, value in told.items()}
    assert off_policy["k1"] < 1e-12 and off_policy["k3"] < 1e-12 and off_policy["k2"] > 0.05
    held = {name: wrong((sampler.exp() * weight * told["k2"]).sum(), forward) for name, weight in (("1", 1.0), ("ratio", ratio.detach()))}
    assert held["ratio"] < 1e-12 and held["1"] > 0.05


def test_k3_is_finite_for_any_difference_and_never_negative():
    values = k3(torch.tensor([0.0, 1e4, -1e4, 1e-4]), torch.zeros(4))
    assert torch.isfinite(values).all() and (values >= 0).all() and values[0] == 0
