"""Sizes by arithmetic against the built model, and the head of a GGUF file."""

from __future__ import annotations

import json
import struct

import pytest

from rlef.config import Config, ModelSection, RandomInit
from rlef.shapes import adapter_parameters, decoder_parameters, describe, gguf_shape, model_shape, random_shape, stage_bytes


def test_parameters_are_those_of_the_built_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    for tied, key_value in ((True, 4), (False, 2)):
        shape = random_shape(RandomInit(vocab_size=300)) | {"tie_word_embeddings": tied, "num_key_value_heads": key_value}
        model = LlamaForCausalLM(LlamaConfig(**shape))
        assert decoder_parameters(shape) == sum(one.numel() for one in model.parameters())


def test_adapters_are_counted_as_they_are_built():
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = random_shape(RandomInit(vocab_size=300)) | {"num_key_value_heads": 2}
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**shape)), LoraConfig(r=4, target_modules="all-linear"))
    assert adapter_parameters(shape, 4) == sum(one.numel() for one in model.parameters() if one.requires_grad)


def test_layouts_of_ppo_hold_fewer_models():
    sizes = []
    for settings in ({}, {"shared_trunk": True}, {"lora": {"rank": 4}}):
        config = Config.model_validate({"model": {"random": {}}, "stages": {"ppo": settings | {"kind": "ppo"}}})
        sizes.append(float(describe(config)[1].split()[-1]))
    parameters, adapter = decoder_parameters(random_shape(RandomInit())), adapter_parameters(random_shape(RandomInit()), 4)
    expected = [2 * 16 + 3 * 4, 16 + 3 * 4, 3 * 4]
    assert sizes == [round((one * parameters + (32 * adapter if one == 12 else 0)) / 2**30, 2) for one in expected]


def test_zero_divides_what_it_shards():
    million = 10**6
    assert stage_bytes(million, "sft") == 16 * million
    assert stage_bytes(million, "sft", zero=1, processes=4) == (8 + 2) * million
    assert stage_bytes(million, "sft", zero=2, processes=4) == (4 + 1 + 2) * million
    assert stage_bytes(million, "sft", weight_bytes=2, zero=3, processes=8) == 2 * million
    assert stage_bytes(million, "evaluate", zero=3, processes=8) == 8 * million


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
        "vocab_size": 3, "tie_word_embeddings": tied,
    }  # fmt: skip
    (tmp_path / "n.gguf").write_bytes(b"something else")
    assert gguf_shape(tmp_path / "n.gguf") is None


def test_a_hub_id_is_read_from_the_cache_and_else_called_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    config = Config(model=ModelSection(path="someone/model"), stages={"sft": {"kind": "sft"}})  # type: ignore[dict-item]
    assert "unknown" in describe(config)[0]
    folder = tmp_path / "models--someone--model" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(random_shape(RandomInit())))
    assert "M parameters" in describe(config)[0]
