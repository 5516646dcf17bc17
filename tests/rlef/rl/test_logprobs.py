"""Log-probabilities and entropies in blocks, to the last bit those of the plain formula; and their gradient, which takes the logits' room."""

from __future__ import annotations

import math

import pytest
import torch

from rlef.rl import logprobs
from rlef.rl.logprobs import token_logprobs


def plain(logits, token, temperature):
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    normaliser = torch.logsumexp(scaled, -1)
    spread = normaliser - ((scaled - normaliser[:, None]).exp() * scaled).sum(-1)
    return scaled.gather(-1, token[:, None]).squeeze(-1) - normaliser, spread


def given(dtype=torch.float32, rows=37, vocabulary=300):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(rows, vocabulary, generator=generator) * 3).to(dtype)
    weights = torch.randn(rows, generator=generator)
    return logits, torch.randint(vocabulary, (rows,), generator=generator), weights


def test_log_probability_and_entropy_by_hand():
    logprobs, entropy = token_logprobs(torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([1]), entropy=True)
    assert logprobs.item() == pytest.approx(math.log(0.25))
    assert entropy.item() == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    hot, _ = token_logprobs(torch.tensor([[2 * math.log(3.0), 0.0]]), torch.tensor([1]), 2.0)
    assert hot.item() == pytest.approx(math.log(0.25))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_blocks_change_no_bit_of_values_and_gradient(monkeypatch, dtype, temperature):
    monkeypatch.setattr(logprobs, "BLOCK", 5 * 300)  # 8 blocks, the last one short
    logits, token, weights = given(dtype)
    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    expected, spread = plain(leaves[0] * 1, token, temperature)
    found, nothing = token_logprobs(leaves[1] * 1, token, temperature)
    assert nothing is None and torch.equal(found, expected) and found.dtype == torch.promote_types(dtype, torch.float32)
    for values in (expected, found):
        values.backward(weights.to(values.dtype))
    assert torch.equal(leaves[0].grad, leaves[1].grad) and leaves[1].grad.dtype == dtype
    with torch.no_grad():
        found, seen = token_logprobs(logits.clone(), token, temperature, entropy=True)
    assert torch.equal(found, expected) and torch.equal(seen, spread)


def test_the_gradient_takes_the_room_of_the_logits_and_a_second_backward_is_an_error():
    logits, token, weights = given()
    leaf = logits.clone().requires_grad_()
    used = leaf * 1
    found, _ = token_logprobs(used, token)
    found.backward(weights, retain_graph=True)
    assert not torch.equal(used, logits)
    with pytest.raises(RuntimeError, match="inplace"):
        found.backward(weights)


def test_an_entropy_takes_a_gradient_where_logits_do():
    logits, token, weights = given(torch.float64)
    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    for leaf, function in zip(leaves, (plain, lambda *given: token_logprobs(*given, entropy=True)), strict=True):
        found, spread = function(leaf, token, 0.7)
        ((found + 0.3 * spread) * weights).sum().backward()
    assert torch.equal(leaves[0].grad, leaves[1].grad)
    leaf = logits.clone().requires_grad_()
    token_logprobs(leaf * 1, token, 0.7, entropy=True)[1].sum().backward()
    assert leaf.grad.abs().max() > 0


def test_no_token_at_all_is_no_error():
    found, spread = token_logprobs(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), entropy=True)
    assert found.shape == spread.shape == (0,)
