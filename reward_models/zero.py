"""What DeepSpeed's ZeRO divides among ranks, whole: weights and training state, gathered from all of them and divided among them again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import nn

from reward_models.errors import UserError
from reward_models.training_state import State

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


def whole(parameter: nn.Parameter, *, changed: bool = False) -> contextlib.AbstractContextManager[Any]:
    """The parameter gathered from all ranks while inside, where ZeRO-3 has divided it; `changed`: divided again as the main rank has it."""
    if not hasattr(parameter, "ds_id"):
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if changed else None)


def check_optimizer(engine: Any) -> None:
    """Raises UserError where the engine's optimiser, which a DeepSpeed file may name, has another state than Adam's."""
    adam = _optimizers(engine)[1]
    if not isinstance(adam, torch.optim.Adam) and type(adam).__name__ not in ("FusedAdam", "DeepSpeedCPUAdam"):
        raise UserError(
            f"the DeepSpeed file's optimizer is {type(adam).__name__}; checkpoints hold what AdamW has",
            fix='leave "optimizer" out of the file: AdamW is made from the stage\'s settings',
        )


def gather(engine: Any, trained: Iterable[nn.Parameter]) -> Iterator[State]:
    """The state of each of these parameters in fp32, one after another. All ranks must walk it to the end."""
    held = _held_moments(engine)
    step = torch.tensor(float(next(iter(held.values()))["step"]))
    for parameter in trained:
        state = {"weights": parameter.detach(), **held[parameter]} if parameter in held else _gathered(parameter)
        yield state | {"step": step}


def divide(engine: Any, trained: Sequence[nn.Parameter], states: Iterable[State]) -> None:
    """The reverse: set each parameter's state, whichever engine it is of. All ranks must call it, with the same states."""
    held = _held_moments(engine)
    step = torch.tensor(0.0)
    for parameter, state in zip(trained, states, strict=True):
        weights, step = state["weights"], state.get("step", step)
        moments = {name: state.get(name, torch.zeros_like(weights)) for name in MOMENTS}
        with whole(parameter, changed=True), torch.no_grad():
            parameter.copy_(weights)
        if parameter in held:
            for name, value in moments.items():
                held[parameter][name].copy_(value)
        else:
            _set(parameter, weights, moments)
    for counted in held.values():
        if torch.is_tensor(counted["step"]):
            counted["step"].copy_(step)
        else:
            counted["step"] = int(step)


def _gathered(parameter: nn.Parameter) -> dict[str, Any]:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    moments = {name: safe_get_full_optimizer_state(parameter, name) for name in MOMENTS}
    return {"weights": safe_get_full_fp32_param(parameter), **moments}


def _set(parameter: Any, weights: torch.Tensor, moments: dict[str, torch.Tensor]) -> None:
    """This rank's share, in fp32."""
    import deepspeed.utils as shares

    if not hasattr(parameter, "ds_id"):
        shares.safe_set_full_fp32_param(parameter, weights)
        for name, value in moments.items():
            shares.safe_set_full_optimizer_state(parameter, value, name)
        return
    shares.safe_set_local_fp32_param(parameter, _share(parameter, weights))
    for name, value in moments.items():
        shares.safe_set_local_optimizer_state(parameter, _share(parameter, value), name)


def _share(parameter: Any, value: torch.Tensor) -> torch.Tensor:
    """ZeRO-3 fills up what does not divide evenly, where DeepSpeed's own `safe_set_full_...` (0.19.8) fail."""
    share = torch.zeros(parameter.ds_tensor.numel())
    own = value.flatten()[torch_dist.get_rank() * len(share) :][: len(share)]
    share[: len(own)] = own
    return share


def _held_moments(engine: Any) -> dict[torch.Tensor, dict[str, Any]]:
    """What AdamW holds for each tensor that it steps: the parameters, or this rank's share of them in one piece. DeepSpeed finds a
    parameter's moments in it once they are there, which is as they would be at the first step."""
    sharer, adam = _optimizers(engine)
    of_stage_3 = getattr(sharer, "fp32_partitioned_groups_flat", None)
    held = [one for group in adam.param_groups for one in group["params"]] if of_stage_3 is None else of_stage_3
    for tensor in held:
        if not adam.state[tensor]:
            adam.state[tensor] = {name: torch.zeros_like(tensor) for name in MOMENTS} | {"step": _no_steps(adam, tensor)}
    if hasattr(sharer, "_hp_optimizer_states_linked"):
        sharer._hp_optimizer_states_linked = False
        sharer._lazy_init_hp_params_optimizer_state()
    return {tensor: adam.state[tensor] for tensor in held}


def _no_steps(adam: Any, tensor: torch.Tensor) -> torch.Tensor | int:
    """As this optimiser counts: DeepSpeed's own in an int, torch's in a tensor, which its fused form wants on the device."""
    if not isinstance(adam, torch.optim.Adam):
        return 0
    return torch.zeros((), device=tensor.device if any(group["fused"] for group in adam.param_groups) else "cpu")


def _optimizers(engine: Any) -> tuple[Any, Any]:
    """The one that divides and the one that steps; the same without ZeRO."""
    sharer = engine.optimizer
    return sharer, sharer if isinstance(sharer, torch.optim.Optimizer) else sharer.optimizer
