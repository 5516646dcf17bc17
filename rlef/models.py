"""Loads, makes and saves policies and their tokenizers, always in the form that plain `from_pretrained` reads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from rlef.config import ModelSection, RandomInit
from rlef.config import resolve_path as resolve_path
from rlef.errors import UserError
from rlef.prompts import question_messages

# A bar for every load of a small model drowns the run's own output.
transformers_logging.disable_progress_bar()

# transformers annotates ids as unions (int | list[int] | str | ...) that no caller can use.
Tokenizer: TypeAlias = Any

PAD, END, USER, ASSISTANT, STEP = SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|step|>")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "<|assistant|>{%- generation -%}{{ message['content'] }}<|end|>{%- endgeneration -%}"
    "{%- else -%}<|user|>{{ message['content'] }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def pick_device(name: str) -> torch.device:
    """`auto` takes the GPU of this rank where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"launch.device: {name}, but torch finds no GPU", fix="set launch.device: auto, or install a CUDA build of torch")
    return torch.device(name)


def model_folder(folder: str | Path) -> Path:
    """A stage's folder holds its model in `model/`; an outside folder is the model itself."""
    folder = Path(folder)
    return folder / "model" if (folder / "model").is_dir() else folder


def not_loadable(folder: str | Path, error: Exception) -> UserError:
    return UserError(f"{folder}: no model or tokenizer could be loaded ({error})", fix="give a folder or hub id that from_pretrained loads")


def load_tokenizer(folder: str | Path, *, gguf_file: str | None = None, trust_remote_code: bool = False) -> Tokenizer:
    """Load a tokenizer with a pad token. Raises UserError where none can be loaded."""
    extra: dict[str, Any] = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code, **extra)
        tokenizer.encode("1")  # some damages show at the first use
    except Exception as error:  # transformers raises a dozen kinds over a damaged file, each with its own words
        raise not_loadable(folder, error) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_policy(
    folder: str | Path,
    *,
    dtype: str = "float32",
    gguf_file: str | None = None,
    trust_remote_code: bool = False,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """Load a causal language model, in eval mode, without dropout and without the checkpoint's sampling habits.

    Dropout is switched off in the config BEFORE construction: attention modules copy it, so a later change has no effect.
    The checkpoint's generation_config keeps only its stop ids: Qwen and others ship repetition penalties and top-k there.
    """
    extra: dict[str, Any] = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code, **extra)
        for key in [name for name in config.to_dict() if name.endswith(("dropout", "pdrop"))]:
            setattr(config, key, 0.0)
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), config=config, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code, **extra
        )
    except Exception as error:  # transformers raises a dozen kinds over a damaged file, each with its own words
        raise not_loadable(folder, error) from error
    if device is not None:
        torch.nn.Module.to(model, device)  # transformers' own wrapper hides its signature from type checkers
    return _plain(model)


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    # A model loaded from GGUF has plain float weights, yet carries its quantiser, for which trainers and savers refuse it.
    for owner, trace in ((model, "hf_quantizer"), (model, "is_quantized"), (model.config, "quantization_config")):
        if getattr(owner, trace, None) is not None:
            delattr(owner, trace)
    eos = model.generation_config.eos_token_id if model.generation_config is not None else None
    model.generation_config = GenerationConfig(eos_token_id=eos if eos is not None else model.config.eos_token_id)
    model.config.use_cache = True
    # nn.Embedding zeroes the gradient of its padding row: where pad == eos, EOS in a prompt would never learn.
    embeddings = model.get_input_embeddings()
    if isinstance(embeddings, torch.nn.Embedding):
        embeddings.padding_idx = None
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.eval()
    return model


def random_policy(spec: RandomInit, texts: Iterable[str], *, seed: int) -> tuple[PreTrainedModel, Tokenizer]:
    """A small Llama from random initialisation and a byte-level BPE tokenizer trained on `texts`, every digit its own token."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT, STEP],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=spec.hidden_size,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.heads,
        intermediate_size=spec.intermediate_size,
        max_position_embeddings=spec.max_positions,
        tie_word_embeddings=True,
        # The usual 0.02 is made for wide models: a narrow one learns twice as slowly from it (this rule: arXiv 1910.05895, 2.2).
        initializer_range=math.sqrt(2 / (5 * spec.hidden_size)),
        attention_dropout=0.0,
        bos_token_id=None,
        eos_token_id=core.token_to_id(END),
        pad_token_id=core.token_to_id(PAD),
    )
    return _plain(LlamaForCausalLM(config)), tokenizer


def save_policy(model: PreTrainedModel, tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write weights, config and tokenizer where `from_pretrained` and vLLM find them."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def prompt_ids(tokenizer: Tokenizer, question: str, model: ModelSection) -> list[int]:
    """The question as the policy sees it: chat template with the opening of the answer, or question and newline without one."""
    messages = question_messages(question, model)
    if tokenizer.chat_template:
        try:
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # Jinja's errors, and whatever the template raises
            raise UserError(f"{tokenizer.name_or_path}: its chat template does not work ({error})", fix="mend the template") from error
    else:
        text = "\n".join(message["content"] for message in messages) + "\n"
    return tokenizer.encode(str(text), add_special_tokens=False)


def prefix_ids(tokenizer: Tokenizer, prompt: Sequence[int], steps: Sequence[str], model: ModelSection) -> tuple[int, ...]:
    """`prompt` and the first steps of an answer, each closed, for the policy to go on from."""
    text = "".join(step + model.step_delimiter for step in steps)
    return (*prompt, *tokenizer.encode(text, add_special_tokens=False))


def stop_ids(tokenizer: Tokenizer, model: PreTrainedModel) -> tuple[int, ...]:
    """Every id that ends an answer: the tokenizer's EOS and the model's own list."""
    listed = model.generation_config.eos_token_id if model.generation_config is not None else None
    several = listed if isinstance(listed, list) else [listed]
    try:
        return tuple(sorted({int(token) for token in [tokenizer.eos_token_id, *several] if token is not None}))
    except (TypeError, ValueError):
        raise UserError(f"{model.name_or_path}: eos_token_id {listed!r} names no token", fix="mend its generation_config.json") from None


def decode(tokenizer: Tokenizer, tokens: Sequence[int], stops: Sequence[int]) -> str:
    """The text of an answer, without its stop token."""
    body = tokens[:-1] if tokens and tokens[-1] in stops else tokens
    return str(tokenizer.decode(list(body), skip_special_tokens=True, clean_up_tokenization_spaces=False))
