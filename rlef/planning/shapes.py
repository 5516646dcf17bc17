"""Sizes of decoders by arithmetic on a config.json or the head of a GGUF file: no weights, no torch."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rlef.config import Config, ModelSection, RandomInit, resolve_path
from rlef.errors import UserError

KNOWN = ("llama", "mistral", "qwen2", "qwen3", "smollm3")  # model_type of decoders with the layer that Decoder describes


@dataclass(frozen=True)
class Decoder:
    """A Llama-like decoder: RMS norms, a gated MLP, heads that may share keys and values. All in numbers of elements."""

    hidden: int
    layers: int
    query: int  # heads x size of a head
    key_value: int  # the same of keys, and of values
    heads: int
    intermediate: int
    vocabulary: int
    tied: bool
    extra: int = 0  # of a layer: biases, and norms of queries and keys

    @classmethod
    def of(cls, shape: Mapping[str, Any]) -> Decoder:
        """From the keys of a config.json. Raises ValueError for another architecture, KeyError for a missing key."""
        family = shape.get("model_type", "llama")
        if family not in KNOWN:
            raise ValueError(f"model_type {family}; known: {', '.join(KNOWN)}")
        hidden, heads, intermediate = shape["hidden_size"], shape["num_attention_heads"], shape["intermediate_size"]
        head = shape.get("head_dim") or hidden // heads
        query, key_value = heads * head, (shape.get("num_key_value_heads") or heads) * head
        extra = 0
        if family == "qwen2":
            extra += query + 2 * key_value
        elif shape.get("attention_bias"):
            extra += query + 2 * key_value + hidden
        if family == "qwen3":
            extra += 2 * head
        if shape.get("mlp_bias"):
            extra += 2 * intermediate + hidden
        tied = bool(shape.get("tie_word_embeddings", family == "smollm3"))
        return cls(hidden, shape["num_hidden_layers"], query, key_value, heads, intermediate, shape["vocab_size"], tied, extra)

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        return self.linear + 2 * self.hidden + self.extra

    @property
    def linear(self) -> int:
        """Weights of one layer that are matrices."""
        return self.hidden * (2 * self.query + 2 * self.key_value) + 3 * self.hidden * self.intermediate

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def trunk(self) -> int:
        """Parameters without the LM head, as a classifier on it has them: embedding, layers, last norm."""
        return self.embedding + self.layers * self.layer + self.hidden

    @property
    def parameters(self) -> int:
        """Of the language model."""
        return self.trunk + (0 if self.tied else self.embedding)

    @property
    def classifier(self) -> int:
        """Of trunk, one-label head and its bias: a critic or a reward model."""
        return self.trunk + self.hidden + 1

    def adapter(self, rank: int) -> int:
        """Parameters of a low-rank adapter on all linear layers but the LM head."""
        sides = 2 * (self.hidden + self.query) + 2 * (self.hidden + self.key_value) + 3 * (self.hidden + self.intermediate)
        return self.layers * rank * sides


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
    return None if None in shape.values() else shape | {"model_type": kind, "tie_word_embeddings": "output.weight" not in names}


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


class UnknownShape(UserError):
    """A model whose sizes nobody can tell before it is there, or of an architecture that is not known."""


def decoder_of(config: Config, folder: str | None = None, gguf_file: str | None = None) -> Decoder:
    """Of the config's model, or of another folder. Raises UnknownShape, and UserError where a file cannot be read."""
    section = config.model if folder is None else ModelSection(path=folder, gguf_file=gguf_file)
    try:
        shape = model_shape(section)
        if not isinstance(shape, dict | None):
            raise ValueError("not a JSON object")
    except (ValueError, struct.error) as error:  # JSON and text that are none are ValueErrors
        what = section.gguf_file or "config.json"
        raise UserError(f"model.path: {section.path}: its {what} cannot be read ({error})", fix="download it again") from None
    if shape is None:
        raise UnknownShape(
            f"model: {section.path} is not on this machine: its shape, and so its memory, is unknown before it is downloaded",
            fix="download it, or name a folder with its config.json alone, e.g. model.path=FOLDER",
        )
    try:
        return Decoder.of(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise UnknownShape(
            f"model: {section.path}: its shape is not known ({type(error).__name__}: {error}), so its memory is not estimated"
        ) from None
