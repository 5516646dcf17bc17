"""Model sizes by arithmetic on the config alone: parameters, and the bytes that each stage's models take on one device."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from rlef.config import AnyStage, Config, ModelSection, PpoStage, RandomInit, resolve_path
from rlef.errors import UserError

GIB = 2**30
# Models of a stage: how many are trained, how many are only read.
MODELS = {
    "sft": (1, 0), "rft": (1, 2), "irm": (1, 0), "prm": (1, 0), "orm": (1, 0), "label": (0, 1), "dpo": (1, 3), "grpo": (1, 3),
    "ppo": (2, 3), "ppo of adapters": (0, 3), "ppo of one trunk": (1, 3), "evaluate": (0, 2),
}  # fmt: skip
SHARDED = ("sft", "rft", "irm", "prm", "orm", "dpo", "grpo", "ppo", "ppo of one trunk")


def decoder_parameters(shape: Mapping[str, Any]) -> int:
    """Parameters of a Llama-like decoder (gated MLP, no biases) from the keys of a config.json."""
    hidden, layers, vocabulary = shape["hidden_size"], shape["num_hidden_layers"], shape["vocab_size"]
    heads = shape["num_attention_heads"]
    head = shape.get("head_dim") or hidden // heads
    key_value = (shape.get("num_key_value_heads") or heads) * head
    layer = hidden * (2 * heads * head + 2 * key_value) + 3 * hidden * shape["intermediate_size"] + 2 * hidden
    return vocabulary * hidden * (1 if shape.get("tie_word_embeddings") else 2) + layers * layer + hidden


def adapter_parameters(shape: Mapping[str, Any], rank: int) -> int:
    """Parameters of a low-rank adapter on all linear layers of such a decoder but the LM head."""
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    head = shape.get("head_dim") or hidden // heads
    key_value = (shape.get("num_key_value_heads") or heads) * head
    sides = 2 * (hidden + heads * head) + 2 * (hidden + key_value) + 3 * (hidden + shape["intermediate_size"])
    return shape["num_hidden_layers"] * rank * sides


def random_shape(spec: RandomInit) -> dict[str, Any]:
    return {
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "intermediate_size": spec.intermediate_size,
        "vocab_size": spec.vocab_size,
        "tie_word_embeddings": True,
    }


def model_shape(model: ModelSection) -> dict[str, Any] | None:
    """From the random spec, config.json, the head of a GGUF file, or the hub's local cache. None for a hub id that is not cached."""
    if model.random is not None:
        return random_shape(model.random)
    folder = Path(resolve_path(str(model.path)))
    if model.gguf_file is not None and (folder / model.gguf_file).is_file():
        return gguf_shape(folder / model.gguf_file)
    files = [folder / "config.json", *_cached(str(model.path))]
    found = next((file for file in files if file.is_file()), None)
    return json.loads(found.read_text(encoding="utf-8")) if found else None


def _cached(hub_id: str) -> list[Path]:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return sorted((hub / f"models--{hub_id.replace('/', '--')}").glob("snapshots/*/config.json"))


# ---------------------------------------------------------------------------------------------- GGUF

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def gguf_shape(file: Path) -> dict[str, Any] | None:
    """The keys of a config.json from the head of a GGUF file (versions 2 and 3); None where it does not hold them."""
    with file.open("rb") as handle:
        if handle.read(4) != b"GGUF" or _read(handle, "I") not in (2, 3):
            return None
        tensors, pairs = _read(handle, "Q"), _read(handle, "Q")
        values = {_text(handle): _value(handle, _read(handle, "I")) for _ in range(pairs)}
        names = [_skip_tensor(handle) for _ in range(tensors)]
    kind = values.get("general.architecture")
    wanted = {
        "hidden_size": "embedding_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "intermediate_size": "feed_forward_length",
    }
    shape = {key: values.get(f"{kind}.{name}") for key, name in wanted.items()}
    shape["vocab_size"] = values.get("tokenizer.ggml.tokens")
    return None if None in shape.values() else shape | {"tie_word_embeddings": "output.weight" not in names}


def _read(handle: BinaryIO, kind: str) -> Any:
    return struct.unpack("<" + kind, handle.read(struct.calcsize("<" + kind)))[0]


def _text(handle: BinaryIO) -> str:
    return handle.read(_read(handle, "Q")).decode("utf-8", errors="replace")


def _value(handle: BinaryIO, kind: int) -> Any:
    """A scalar or text; an array stands as its length."""
    if kind == _STRING:
        return _text(handle)
    if kind != _ARRAY:
        return _read(handle, _SCALARS[kind])
    inner, length = _read(handle, "I"), _read(handle, "Q")
    if inner in _SCALARS:
        handle.seek(length * struct.calcsize("<" + _SCALARS[inner]), os.SEEK_CUR)
    else:
        for _ in range(length):
            _value(handle, inner)
    return length


def _skip_tensor(handle: BinaryIO) -> str:
    name = _text(handle)
    handle.seek(8 * _read(handle, "I") + 12, os.SEEK_CUR)  # sizes, type, offset
    return name


# ---------------------------------------------------------------------------------------------- memory


def zero_stage(config: Config) -> int:
    """0 without DeepSpeed."""
    if config.launch.deepspeed is None:
        return 0
    settings = json.loads(Path(config.launch.deepspeed).read_text(encoding="utf-8"))
    return int(settings.get("zero_optimization", {}).get("stage", 0))


def stage_bytes(parameters: int, kind: str, *, weight_bytes: int = 4, zero: int = 0, processes: int = 1) -> float:
    """Model states of a stage on one device. A trained parameter: weight, gradient, two fp32 Adam moments, and an fp32 copy under
    DeepSpeed in half precision; ZeRO-1 divides the optimiser's part by the processes, ZeRO-2 the gradients too, ZeRO-3 the weights
    too (frozen models stay whole). Activations, logits and the key-value cache come on top.
    """
    trained, frozen = MODELS.get(kind, (0, 0))
    if kind not in SHARDED:
        zero, processes = 0, 1
    optimizer = 8 + (4 if weight_bytes < 4 and zero else 0)
    states = (
        weight_bytes / (processes if zero >= 3 else 1)
        + weight_bytes / (processes if zero >= 2 else 1)
        + optimizer / (processes if zero >= 1 else 1)
    )
    return parameters * (trained * states + frozen * weight_bytes)


def _stage_size(stage: AnyStage, shape: Mapping[str, Any], **how: Any) -> float:
    """Of a stage as it is set: PPO's nets may share their weights."""
    parameters = decoder_parameters(shape)
    if isinstance(stage, PpoStage) and stage.lora is not None:
        return stage_bytes(parameters, "ppo of adapters", **how) + 2 * 16 * adapter_parameters(shape, stage.lora.rank)
    shared = isinstance(stage, PpoStage) and stage.shared_trunk
    return stage_bytes(parameters, "ppo of one trunk" if shared else stage.kind, **how)


def describe(config: Config) -> list[str]:
    """Lines for `rlef check`; none for a run without a model."""
    if config.model.path is None and config.model.random is None:
        return []
    try:
        shape = model_shape(config.model)
        if not isinstance(shape, dict | None):
            raise ValueError("not a JSON object")
    except (ValueError, struct.error) as error:  # JSON and text that are none are ValueErrors
        what = config.model.gguf_file or "config.json"
        raise UserError(f"model.path: {config.model.path}: its {what} cannot be read ({error})", fix="download it again") from None
    if shape is None:
        return [f"model: {config.model.path} is not on this machine: its shape, and so its memory, is unknown before it is downloaded"]
    try:
        parameters = decoder_parameters(shape)
    except (KeyError, TypeError) as error:
        return [f"model: {config.model.path}: its shape is not known ({type(error).__name__}: {error}), so its memory is not estimated"]
    zero, processes = zero_stage(config), config.launch.processes
    width = 4 if config.model.dtype == "float32" else 2
    lines = [f"model: {parameters / 1e6:.2f} M parameters" + (" (vocabulary at its upper limit)" if config.model.random else "")]
    sizes = {
        name: _stage_size(stage, shape, weight_bytes=width, zero=zero, processes=processes)
        for name, stage in config.stages.items()
        if stage.kind in MODELS
    }
    if sizes:
        how = f"{config.model.dtype}, " + (f"ZeRO-{zero} over {processes} processes" if zero else "unsharded")
        listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in sizes.items())
        lines.append(f"memory a device for weights, gradients and optimiser ({how}), GiB: {listed}")
        lines.append(
            f"  the largest is {max(sizes, key=lambda name: sizes[name])}; activations, logits and the key-value cache come on top"
        )
    return lines
