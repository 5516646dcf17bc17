"""Builds both reward models from a policy's trunk, in forms that plain `from_pretrained` loads with equal scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from reward_models.errors import UserError
from reward_models.nearest import meant_path

# transformers annotates ids as unions (int | list[int] | str | ...) that no caller can use.
Tokenizer: TypeAlias = Any


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Raises UserError where `folder` holds no tokenizer."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        tokenizer.encode("1")  # some damages show at the first use
        return tokenizer
    except Exception as error:  # transformers raises a dozen kinds over a damaged file, each with its own words
        raise UserError(f"{folder}: no tokenizer could be loaded ({error})", fix="give a folder or hub id with a tokenizer") from error


def build(kind: str, init: str | Path, *, separator: str | None = None) -> tuple[PreTrainedModel, Tokenizer]:
    """A one-label model on the trunk of `init` and its tokenizer. kind: "instruction" (sequence) or "process" (token).

    The pad token is made distinct from EOS: a sequence classifier reads the last id that is not pad, so with pad == EOS it would read
    the token before EOS. The separator is added where the tokenizer lacks it; new embeddings start at the mean of the old ones.
    """
    tokenizer = load_tokenizer(init)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        spare = [token for token in (tokenizer.unk_token, tokenizer.bos_token) if token and token != tokenizer.eos_token]
        tokenizer.add_special_tokens({"pad_token": spare[0] if spare else "<|pad|>"})
    if separator is not None and tokenizer.convert_tokens_to_ids(separator) in (None, tokenizer.unk_token_id):
        tokenizer.add_special_tokens({"additional_special_tokens": [separator]}, replace_extra_special_tokens=False)
    auto = AutoModelForSequenceClassification if kind == "instruction" else AutoModelForTokenClassification
    model = load(auto, init)
    embeddings: Any = model.get_input_embeddings()
    old = embeddings.weight.shape[0]
    if len(tokenizer) > old:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        embeddings = model.get_input_embeddings()
        with torch.no_grad():
            embeddings.weight[old:] = embeddings.weight[:old].mean(0)
    # nn.Embedding zeroes the gradient of its padding row: where the policy pads with EOS, the row of EOS would never learn.
    embeddings.padding_idx = None
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    with torch.no_grad():
        for parameter in label_head(model)[1].parameters():
            parameter.normal_(std=1 / (model.config.hidden_size + 1)) if parameter.dim() > 1 else parameter.zero_()
    return model, tokenizer


def label_head(model: PreTrainedModel) -> tuple[str, nn.Linear]:
    """The layer that makes the labels' logits, and its name: `score` in most families, `classifier` in others."""
    found = [
        (name, child) for name, child in model.named_children() if isinstance(child, nn.Linear) and child.out_features == model.num_labels
    ]
    if len(found) != 1:
        raise UserError(
            f"{type(model).__name__}: {len(found)} layers with an output for each of {model.num_labels} labels",
            fix="take a model family whose classifiers end in one linear layer",
        )
    return found[0]


def language_head(init: str | Path) -> torch.Tensor:
    """(V, H) weights of the LM head of a policy. Raises UserError where `init` has none."""
    try:
        head: Any = AutoModelForCausalLM.from_pretrained(str(init), dtype=torch.float32).get_output_embeddings()
    except Exception as error:  # transformers raises a dozen kinds over a damaged file, each with its own words
        raise UserError(f"{init}: no causal language model ({error})", fix="start from a policy, or set language_weight: 0") from error
    return head.weight.detach()


def load(auto: Any, folder: str | Path, device: str | torch.device = "cpu", *, labels: int = 1, trained: bool = False) -> PreTrainedModel:
    """from_pretrained in fp32, without dropout (token classification heads default to 0.1). `trained`: all weights must be in `folder`,
    the head's too, where else transformers would draw them."""
    try:
        config = AutoConfig.from_pretrained(str(folder))
        config.num_labels = labels
        for key in [name for name in config.to_dict() if name.endswith(("dropout", "pdrop"))]:
            setattr(config, key, 0.0)
        config.classifier_dropout = 0.0
        model, info = auto.from_pretrained(str(folder), config=config, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # transformers raises a dozen kinds over a damaged file, each with its own words
        raise UserError(
            f"{folder}: no model could be loaded{meant_path(folder)} ({error})", fix="give a folder or hub id that from_pretrained loads"
        ) from error
    if trained and info["missing_keys"]:
        raise UserError(
            f"{folder}: has no weights for {', '.join(sorted(info['missing_keys'])[:3])}", fix="give the folder of a trained reward model"
        )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    nn.Module.to(model, device)  # transformers' own wrapper hides its signature from type checkers
    return model.eval()
