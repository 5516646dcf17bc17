"""The state of an engine that divides nothing: AdamW counts its steps in a tensor, DeepSpeed's own on the CPU in an int."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from reward_models.errors import UserError
from reward_models.zero import check_optimizer, divide, gather


class DeepSpeedCPUAdam(torch.optim.Optimizer):
    """Has that one's state."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    def step(self):
        for parameter in self.param_groups[0]["params"]:
            held = self.state[parameter] or {"step": 0, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
            self.state[parameter] = {name: value + 1 for name, value in held.items()}


def engine(optimizer, seed):
    torch.manual_seed(seed)
    layer = torch.nn.Linear(3, 2)
    return list(layer.parameters()), SimpleNamespace(optimizer=optimizer(layer.parameters()))


@pytest.mark.parametrize("target", [DeepSpeedCPUAdam, torch.optim.AdamW])
@pytest.mark.parametrize("source", [DeepSpeedCPUAdam, torch.optim.AdamW])
def test_a_state_moves_to_another_optimiser_before_its_first_step(source, target):
    weights, trained = engine(source, 0)
    for weight in weights:
        weight.grad = torch.full_like(weight, 0.5)
    for _ in range(3):
        trained.optimizer.step()
    fresh, other = engine(target, 1)
    divide(other, fresh, gather(trained, weights))
    for one, new in zip(weights, fresh, strict=True):
        held, got = trained.optimizer.state[one], other.optimizer.state[new]
        assert torch.equal(one, new) and all(torch.equal(held[name], got[name]) for name in ("exp_avg", "exp_avg_sq"))
        assert got["step"] == 3 and type(got["step"]) is (int if target is DeepSpeedCPUAdam else torch.Tensor)


def test_another_optimiser_than_adam_is_refused():
    check_optimizer(engine(DeepSpeedCPUAdam, 0)[1])
    check_optimizer(engine(torch.optim.AdamW, 0)[1])
    with pytest.raises(UserError, match="optimizer is SGD"):
        check_optimizer(engine(torch.optim.SGD, 0)[1])
