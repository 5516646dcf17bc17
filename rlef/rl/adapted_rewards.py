"""Reward models that were trained as adapters of the policy's own base, read on that base in place of a whole copy of its weights."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from reward_models.config import LoraSettings
from rlef.rl.adapters import FOLDER, AdaptedBase

ROUNDING = 1e-5  # of a weight tensor's greatest entry: what merging an adapter in fp32 may differ by
A, B = ".lora_A.weight", ".lora_B.weight"


class AdaptedClassifier(nn.Module):
    """A one-label classifier on an adapter of the base: the logits of the whole model, but for rounding. `own_rows`: embeddings of tokens
    that the adapter changed or the base has not."""

    def __init__(self, base: AdaptedBase, name: str, head: nn.Linear, own_rows: dict[int, torch.Tensor], pad_id: int | None) -> None:
        """`pad_id`: of a sequence classifier, whose logit is the one at the last token that is not padding; None: a logit a token."""
        super().__init__()
        self.base, self.name, self.head, self.own_rows, self.pad_id = base, name, head, own_rows, pad_id

    def forward(self, input_ids: torch.Tensor, *, use_cache: bool = False, **inputs: torch.Tensor) -> SimpleNamespace:
        """As a transformers classifier: an object with `logits`, (b, L, 1) or (b, 1)."""
        self.base.use(self.name)
        embeddings: Any = self.base.model.get_input_embeddings()
        embedded = embeddings(input_ids.clamp(max=embeddings.num_embeddings - 1))
        for token, row in self.own_rows.items():
            embedded = torch.where((input_ids == token)[..., None], row, embedded)
        states = self.base.model.base_model(inputs_embeds=embedded, use_cache=use_cache, **inputs).last_hidden_state
        if self.pad_id is not None:
            places = torch.arange(input_ids.shape[1], device=input_ids.device)
            last = torch.where(input_ids != self.pad_id, places, -1).max(-1).values
            states = states[torch.arange(len(states), device=states.device), last]
        return SimpleNamespace(logits=self.head(states))


def on_base(base: AdaptedBase | None, name: str, folder: Path) -> Any:
    """The reward model of `folder` on `base`; None where it must be loaded whole: it has no adapter, or its weights, which stand merged
    beside the adapter, are not those of the base with the adapter added. `name`: of its adapter on the base."""
    if base is None or not (folder / FOLDER / "adapter_model.safetensors").is_file():
        return None
    told = json.loads((folder / FOLDER / "adapter_config.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    adapter = {
        key.removeprefix("base_model.model."): value for key, value in load_file(folder / FOLDER / "adapter_model.safetensors").items()
    }
    scale = told["lora_alpha"] / told["r"]
    layers = {key.removesuffix(A) for key in adapter if key.endswith(A)}
    theirs = base.plain_weights()
    embedding = next(key for key, value in theirs.items() if value is base.model.get_input_embeddings().weight)
    head: dict[str, torch.Tensor] = {}
    own_rows: dict[int, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            for key in stored.keys():  # noqa: SIM118  (a file, not a dict)
                weight, layer = stored.get_tensor(key), key.removesuffix(".weight")
                if key not in theirs:
                    head[key.rpartition(".")[2]] = weight
                    continue
                expected = theirs.pop(key).detach().cpu()
                if layer in layers:
                    expected = expected + scale * adapter[layer + B] @ adapter[layer + A]
                if key == embedding:
                    new = [*(told["trainable_token_indices"] or []), *range(len(expected), len(weight))]
                    own_rows = {token: weight[token] for token in new}
                    kept = [row for row in range(min(len(expected), len(weight))) if row not in own_rows]
                    weight, expected = weight[kept], expected[kept]
                if weight.shape != expected.shape or (weight - expected).abs().max() > ROUNDING * expected.abs().max():
                    return None
    lm_head: Any = base.model.get_output_embeddings()
    if head.keys() - {"bias"} != {"weight"} or any(weight is not lm_head.weight for weight in theirs.values()):
        return None
    device = base.model.device
    base.add(
        name, LoraSettings(rank=told["r"], alpha=told["lora_alpha"]), {key: value for key, value in adapter.items() if key.endswith((A, B))}
    )
    linear = nn.Linear(head["weight"].shape[1], 1, bias="bias" in head)
    linear.load_state_dict(head)
    pad_id = config["pad_token_id"] if config["architectures"][0].endswith("ForSequenceClassification") else None
    rows = {token: row.to(device) for token, row in own_rows.items()}
    return AdaptedClassifier(base, name, linear.to(device).requires_grad_(False), rows, pad_id)
