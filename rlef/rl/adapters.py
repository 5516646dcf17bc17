"""Low-rank adapters (LoRA, arXiv 2106.09685) of several nets on one frozen base, of which one at a time is on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from peft import LoraConfig, TaskType, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from reward_models.adapters import FOLDER as FOLDER
from reward_models.adapters import merged as merged
from reward_models.config import LoraSettings
from rlef.rl.batch import Columns
from rlef.rl.policy import TokenPolicy, ValueHead, products, trunk_states

POLICY, CRITIC = "default", "critic"  # peft writes the adapter of the first name into the folder itself


def _low_rank(settings: LoraSettings) -> LoraConfig:
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=settings.rank, lora_alpha=settings.alpha, lora_dropout=0.0, target_modules="all-linear"
    )


class AdaptedBase:
    """A language model with frozen weights, and on all its linear layers but the LM head an adapter for each of policy and critic."""

    def __init__(self, model: PreTrainedModel, settings: LoraSettings, *, seed: int, bf16: bool = False) -> None:
        self.model, self.bf16 = model, bf16
        self.policy = TokenPolicy(model, bf16=bf16)
        torch.manual_seed(seed)  # all ranks must draw the same
        self._peft: Any = get_peft_model(model, _low_rank(settings), adapter_name=POLICY)
        self._peft.add_adapter(CRITIC, _low_rank(settings))
        self._layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        self._weights = {name: [weight for key, weight in model.named_parameters() if f".{name}." in key] for name in (POLICY, CRITIC)}
        self.use(POLICY)

    def weights(self, name: str) -> list[nn.Parameter]:
        return self._weights[name]

    def use(self, name: str | None) -> None:
        """Switch one adapter on and the others off; None: the base as it was.

        It stays on: layers whose activations are not kept run again in the backward pass, and must find what the forward pass found.
        """
        for layer in self._layers:
            layer.set_adapter([name] if name else [])
        for weights in self._weights.values():
            for weight in weights:
                weight.requires_grad_(True)  # peft freezes those of an adapter that is off

    def add(self, name: str, settings: LoraSettings, weights: dict[str, torch.Tensor]) -> None:
        """A further adapter, which is read alone. `weights`: by their names in a file of peft, less its prefix."""
        self._peft.add_adapter(name, _low_rank(settings))
        with torch.no_grad():
            for key, value in weights.items():
                self.model.get_parameter(key.removesuffix("weight") + f"{name}.weight").copy_(value)
        self.use(POLICY)

    def plain_weights(self) -> dict[str, nn.Parameter]:
        """The base's own, by their names without adapters."""
        return {name.replace(".base_layer", ""): weight for name, weight in self.model.named_parameters() if ".lora_" not in name}

    def reference(self, batch: Columns, width: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What TokenPolicy gives with all adapters off."""
        self.use(None)
        return self.policy(batch, width, temperature)

    def save(self, folder: Path) -> None:
        """The policy's adapter, in peft's own format."""
        self._peft.save_pretrained(folder, selected_adapters=[POLICY], save_embedding_layers=False)


class _OnBase(nn.Module):
    """A net on one adapter of a base. Registered is the adapter alone: that is what an engine moves, trains, clips and saves."""

    def __init__(self, base: AdaptedBase, name: str) -> None:
        super().__init__()
        self.adapter = nn.ParameterList(base.weights(name))
        self.base = base

    def train(self, mode: bool = True) -> Self:
        self.base.model.train(mode)
        return super().train(mode)


class AdapterPolicy(_OnBase):
    """The policy on its adapter: see TokenPolicy."""

    def __init__(self, base: AdaptedBase) -> None:
        super().__init__(base, POLICY)

    def forward(
        self, batch: Columns, width: int, temperature: float = 1.0, *, entropy: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        self.base.use(POLICY)
        return self.base.policy(batch, width, temperature, entropy=entropy)


class AdapterCritic(_OnBase):
    """The critic on its adapter, with a value head that is trained whole."""

    def __init__(self, base: AdaptedBase) -> None:
        super().__init__(base, CRITIC)
        self.head = ValueHead(base.model)

    def forward(self, batch: Columns, width: int) -> torch.Tensor:
        """(b, width) values, fp32 or wider."""
        self.base.use(CRITIC)
        with products(batch.input_ids.device, self.base.bf16):
            states = trunk_states(self.base.model, batch)
        return self.head.of_states(states, batch, width)
