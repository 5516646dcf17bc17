"""Bytes on one device by arithmetic: model states under ZeRO as DeepSpeed holds them, activations, logits, caches. No torch.

Decimal units, as in the ZeRO paper (arXiv 1910.02054): a GB is 10^9 bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlef.planning.shapes import Decoder

GB = 1e9
PARTS = ("weights", "gradients", "optimiser", "buffers", "frozen", "activations", "logits", "kv_cache", "vllm")
Parts = dict[str, float]  # part -> bytes
Trainer = Literal["engine", "trl", "reward_models"]  # PPO's engines; TRL's trainers; the reward models' subclass of transformers' Trainer
Products = Literal["float32", "bfloat16", "autocast"]  # what is multiplied: the weights as they are, or copies of fp32 ones in bfloat16
STATES = ("weights", "gradients", "optimiser")


# ---------------------------------------------------------------------------------------------- model states


@dataclass(frozen=True)
class Precision:
    """Bytes a trained parameter. The defaults are the ZeRO paper's: half-precision weights and gradients; Adam's two moments and the fp32
    copy that it steps on."""

    weight: float = 2
    gradient: float = 2
    optimiser: float = 12


def model_states(parameters: float, precision: Precision, stage: int, ranks: int) -> Parts:
    """Of so many trained parameters on one of `ranks` devices: ZeRO-1 divides the optimiser's part, 2 gradients, 3 the weights too."""
    return {
        "weights": parameters * precision.weight / (ranks if stage >= 3 else 1),
        "gradients": parameters * precision.gradient / (ranks if stage >= 2 else 1),
        "optimiser": parameters * precision.optimiser / (ranks if stage >= 1 else 1),
    }


@dataclass(frozen=True)
class Zero:
    """A DeepSpeed configuration, as far as memory and time hang on it. Defaults are DeepSpeed 0.19's."""

    stage: int = 0
    offload_optimizer: bool = False  # its states and the gradients live on the host
    offload_weights: bool = False
    bucket: float = 5e8  # elements reduced at once, for which room is kept while gradients come
    overlap: bool = False  # a second bucket
    live: float = 1e9  # ZeRO-3: gathered elements that may be there at once
    prefetch: float = 5e7  # ZeRO-3: elements gathered ahead
    group: float = 1e9  # ZeRO-3: elements that the optimiser steps on at once

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Zero:
        """From the JSON's keys; "auto" stands for DeepSpeed's default."""
        found = {key: value for key, value in settings.get("zero_optimization", {}).items() if value != "auto"}
        offloaded = {key: found.get(f"offload_{key}", {}).get("device", "none") != "none" for key in ("optimizer", "param")}
        stage = int(found.get("stage", 0))
        if stage not in range(4):
            raise ValueError(f"zero_optimization.stage: {stage}")
        return cls(
            stage=stage,
            offload_optimizer=offloaded["optimizer"],
            offload_weights=offloaded["param"],
            bucket=float(found.get("reduce_bucket_size", cls.bucket)),
            overlap=bool(found.get("overlap_comm", False)),
            live=float(found.get("stage3_max_live_parameters", cls.live)),
            prefetch=float(found.get("stage3_prefetch_bucket_size", cls.prefetch)),
            group=float(found.get("sub_group_size", cls.group)),
        )

    @classmethod
    def read(cls, file: str | None) -> Zero | None:
        """None: plain torch."""
        return None if file is None else cls.of(json.loads(Path(file).read_text(encoding="utf-8")))


def precision_of(trainer: Trainer, dtype: str, bf16: bool, zero: Zero | None) -> Precision:
    """What a trainer holds of a trained parameter. `dtype`: of the loaded weights; `bf16`: products in it, wanted by the stage.

    PPO's engines keep fp32 gradients and copies of half-precision weights, under ZeRO-1 the gradients in half precision too. TRL's
    trainers step on the loaded weights themselves. ZeRO makes an fp32 copy even of fp32 weights. The reward models are loaded in fp32, and
    DeepSpeed's bf16 mode halves them.
    """
    stage = zero.stage if zero is not None else 0
    copied = 12 if stage else 8
    if trainer == "engine":
        return Precision(2, 6 if stage == 1 else 4, 12) if dtype == "bfloat16" else Precision(4, 4, copied)
    if trainer == "trl":
        if dtype == "float32":
            return Precision(4, 4, copied)
        return Precision(2, 4, 12) if stage else Precision(2, 2, 4)
    return Precision(2, 2, 12) if bf16 and zero is not None else Precision(4, 4, copied)


def trained(parameters: float, precision: Precision, zero: Zero | None, ranks: int) -> Parts:
    """Model states on one device, less what is offloaded."""
    parts = model_states(parameters, precision, zero.stage if zero is not None else 0, ranks)
    if zero is not None and zero.offload_optimizer:
        parts |= {"gradients": 0.0, "optimiser": 0.0}
    if zero is not None and zero.offload_weights:
        parts["weights"] = 0.0
    return parts


def on_host(parameters: float, precision: Precision, zero: Zero | None, ranks: int) -> float:
    """Bytes of what is offloaded, of one rank: the optimiser's part, gradients in fp32, and weights."""
    if zero is None or not zero.offload_optimizer:
        return 0.0
    return parameters / ranks * (precision.optimiser + 4 + (precision.weight if zero.offload_weights else 0))


def while_reduced(parameters: float, precision: Precision, zero: Zero | None, ranks: int, trainer: Trainer) -> float:
    """Bytes beside the model states while gradients come: DeepSpeed's buckets, ZeRO-3's gathered weights, DDP's buckets."""
    if zero is None:
        return parameters * precision.gradient if ranks > 1 and trainer != "engine" else 0.0
    width = 4 if trainer == "trl" else precision.weight  # transformers' Trainer without bf16 has them in fp32 even for bfloat16 weights
    buckets = zero.bucket * width * (2 if zero.overlap and zero.stage < 3 else 1) if zero.stage else 0.0
    gathered = precision.weight * (min(zero.live, parameters) + min(zero.prefetch, parameters)) if zero.stage == 3 else 0.0
    return buckets + gathered


def while_stepping(parameters: float, precision: Precision, zero: Zero | None, ranks: int, trainer: Trainer) -> float:
    """Bytes beside the model states while the optimiser steps and no activations are left: a flat copy of the gradients (plain torch over
    several ranks: two), and Adam's square root of its second moments."""
    if zero is not None and zero.offload_optimizer:
        return 0.0
    if zero is None:
        flat = 2 * 4 * parameters if ranks > 1 and trainer == "engine" else 0.0
        return flat + parameters * min(4, precision.optimiser / 2)
    if not zero.stage:
        return 4 * (parameters + min(zero.bucket, parameters))
    share = parameters / ranks
    return 8 * (min(share, zero.group) if zero.stage == 3 else share)


# ---------------------------------------------------------------------------------------------- activations


def layer_activations(decoder: Decoder, products: Products) -> float:
    """Bytes a token that one layer keeps for its backward pass, as transformers' Llama computes it with fused attention: of both norms
    the input in fp32, the normed states and the linear layers' input; queries, keys, values and attention's output; four tensors of the
    MLP. Under autocast each linear layer keeps a bfloat16 copy of its own input."""
    norms = {"float32": 2 * 12, "bfloat16": 2 * 8, "autocast": 2 * 8 + 5 * 2}[products] * decoder.hidden
    width = 4 if products == "float32" else 2
    inner = width * (2 * decoder.query + 2 * decoder.key_value + 4 * decoder.intermediate)
    return norms + inner + 4 * decoder.heads + 8


def saved_activations(decoder: Decoder, tokens: float, products: Products, *, checkpointing: bool) -> float:
    """Bytes that a forward pass through the trunk keeps: with checkpointing the input of each layer alone. Weights in bfloat16 that
    autocast makes are among them."""
    stream = 2 if products == "bfloat16" else 4
    last_norm = {"float32": 8, "bfloat16": 6, "autocast": 8}[products] * decoder.hidden
    copies = 2 * decoder.linear * decoder.layers if products == "autocast" and not checkpointing else 0
    a_layer = stream * decoder.hidden if checkpointing else layer_activations(decoder, products)
    return tokens * (decoder.layers * a_layer + last_norm + 8) + copies


def backward_peak(decoder: Decoder, tokens: float, products: Products, *, checkpointing: bool) -> float:
    """Bytes of activations at the most: with checkpointing one layer is there whole while it is computed again. Gradients of activations
    come to two of the MLP's tensors."""
    again = 0.0
    if checkpointing:
        again = tokens * layer_activations(decoder, products) + (2 * decoder.linear if products == "autocast" else 0)
    gradients = tokens * (4 if products == "float32" else 2) * 2 * decoder.intermediate
    return saved_activations(decoder, tokens, products, checkpointing=checkpointing) + again + gradients


def adapted_inputs(decoder: Decoder, tokens: float, products: Products, *, checkpointing: bool) -> float:
    """Bytes that fp32 adapters keep beside: each linear layer's input once more, in their precision or autocast's."""
    width = {"float32": 0, "bfloat16": 4, "autocast": 2}[products]
    layers = 1 if checkpointing else decoder.layers
    return tokens * layers * width * (5 * decoder.hidden + decoder.query + decoder.intermediate)


def forward_peak(decoder: Decoder, tokens: float, products: Products) -> float:
    """Bytes of a forward pass without gradient, of which one layer is there at a time."""
    width = 2 if products == "bfloat16" else 4
    return tokens * width * max(2 * decoder.hidden + 3 * decoder.intermediate, 3 * decoder.hidden + 3 * decoder.query)


def kept_logits(decoder: Decoder, answer_tokens: float, products: Products) -> float:
    """PPO's: those of answer tokens, which their own gradient overwrites; and the states that they come from."""
    width = 4 if products == "float32" else 2
    copy = 2 * decoder.embedding if products == "autocast" else 0
    return answer_tokens * width * (decoder.vocabulary + decoder.hidden) + copy


def classified(decoder: Decoder, tokens: float, products: Products) -> float:
    """The last states of all tokens, which a critic's and a reward model's head keeps."""
    return tokens * decoder.hidden * (4 if products == "float32" else 2)


def tiled_logits(decoder: Decoder, tokens: float, width: int) -> float:
    """TRL's: a tile of 4,096 tokens by 32,768 words, and the head's gradient in fp32."""
    return min(tokens, 4096) * min(decoder.vocabulary, 32768) * (width + 4) + 4 * decoder.embedding


# ---------------------------------------------------------------------------------------------- sampling


def kv_cache(decoder: Decoder, rows: float, tokens: float, width: int) -> float:
    """Bytes of keys and values of `rows` sequences, with the 64 tokens of spare room that the sampler takes."""
    return rows * (tokens + 64) * 2 * decoder.layers * decoder.key_value * width


def drawn_logits(decoder: Decoder, rows: float, width: int) -> float:
    """Bytes of what a token is drawn from: logits, their log-softmax in fp32, probabilities and their sums in fp64."""
    return rows * decoder.vocabulary * (width + 4 + 8 + 8)
