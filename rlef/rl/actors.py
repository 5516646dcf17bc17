"""Policy, critic and reference behind one interface, in three layouts: whole copies, adapters on one base, two heads on one trunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from rlef.config import Config, PpoStage
from rlef.engines import dist, make_engine, make_frozen
from rlef.engines.base import Engine
from rlef.models import load_policy
from rlef.rl.adapters import FOLDER, POLICY, AdaptedBase, AdapterCritic, AdapterPolicy, merged
from rlef.rl.batch import Columns
from rlef.rl.policy import TokenCritic, TokenPolicy, TwoHeads
from rlef.rollout.base import Generator


@dataclass(frozen=True)
class Said:
    """What a net says of a micro-batch, tensors of (b, width); None: not its task."""

    policy: tuple[torch.Tensor, torch.Tensor | None] | None = None  # log-probabilities, and entropies where they are wanted
    values: torch.Tensor | None = None


@dataclass(frozen=True)
class Net:
    """One forward and backward of an update: an engine and what is read from it."""

    engine: Engine
    value_coef: float = 1.0  # weight of the value loss beside the policy's
    parts: ClassVar[tuple[str, ...]]  # whose gradient its engine's norm is of

    def read(self, batch: Columns, width: int, temperature: float, *, entropy: bool = False) -> Said:
        raise NotImplementedError


class PolicyNet(Net):
    """The policy alone."""

    parts = ("policy",)

    def read(self, batch: Columns, width: int, temperature: float, *, entropy: bool = False) -> Said:
        return Said(policy=self.engine.forward(batch, width, temperature, entropy=entropy))


class CriticNet(Net):
    """The critic alone, on a trunk of its own."""

    parts = ("value",)

    def read(self, batch: Columns, width: int, temperature: float, *, entropy: bool = False) -> Said:
        return Said(values=self.engine.forward(batch, width))


class TwoHeadsNet(Net):
    """Policy and value head on one trunk, read together."""

    parts = ("policy", "value")

    def read(self, batch: Columns, width: int, temperature: float, *, entropy: bool = False) -> Said:
        logprobs, spread, values = self.engine.forward(batch, width, temperature, entropy=entropy)
        return Said((logprobs, spread), values)


class ValueHeadNet(Net):
    """Of two heads the value head alone: while the critic warms up, its loss must not move the policy's trunk."""

    parts = ("value",)

    def read(self, batch: Columns, width: int, temperature: float, *, entropy: bool = False) -> Said:
        return Said(values=self.engine.forward(batch, width, temperature, trunk_gradient=False)[2])


class Actors:
    """Whole copies: a policy, a critic and a frozen reference. The other layouts differ from it where they say so."""

    def __init__(
        self, policy: Net, critic: Net, reference: Callable[[Columns, int, float], tuple[torch.Tensor, torch.Tensor | None]]
    ) -> None:
        self.policy, self.critic, self._reference = policy, critic, reference

    @property
    def engines(self) -> dict[str, Engine]:
        """By the name of their folder in a checkpoint."""
        return {"policy": self.policy.engine, "critic": self.critic.engine}

    @property
    def sampler(self) -> Any:
        """The policy as a transformers model that shares the trained weights, of which ZeRO-3 leaves each rank a part."""
        return self.policy.engine.module.model

    def trained(self, train_policy: bool) -> tuple[Net, ...]:
        """What an update goes through one after another: the activations of one net are gone before the next begins."""
        return (self.critic, self.policy) if train_policy else (self.critic,)

    @torch.no_grad()
    def reference(self, batch: Columns, width: int, temperature: float) -> torch.Tensor:
        """(b, width) log-probabilities of the model that the policy began as."""
        return self._reference(batch, width, temperature)[0]

    def sync(self, generator: Generator) -> dict[str, float]:
        """Give a sampler the policy as it now is. Returns what the log should hold of it."""
        return generator.sync_weights(self)

    def full_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The policy's weights, whole, one at a time. All ranks must walk them to the end."""
        return ((name, value) for name, value in self.policy.engine.full_parameters() if name.startswith("model."))

    def save_model(self, folder: Path) -> None:
        """Write the policy to `folder`, for from_pretrained. All ranks must call it."""
        self.policy.engine.save_model(folder)

    def save(self, folder: Path) -> None:
        """Write folder/model, and what there is beside it. All ranks must call it."""
        self.save_model(folder / "model")


class AdapterActors(Actors):
    """Adapters of policy and critic on one frozen base, which with both off is the reference."""

    def __init__(self, policy: Net, critic: Net, base: AdaptedBase, start: Callable[[], PreTrainedModel]) -> None:
        super().__init__(policy, critic, base.reference)
        self.base, self.start = base, start

    @property
    def sampler(self) -> PreTrainedModel:
        return self.base.model

    def sync(self, generator: Generator) -> dict[str, float]:
        """A sampler in this process reads these very modules, where the critic's adapter may be on."""
        self.base.use(POLICY)
        return super().sync(generator)

    def full_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        return ((f"model.{name}", value) for name, value in self._merged().named_parameters())

    def save_model(self, folder: Path) -> None:
        if dist.is_main():
            self._merged().save_pretrained(folder)
        dist.barrier()

    def save(self, folder: Path) -> None:
        """The adapter alone is folder/adapter."""
        super().save(folder)
        if dist.is_main():
            self.base.save(folder / FOLDER)
        dist.barrier()

    def _merged(self) -> PreTrainedModel:
        """What the policy began as, on the CPU, with the adapter added into the weights."""
        with TemporaryDirectory() as scratch:
            self.base.save(Path(scratch))
            return merged(self.start(), Path(scratch))


class TwoHeadsActors(Actors):
    """One trunk, trained on both losses by one optimiser; the reference is a copy."""

    @property
    def engines(self) -> dict[str, Engine]:
        return {"policy": self.policy.engine}

    def trained(self, train_policy: bool) -> tuple[Net, ...]:
        return (self.policy,) if train_policy else (self.critic,)


def adapted_base(settings: PpoStage, model: PreTrainedModel, device: torch.device, seed: int) -> AdaptedBase | None:
    """`model` with frozen weights and adapters, where the settings ask for them."""
    if settings.lora is None:
        return None
    nn.Module.to(model, device)  # transformers' own wrapper hides its signature from type checkers
    return AdaptedBase(model, settings.lora, seed=seed, bf16=settings.bf16)


def build_actors(
    settings: PpoStage,
    config: Config,
    model: PreTrainedModel,
    base: AdaptedBase | None,
    start: Path,
    critic_start: Path,
    device: torch.device,
) -> Actors:
    """The layout that the settings choose, around `model`, which `start` holds; `base`: its adapted_base. A critic of whole weights begins
    on the trunk of `critic_start`."""
    bf16, how = settings.bf16, {"dtype": config.model.dtype, "trust_remote_code": config.model.trust_remote_code}
    # The one optimiser of a shared trunk steps while the critic warms up, too.
    policy_iterations = settings.iterations - (0 if settings.shared_trunk else settings.critic_warmup)
    steps = max(1, policy_iterations * settings.epochs * settings.minibatches)
    common: dict[str, Any] = {
        "max_grad_norm": settings.max_grad_norm,
        "warmup_steps": settings.lr_warmup,
        "device": device,
        "deepspeed_json": config.launch.deepspeed,
    }
    for_policy = common | {"lr": settings.policy_lr, "total_steps": steps if settings.lr_decay else None}
    trunks = [model]
    if base is not None:
        policy = PolicyNet(make_engine(AdapterPolicy(base), **for_policy))
        critic = CriticNet(make_engine(AdapterCritic(base), lr=settings.critic_lr, **common))
        actors = AdapterActors(policy, critic, base, partial(load_policy, start, **how))
    else:
        whole = TokenPolicy(load_policy(start, **how), bf16=bf16)
        reference = make_frozen(whole, deepspeed_json=config.launch.deepspeed, device=device)
        if settings.shared_trunk:
            engine = make_engine(TwoHeads(model, bf16=bf16), own_lr={"head": settings.critic_lr}, **for_policy)
            actors = TwoHeadsActors(TwoHeadsNet(engine, settings.value_coef), ValueHeadNet(engine), reference)
        else:
            critic_model = TokenCritic.from_folder(critic_start, bf16=bf16, **how)
            policy = PolicyNet(make_engine(TokenPolicy(model, bf16=bf16), **for_policy))
            critic = CriticNet(make_engine(critic_model, lr=settings.critic_lr, **common))
            actors = Actors(policy, critic, reference)
            trunks.append(critic_model.model)
    if settings.gradient_checkpointing:
        for trunk in trunks:
            trunk.activation_checkpointing_enable({"use_reentrant": False})
    return actors
