"""Sizes by arithmetic against the built model, and the head of a GGUF file."""

from __future__ import annotations

import json
import struct

import pytest

from rlef.config import Config, ModelSection, RandomInit
from rlef.errors import UserError
from rlef.planning.shapes import Decoder, UnknownShape, decoder_of, gguf_shape, model_shape, random_shape

SHAPE = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
FAMILIES = [
    ("Llama", {"tie_word_embeddings": True}),
    ("Llama", {"num_key_value_heads": 2, "tie_word_embeddings": False}),
    ("Llama", {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576, "tie_word_embeddings": True}),  # as SmolLM2
    ("Llama", {"attention_bias": True, "mlp_bias": True}),
    ("Qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    ("Qwen2", {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    ("Mistral", {"num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": False}),
    ("Qwen3", {"num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True}),
    ("SmolLM3", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
]


@pytest.mark.parametrize("family,own", FAMILIES, ids=[f"{family}-{number}" for number, (family, _) in enumerate(FAMILIES)])
def test_parameters_are_those_of_the_model_on_the_meta_device(family, own):
    import torch
    import transformers

    config = getattr(transformers, f"{family}Config")(**SHAPE | own | {"num_labels": 1, "pad_token_id": 0})
    decoder = Decoder.of(config.to_dict())
    with torch.device("meta"):
        model = getattr(transformers, f"{family}ForCausalLM")(config)
        classifier = getattr(transformers, f"{family}ForTokenClassification")(config)
    assert decoder.parameters == sum(one.numel() for one in model.parameters())
    assert decoder.classifier == sum(one.numel() for one in classifier.parameters())
    assert decoder.layer == sum(one.numel() for one in model.model.layers[0].parameters())


def test_adapters_are_counted_as_they_are_built():
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = random_shape(RandomInit(vocab_size=300)) | {"num_key_value_heads": 2}
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**shape)), LoraConfig(r=4, target_modules="all-linear"))
    assert Decoder.of(shape).adapter(4) == sum(one.numel() for one in model.parameters() if one.requires_grad)


def gguf(pairs, tensors):
    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs))
    for key, value in pairs.items():
        if isinstance(value, int):
            out += text(key) + struct.pack("<II", 4, value)
        elif isinstance(value, str):
            out += text(key) + struct.pack("<I", 8) + text(value)
        elif isinstance(value[0], float):
            out += text(key) + struct.pack("<IIQ", 9, 6, len(value)) + struct.pack(f"<{len(value)}f", *value)
        else:
            out += text(key) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(text(one) for one in value)
    for name in tensors:
        out += text(name) + struct.pack("<IQQIQ", 2, 8, 8, 0, 0)
    return out


@pytest.mark.parametrize("tensors,tied", [(["token_embd.weight"], True), (["token_embd.weight", "output.weight"], False)])
def test_the_head_of_a_gguf_file(tmp_path, tensors, tied):
    pairs = {
        "general.architecture": "llama", "llama.embedding_length": 64, "llama.block_count": 2, "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2, "llama.feed_forward_length": 96, "tokenizer.ggml.scores": [0.5, 1.5],
        "tokenizer.ggml.tokens": ["a", "bc", "d"],
    }  # fmt: skip
    (tmp_path / "m.gguf").write_bytes(gguf(pairs, tensors))
    assert model_shape(ModelSection(path=str(tmp_path), gguf_file="m.gguf")) == {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96,
        "vocab_size": 3, "tie_word_embeddings": tied, "model_type": "llama",
    }  # fmt: skip
    (tmp_path / "n.gguf").write_bytes(b"something else")
    assert gguf_shape(tmp_path / "n.gguf") is None


def test_a_hub_id_is_read_from_the_cache_and_else_called_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    config = Config(model=ModelSection(path="someone/model"), stages={"sft": {"kind": "sft"}})  # type: ignore[dict-item]
    with pytest.raises(UnknownShape, match="not on this machine"):
        decoder_of(config)
    folder = tmp_path / "models--someone--model" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(random_shape(RandomInit())))
    assert decoder_of(config) == Decoder.of(random_shape(RandomInit()))


@pytest.mark.parametrize(
    "text,kind,told",
    [
        (json.dumps(SHAPE | {"model_type": "mixtral"}), UnknownShape, "model_type mixtral"),
        (json.dumps({"model_type": "llama", "hidden_size": 8}), UnknownShape, "num_attention_heads"),
        ("[1]", UserError, "not a JSON object"),
        ("{", UserError, "cannot be read"),
    ],
)
def test_a_shape_that_is_not_known_is_never_guessed(tmp_path, text, kind, told):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(kind, match=told):
        decoder_of(Config(model=ModelSection(path=str(tmp_path)), stages={"sft": {"kind": "sft"}}))  # type: ignore[dict-item]
