"""Process reward models as others publish them: their steps laid out as they were in training, and their heads as one logit.

Softmax over two logits is the sigmoid of their difference. So two classes, and a language model's words for right and wrong, are one
logit whose weights are the difference of theirs: exactly, and without logits over the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
import transformers
from pydantic import ValidationError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification, PreTrainedModel

from reward_models.config import FormName, ProcessForm
from reward_models.data import StepColumns, marked
from reward_models.errors import UserError
from reward_models.model import Tokenizer, label_head, load, load_tokenizer
from reward_models.nearest import meant_path

FORM = "process_form.json"
SEPARATORS = {"math_shepherd": "ки", "qwen": "<extra_0>", "trl": "\n"}
QWEN_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
SCALED = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # what is done to logits behind the head


def form_of(folder: str | Path, told: FormName | ProcessForm | None = None) -> ProcessForm:
    """The form that is told, that process_form.json states, or that two classes show. Raises UserError where none does.

    A language model does not show that it is a reward model: any policy looks like one.
    """
    file = Path(folder) / FORM
    if isinstance(told, ProcessForm):
        return told
    if told is not None:
        return ProcessForm(form=told)
    if file.is_file():
        try:
            return ProcessForm.model_validate_json(file.read_text(encoding="utf-8"))
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{file}: {'.'.join(map(str, first['loc']))} {first['msg']}", fix="mend that key") from None
    if _head(folder) == "two_class":
        separator = SEPARATORS["qwen"]
        return ProcessForm(form="qwen" if separator in load_tokenizer(folder).get_vocab() else "trl")
    raise UserError(
        f"{folder}: no process_model.json, and nothing says how it was written to",
        fix=f"give the folder of a trained process reward model, --form {{{','.join(get_args(FormName))}}}, or a {FORM} beside the model",
    )


def load_published(folder: str | Path, form: ProcessForm, device: str | torch.device = "cpu") -> tuple[PreTrainedModel, Tokenizer]:
    """The model with one logit a token, and its tokenizer. Raises UserError where head or tokenizer do not fit the form."""
    head = _head(folder)
    tokenizer = load_tokenizer(folder)
    if head == "words":
        words = [tokenizer.encode(word, add_special_tokens=False)[-1:] for word in (form.right, form.wrong)]
        if not all(words) or words[0] == words[1]:
            raise UserError(f"{folder}: its tokenizer has no two tokens for {form.right!r} and {form.wrong!r}", fix=f"set both in {FORM}")
        model = _from_words(load(AutoModelForCausalLM, folder, trained=True), words[0][0], words[1][0])
    else:
        model = load(AutoModelForTokenClassification, folder, labels=2 if head == "two_class" else 1, trained=True)
        if head == "two_class":
            old = label_head(model)[1]
            _with_one_logit(model, old.weight[1] - old.weight[0], None if old.bias is None else old.bias[1] - old.bias[0])
    form_columns(tokenizer, form, "a", ["b", "c"])  # a template or separator that is missing shows here
    nn.Module.to(model, device)
    return model.eval(), tokenizer


def save_published(model: PreTrainedModel, tokenizer: Tokenizer, form: ProcessForm, out: str | Path) -> None:
    """With its one logit: plain AutoModelForTokenClassification loads it."""
    model.save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))
    Path(out, FORM).write_text(form.model_dump_json(exclude_none=True), encoding="utf-8")


def form_columns(tokenizer: Tokenizer, form: ProcessForm, question: str, steps: Sequence[str]) -> StepColumns:
    """Ids as the publisher's own code makes them, piece by piece, and the column of each step."""
    layouts: dict[str, Callable[[Tokenizer, ProcessForm, str, Sequence[str]], StepColumns]]
    layouts = {"math_shepherd": _tagged, "rlhflow": _turns, "qwen": _separated, "trl": _stepwise}
    return layouts[form.form](tokenizer, form, question, steps)


# ---------------------------------------------------------------------------------------- layouts


def _tagged(tokenizer: Tokenizer, form: ProcessForm, question: str, steps: Sequence[str]) -> StepColumns:
    """`Q Step 1: a TAG\\nStep 2: b TAG`, judged at the tag."""
    tag = " " + (form.separator or SEPARATORS["math_shepherd"])
    texts = [step if step.startswith(f"Step {number}:") else f"Step {number}: {step}" for number, step in enumerate(steps, 1)]
    pieces = [
        _behind(tokenizer, "a" + tag, "\n" + text) if number else _behind(tokenizer, question, " " + text)
        for number, text in enumerate(texts)
    ]
    return marked([*_bos(tokenizer), *_ids(tokenizer, question)], pieces, _behind(tokenizer, "a", tag))


def _turns(tokenizer: Tokenizer, form: ProcessForm, question: str, steps: Sequence[str]) -> StepColumns:
    """Chat turns: the question and the first step, each other step; the reply to each is `right`, and a step is judged where it is due."""
    texts = [f"{question} {step}" if number == 0 else step for number, step in enumerate(steps)]
    turns = [turn for text in texts for turn in (("user", text), ("assistant", None))]
    segments = _rendered(tokenizer, form.system, turns)[: len(steps)]
    # A template's blank before the reply is part of the reply's token.
    bare = [segment.rstrip(" ") for segment in segments]
    reply = segments[0][len(bare[0]) :] + form.right if segments else form.right
    return marked([], [_ids(tokenizer, text) for text in bare], _behind(tokenizer, bare[0] if bare else "", reply), before=True)


def _separated(tokenizer: Tokenizer, form: ProcessForm, question: str, steps: Sequence[str]) -> StepColumns:
    """The chat's answer is the steps, a special token behind each, judged there."""
    separator = form.separator or SEPARATORS["qwen"]
    mark = tokenizer.convert_tokens_to_ids(separator)
    if mark in (None, tokenizer.unk_token_id):
        raise UserError(f"form qwen: the tokenizer has no token {separator!r}", fix=f"set separator in {FORM}")
    system = QWEN_SYSTEM if form.system is None else form.system
    opening = _ids(tokenizer, _rendered(tokenizer, system, [("user", question), ("assistant", None)])[0])
    pieces = [_behind(tokenizer, separator, step) for step in steps]
    return marked(opening, [[token for token in piece if token != mark] for piece in pieces], [mark])


def _stepwise(tokenizer: Tokenizer, form: ProcessForm, question: str, steps: Sequence[str]) -> StepColumns:
    """Question, then each step and the separator, each tokenised by itself, judged at the last token. What stands between question and
    first step is up to the question, as it was in training."""
    separator = form.separator if form.separator is not None else SEPARATORS["trl"]
    mark = _ids(tokenizer, separator)
    if not mark:
        raise UserError(f"form trl: the separator {separator!r} has no token", fix=f"set separator in {FORM}")
    bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    return marked([*bos, *_ids(tokenizer, question)], [_ids(tokenizer, step) for step in steps], mark)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _behind(tokenizer: Tokenizer, before: str, text: str) -> list[int]:
    """Ids of `text` as they are behind `before`: SentencePiece puts a blank before what begins a text, and nowhere else. Where the border
    falls inside a token they are those of `text` alone, so that nothing merges over a step's end."""
    known, both = _ids(tokenizer, before), _ids(tokenizer, before + text)
    return both[len(known) :] if both[: len(known)] == known else _ids(tokenizer, text)


def _bos(tokenizer: Tokenizer) -> list[int]:
    """BOS where the tokenizer begins texts with it."""
    return [token for token in tokenizer.encode("")[:1] if token == tokenizer.bos_token_id]


def _rendered(tokenizer: Tokenizer, system: str | None, turns: Sequence[tuple[str, str | None]]) -> list[str]:
    """The chat as text, cut where the turns of None are: found by a character that no turn holds, never counted back from an end."""
    if not turns:
        return []
    if not tokenizer.chat_template:
        raise UserError("forms rlhflow and qwen: the tokenizer has no chat template", fix="give a tokenizer with one, or form trl")
    said = "".join(text or "" for _, text in turns)
    hole = next(chr(point) for point in range(0xE000, 0xF8FF) if chr(point) not in said)
    messages = [{"role": role, "content": hole if text is None else text} for role, text in turns]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    parts = str(tokenizer.apply_chat_template(messages, tokenize=False)).split(hole)
    if len(parts) - 1 != sum(text is None for _, text in turns):
        raise UserError(
            "forms rlhflow and qwen: the chat template does not show every turn once", fix="give a tokenizer whose template does"
        )
    return parts


# ------------------------------------------------------------------------------------------ heads


def _head(folder: str | Path) -> str:
    """words (a language model's), two_class or logit. Raises UserError for a head that cannot be read here."""
    try:
        config = AutoConfig.from_pretrained(str(folder))
    except Exception as error:  # transformers raises a dozen kinds over a damaged file, each with its own words
        raise UserError(
            f"{folder}: no model could be loaded{meant_path(folder)} ({error})", fix="give a folder or hub id that from_pretrained loads"
        ) from error
    name = next(iter(config.architectures or ()), "none")
    if not hasattr(transformers, name):
        raise UserError(
            f"{folder}: its model class {name} is code of its own, which is not run here",
            fix="load it once elsewhere by trust_remote_code=True and, if its head is one linear layer, save trunk and head as "
            "AutoModelForTokenClassification with two labels",
        )
    if name.endswith("ForTokenClassification") and config.num_labels in (1, 2):
        return "two_class" if config.num_labels == 2 else "logit"
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return "words"
    raise UserError(
        f"{folder}: a {name} with {config.num_labels} labels scores no steps",
        fix="give a causal language model, or a token classifier of two labels",
    )


@torch.no_grad()
def _from_words(causal: PreTrainedModel, right: int, wrong: int) -> PreTrainedModel:
    """A token classifier on the very trunk of a language model. Raises UserError where its logits are more than its head's."""
    config = causal.config
    scaled = [key for key in SCALED if getattr(config, key, None) not in (None, 1, 1.0)]
    if scaled:
        raise UserError(
            f"{type(causal).__name__}: {scaled[0]} changes its logits, so two words are not one logit", fix="take another model"
        )
    with torch.device("meta"):
        model = AutoModelForTokenClassification.from_config(config)
    trunk: Any = causal.base_model
    setattr(model, model.base_model_prefix, trunk)
    output: Any = causal.get_output_embeddings()
    bias = getattr(output, "bias", None)
    _with_one_logit(model, output.weight[right] - output.weight[wrong], None if bias is None else bias[right] - bias[wrong])
    return model


@torch.no_grad()
def _with_one_logit(model: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Replaces the head. weight: (H,)."""
    name, old = label_head(model)
    head = nn.Linear(len(weight), 1, bias=old.bias is not None, dtype=weight.dtype)
    head.weight.copy_(weight[None])
    if head.bias is not None:
        head.bias.copy_(torch.zeros(1) if bias is None else bias.reshape(1))
    setattr(model, name, head)
    model.config.num_labels = model.num_labels = 1
