"""Model sizes by arithmetic on the config alone: parameters, and the bytes that each stage's models take on one device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlef.config import Config, RandomInit

GIB = 2**30


def decoder_parameters(shape: dict[str, Any]) -> int:
    """Parameters of a Llama-like decoder (gated MLP, no biases) from the keys of a config.json."""
    hidden, layers, vocabulary = shape["hidden_size"], shape["num_hidden_layers"], shape["vocab_size"]
    heads = shape["num_attention_heads"]
    head = shape.get("head_dim") or hidden // heads
    key_value = (shape.get("num_key_value_heads") or heads) * head
    layer = hidden * (2 * heads * head + 2 * key_value) + 3 * hidden * shape["intermediate_size"] + 2 * hidden
    return vocabulary * hidden * (1 if shape.get("tie_word_embeddings") else 2) + layers * layer + hidden


def random_shape(spec: RandomInit) -> dict[str, Any]:
    return {
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "intermediate_size": spec.intermediate_size,
        "vocab_size": spec.vocab_size,
        "tie_word_embeddings": True,
    }


def model_shape(config: Config) -> dict[str, Any] | None:
    """None for a hub id or a GGUF file: their shapes are not known without a download or a look inside."""
    if config.model.random is not None:
        return random_shape(config.model.random)
    file = Path(config.model.path or "") / "config.json"
    return json.loads(file.read_text()) if file.is_file() else None


def stage_bytes(parameters: int, kind: str, *, has_irm: bool = True) -> int:
    """Model states of a stage on one device in fp32 without sharding: 16 bytes a trained parameter (weights, gradients, two Adam
    moments), 4 a frozen one. Activations, logits and the key-value cache come on top."""
    trained, frozen = {
        "sft": (1, 0), "rft": (1, 1 + has_irm), "irm": (1, 0), "prm": (1, 0), "label": (0, 1),
        "dpo": (1, 1), "ppo": (2, 2 + has_irm), "evaluate": (0, 2),
    }.get(kind, (0, 0))  # fmt: skip
    return parameters * (16 * trained + 4 * frozen)


def describe(config: Config) -> list[str]:
    """Lines for `rlef check`."""
    shape = model_shape(config)
    if shape is None:
        return [f"model: {config.model.path}: not a local folder with a config.json, so its memory is not known before it is loaded"]
    parameters = decoder_parameters(shape)
    lines = [f"model: {parameters / 1e6:.2f} M parameters" + (" (vocabulary at its upper limit)" if config.model.random else "")]
    sizes = {name: stage_bytes(parameters, stage.kind) for name, stage in config.stages.items()}
    shown = {name: size for name, size in sizes.items() if size}
    if shown:
        largest = max(shown, key=lambda name: shown[name])
        listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in shown.items())
        lines.append(f"model states on one device, fp32, unsharded, GiB: {listed}; the largest is {largest}")
    return lines
