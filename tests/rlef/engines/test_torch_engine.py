"""The plain engine: clipping, skipping, master weights, exact resume."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlef.engines.base import learning_rate
from rlef.engines.torch_engine import TorchEngine


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)


def data(seed=0):
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(seed))


def one_step(engine, seed=0):
    x = data(seed)
    engine.backward(engine.forward(x[:8]).square().sum() / 16, last=False)
    engine.backward(engine.forward(x[8:]).square().sum() / 16, last=True)
    return engine.step()


def test_8_steps_of_two_micro_batches_are_those_of_adam_on_whole_batches():
    """R3, R13, R20: three of them, each of its own gradient alone, clipped and at the rate of its own place in the warm-up."""
    engine, plain = TorchEngine(net(), lr=1e-2, warmup_steps=3, max_grad_norm=0.1), net()
    adam = torch.optim.AdamW(plain.parameters(), weight_decay=0.0)
    for number in range(3):
        one_step(engine, number)
        adam.zero_grad()
        (plain(data(number)).square().sum() / 16).backward()
        assert nn.utils.clip_grad_norm_(plain.parameters(), 0.1) > 0.1
        adam.param_groups[0]["lr"] = 1e-2 * (number + 1) / 3
        adam.step()
        for a, b in zip(engine.module.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-6), number


@pytest.mark.parametrize("limit", [0.5, 1e9])
def test_14_clipping(limit):
    """torch adds 1e-6 to the norm it divides by: only a norm well above 1 shows the limit to 1e-6."""
    engine = TorchEngine(net(torch.float64), lr=1e-2, max_grad_norm=limit)
    seen = {}
    real = engine.optimizer.step
    engine.optimizer.step = lambda: (
        seen.update(norm=torch.sqrt(sum(p.grad.square().sum() for p in engine.module.parameters())).item()) or real()
    )
    x = 10 * data().double()
    engine.backward(engine.forward(x).square().sum(), last=True)
    true = torch.sqrt(sum(p.grad.square().sum() for p in engine.module.parameters())).item()
    assert true > 2 and engine.step().grad_norm == pytest.approx(true, rel=1e-6)
    assert seen["norm"] == pytest.approx(min(true, limit), rel=1e-6)


def test_a_gradient_that_is_not_finite_changes_nothing():
    engine = TorchEngine(net(), lr=1e-2)
    one_step(engine)
    before = [parameter.clone() for parameter in engine.module.parameters()]
    engine.backward(engine.forward(data()).sum() * float("nan"), last=True)
    assert engine.step().skipped and engine.steps == 1
    assert all(torch.equal(a, b) for a, b in zip(before, engine.module.parameters(), strict=True))


def test_discard_forgets():
    clean, dirty = TorchEngine(net(), lr=1e-2), TorchEngine(net(), lr=1e-2)
    dirty.backward(dirty.forward(data(5)).square().sum(), last=True)
    dirty.discard()
    for engine in (clean, dirty):
        one_step(engine)
    assert all(torch.equal(a, b) for a, b in zip(clean.module.parameters(), dirty.module.parameters(), strict=True))


def test_11_bf16_weights_move_through_fp32_masters():
    engine = TorchEngine(net(torch.bfloat16), lr=1e-6)
    start = [parameter.clone() for parameter in engine._masters]
    for _ in range(3):
        x = data().bfloat16()
        engine.backward(engine.forward(x).float().square().sum(), last=True)
        engine.step()
    assert all(not torch.equal(a, b) for a, b in zip(start, engine._masters, strict=True))
    assert all(master.dtype == torch.float32 for master in engine._masters)
    assert all(torch.equal(weight, master.bfloat16()) for weight, master in zip(engine._weights, engine._masters, strict=True))


def test_25_save_and_load_go_on_bitwise(tmp_path):
    straight = TorchEngine(net(), lr=1e-2, warmup_steps=3)
    for step in range(5):
        one_step(straight, step)
    first = TorchEngine(net(), lr=1e-2, warmup_steps=3)
    for step in range(2):
        one_step(first, step)
    first.save(tmp_path)
    second = TorchEngine(net(), lr=1e-2, warmup_steps=3)
    second.load(tmp_path)
    for step in range(2, 5):
        one_step(second, step)
    assert all(torch.equal(a, b) for a, b in zip(straight.module.parameters(), second.module.parameters(), strict=True))


def test_warm_up_is_linear_and_then_constant():
    engine = TorchEngine(net(), lr=1.0, warmup_steps=4, max_grad_norm=1e-9)
    assert [one_step(engine).lr for _ in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_the_learning_rate_rises_and_falls():
    rates = [learning_rate(2.0, step, 2, 6) for step in range(7)]
    assert rates == pytest.approx([1.0, 2.0, 2.0, 1.5, 1.0, 0.5, 0.0])
    assert [learning_rate(2.0, step, 0, None) for step in (0, 99)] == [2.0, 2.0] and learning_rate(2.0, 0, 0, 1) == 2.0
