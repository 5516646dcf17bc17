"""Kinds of tokenizer, and a saved tiny policy to start reward models from."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CORPUS = ["Ann has 3 pens.\nBen 3+4=7\n#### 7", "naïve café — 数学 😀 \\frac{1}{2}", "How many? So many.\n\nDone."] * 5
ALPHABET = sorted(set("".join(map(chr, range(32, 127))) + "\n" + "ки" + "".join(CORPUS)))


def wrap(core) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>", clean_up_tokenization_spaces=False)


def byte_level(vocab_size: int = 400) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<|pad|>", "<|end|>"], initial_alphabet=alphabet, show_progress=False),
    )
    return wrap(core)


def sentence_piece() -> PreTrainedTokenizerFast:
    """Metaspace pieces with <0xNN> fallback, as Llama 2 has them."""
    tokens = [
        "<|pad|>",
        "<|end|>",
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdefghijklmnopqrstuvwxyzABCDEFGH0123456789.,?+=#",
    ]
    vocab = {token: index for index, token in enumerate(tokens)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return wrap(core)


def merging() -> PreTrainedTokenizerFast:
    """Byte-level with pieces that swallow delimiters: ".\\n\\n" is one token."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [".\n\nSo", "7\n#### 7", ".\n\n"] * 50,
        trainers.BpeTrainer(vocab_size=300, special_tokens=["<|pad|>", "<|end|>"], initial_alphabet=alphabet, show_progress=False),
    )
    return wrap(core)


def unigram() -> PreTrainedTokenizerFast:
    """SentencePiece's other model, with a blank before what begins a text and nowhere else, as newer Llama conversions have it."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<|pad|>", "<|end|>", "<unk>"], unk_token="<unk>", initial_alphabet=ALPHABET, show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    return wrap(core)


def characters() -> PreTrainedTokenizerFast:
    """One token a character."""
    tokens = ["<|pad|>", "<|end|>", "<unk>", *ALPHABET]
    core = Tokenizer(models.BPE(vocab={token: place for place, token in enumerate(tokens)}, merges=[], unk_token="<unk>"))
    core.decoder = decoders.Fuse()
    return wrap(core)


@pytest.fixture(scope="session", params=["byte_level", "sentence_piece", "merging", "characters"])
def any_tokenizer(request):
    return {"byte_level": byte_level, "sentence_piece": sentence_piece, "merging": merging, "characters": characters}[request.param]()


def policy(tokenizer, seed=0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=96,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory):
    tokenizer = byte_level()
    folder = tmp_path_factory.mktemp("policy")
    policy(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pad_is_eos_folder(tmp_path_factory):
    tokenizer = byte_level()
    tokenizer.pad_token = tokenizer.eos_token
    folder = tmp_path_factory.mktemp("pad_is_eos")
    model = policy(tokenizer)
    model.config.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
