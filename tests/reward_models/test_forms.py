"""Published process reward models: their own reading written out against ours, by value; and what holds of any form and tokenizer."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForTokenClassification,
)

from reward_models.cli import main
from reward_models.config import ProcessForm, ProcessModelConfig
from reward_models.data import pad, step_columns
from reward_models.errors import UserError
from reward_models.forms import FORM, form_columns, form_of
from reward_models.process import ProcessRewardModel
from tests.reward_models.conftest import byte_level, characters, policy, unigram

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
QUESTION, STEPS = "Ann has 3 pens.\nHow many?", ["Ben 3+4=7", "So 7-1=6", "#### 6"]
FORMS = ("math_shepherd", "rlhflow", "qwen", "trl")
SEPARATORS = {"math_shepherd": "ки", "qwen": "<extra_0>", "trl": "\n"}


def speaking(tokenizer):
    """With the chat's and the separators' tokens."""
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>", "<extra_0>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


TOKENIZERS = {name: speaking(make()) for name, make in (("bytes", byte_level), ("unigram", unigram), ("characters", characters))}


def two_class(tokenizer, labels=2):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 1024}
    model = LlamaForTokenClassification(LlamaConfig(vocab_size=len(tokenizer), num_labels=labels, **shape)).eval()
    return spread(model)


def spread(model):
    """With weights so large that what stands before a step moves its score."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module", params=["bytes", "unigram"])
def published(request, tmp_path_factory):
    """Folders of a language model and of a two-class model."""
    tokenizer, folders = TOKENIZERS[request.param], {}
    for name, model in {"words": spread(policy(tokenizer)), "two_class": two_class(tokenizer)}.items():
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


def by_hand(folder, form, tokenizer):
    """Step scores as each publisher reads them: from whole texts, one forward a solution (rlhflow: a step)."""
    kind = AutoModelForCausalLM if form in ("math_shepherd", "rlhflow") else AutoModelForTokenClassification
    model = kind.from_pretrained(folder).eval()
    words = [tokenizer.encode(word)[-1] for word in "+-"]

    @torch.no_grad()
    def logits(ids):
        return model(torch.tensor([ids])).logits[0]

    if form == "math_shepherd":
        ids = tokenizer.encode(f"{QUESTION} " + "\n".join(f"Step {number}: {step} ки" for number, step in enumerate(STEPS, 1)))
        tag = tokenizer.encode("a ки")[-1]
        return logits(ids)[:, words].softmax(-1)[torch.tensor(ids) == tag, 0].tolist()
    if form == "rlhflow":
        conversation, scores = [], []
        for place, step in enumerate(STEPS):
            conversation.append({"role": "user", "content": step if place else f"{QUESTION} {step}"})
            conversation.append({"role": "assistant", "content": "+"})
            ids = tokenizer.encode(tokenizer.apply_chat_template(conversation, tokenize=False))
            scores.append(logits(ids)[-3, words].softmax(-1)[0].item())  # right for this template
        return scores
    if form == "qwen":
        conversation = [
            {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."},
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": "<extra_0>".join(STEPS) + "<extra_0>"},
        ]
        ids = tokenizer.encode(tokenizer.apply_chat_template(conversation, tokenize=False))
        return logits(ids).softmax(-1)[torch.tensor(ids) == tokenizer.convert_tokens_to_ids("<extra_0>"), 1].tolist()
    pieces = [[*tokenizer.encode(step), *tokenizer.encode("\n")] for step in STEPS]
    labels = [-100] * len(tokenizer.encode(QUESTION)) + [label for piece in pieces for label in [-100] * (len(piece) - 1) + [1]]
    ids = [*tokenizer.encode(QUESTION), *(token for piece in pieces for token in piece)]
    return logits(ids).softmax(-1)[torch.tensor(labels) == 1, 1].tolist()


@pytest.mark.parametrize("form", FORMS)
def test_20_each_form_scores_as_its_publisher_and_as_converted(published, form, tmp_path, capsys):
    """The converted folder, too, loaded by plain transformers: one logit whose sigmoid is the softmax of two."""
    folder = published["words" if form in ("math_shepherd", "rlhflow") else "two_class"]
    prm = ProcessRewardModel.load(folder, form=form)
    expected = by_hand(folder, form, prm.tokenizer)
    assert len(expected) == 3 and max(expected) - min(expected) > 1e-3
    result = prm.score([QUESTION], [STEPS])[0]
    assert list(result.scores) == pytest.approx(expected, abs=1e-5) and not result.truncated
    assert main(["convert", str(folder), "--form", form, "--out", str(tmp_path / "out")]) == 0
    converted = ProcessRewardModel.load(tmp_path / "out")  # process_form.json states the form
    assert converted.form == prm.form and converted.score([QUESTION], [STEPS])[0].scores == pytest.approx(expected, abs=1e-5)
    plain, info = AutoModelForTokenClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert plain.num_labels == 1 and not info["missing_keys"] and not info["unexpected_keys"]
    read = converted.columns(QUESTION, STEPS)
    with torch.no_grad():
        logits = plain.eval()(torch.tensor([read.ids])).logits[0, read.columns, 0]
    assert torch.sigmoid(logits).tolist() == pytest.approx(expected, abs=1e-5)


def test_two_classes_show_their_form_and_a_language_model_does_not(published, tmp_path):
    assert form_of(published["two_class"]).form == "qwen"
    bare = byte_level()
    two_class(bare).save_pretrained(tmp_path)
    bare.save_pretrained(tmp_path)
    assert form_of(tmp_path).form == "trl"
    (tmp_path / FORM).write_text('{"form": "trl", "separator": "\\n\\n", "max_length": 64}')
    prm = ProcessRewardModel.load(tmp_path)
    assert prm.form == ProcessForm(form="trl", separator="\n\n", max_length=64) and prm.settings.max_length == 64
    long, short = prm.score(["q", "q"], [["x " * 80, "y"], ["x"]])
    assert long.truncated and long.scores == () and len(short.scores) == 1
    (tmp_path / FORM).write_text('{"form": "trl", "seperator": "x"}')
    with pytest.raises(UserError, match=r"process_form.json: seperator"):
        ProcessRewardModel.load(tmp_path)
    with pytest.raises(UserError, match=r"--form \{math_shepherd"):
        ProcessRewardModel.load(published["words"])


@pytest.mark.parametrize(
    "change,form,told",
    [
        ({"architectures": ["Qwen2ForProcessRewardModel"]}, None, "trust_remote_code=True"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}, "trl", "3 labels"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "trl", "scores no steps"),
    ],
)
def test_heads_that_cannot_be_read_are_told(published, tmp_path, change, form, told):
    config = json.loads((published["two_class"] / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=told):
        ProcessRewardModel.load(tmp_path, form=form)


def test_words_that_are_one_token_a_missing_head_and_logits_behind_the_head(published, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no two tokens"):
        ProcessRewardModel.load(published["words"], form=ProcessForm(form="rlhflow", right="+", wrong="+"))
    monkeypatch.setattr("reward_models.forms._head", lambda folder: "two_class")  # whose weights are those of a language model
    with pytest.raises(UserError, match=r"no weights for score"):
        ProcessRewardModel.load(published["words"], form="trl")
    monkeypatch.undo()
    config = json.loads((published["words"] / "config.json").read_text()) | {"final_logit_softcapping": 30.0}
    for file in published["words"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="final_logit_softcapping"):
        ProcessRewardModel.load(tmp_path, form="math_shepherd")


def test_a_template_that_leaves_turns_out_is_told(published, tmp_path):
    """Else steps would be judged at the turns of others."""
    for file in published["words"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = "{% for message in messages[-2:] %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="every turn once"):
        ProcessRewardModel.load(tmp_path, form="rlhflow")


def test_our_own_form_needs_no_telling(tmp_path):
    (tmp_path / "process_model.json").write_text(ProcessModelConfig().model_dump_json())
    with pytest.raises(UserError, match="our own form"):
        ProcessRewardModel.load(tmp_path, form="trl")


# ------------------------------------------------------------------ any form, any tokenizer, any steps

PIECES = ["Ann 3+4=7", "naïve — 数学", "😀", ".", "\\frac{1}{2}", "#### 7", "a ки b", "Step 1: 7", "+ - <extra_0>"]
SOLUTIONS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=5)
ASKED = st.sampled_from(["Ann has 3 pens.\nHow many?", "数学 ки", "7"])
ALL = [*FORMS, "rlef"]


def columns_of(form, tokenizer, question, steps):
    if form == "rlef":
        return step_columns(tokenizer, question, steps, "<extra_0>")
    return form_columns(tokenizer, ProcessForm(form=form), question, steps)


@pytest.mark.parametrize("form", ALL)
@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=25)
@given(question=ASKED, steps=SOLUTIONS)
def test_19_a_column_a_step_and_every_byte_of_it(name, form, question, steps):
    """Ids up to a step's column are those of the solution that ends there, and what stands between two columns is the step."""
    tokenizer = TOKENIZERS[name]
    read = columns_of(form, tokenizer, question, steps)
    assert len(read.columns) == len(steps) and read.columns == sorted(set(read.columns)) and read.columns[-1] < len(read.ids)
    for place, column in enumerate(read.columns, 1):
        assert columns_of(form, tokenizer, question, steps[:place]).ids[: column + 1] == read.ids[: column + 1]
    kept = [step.replace("<extra_0>", "") for step in steps]  # the token, spelled out in a step, is none of it
    tokens = [token for token in read.ids if token != tokenizer.convert_tokens_to_ids("<extra_0>")]
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    if form == "math_shepherd":
        numbered = [step if step.startswith(f"Step {number}:") else f"Step {number}: {step}" for number, step in enumerate(kept, 1)]
        assert text == f"{question} " + "\n".join(f"{step} ки" for step in numbered)
    elif form == "rlhflow":
        assert _squeezed(text) == _squeezed(f"{question} {kept[0]}+" + "".join(f"{step}+" for step in kept[1:]))
    elif form == "qwen":
        assert _squeezed(text).endswith(_squeezed(question + "".join(kept)))
    else:
        assert _squeezed(text) == _squeezed(question + "".join(kept))
    last = {"qwen": "<extra_0>", "rlef": "<extra_0>"}.get(form)
    assert last is None or all(read.ids[column] == tokenizer.convert_tokens_to_ids(last) for column in read.columns)
    if form == "rlhflow":
        assert all(tokenizer.convert_ids_to_tokens(read.ids[column]) == "<|assistant|>" for column in read.columns)


def _squeezed(text):
    """Without blanks, which SentencePiece puts before each piece that is tokenised by itself, and line breaks, which are a delimiter."""
    return "".join(text.split())


@pytest.fixture(scope="module")
def scorers():
    models = {name: two_class(tokenizer, labels=1) for name, tokenizer in TOKENIZERS.items()}
    own = ProcessModelConfig(separator="<extra_0>", max_length=1000)
    return {
        (name, form): ProcessRewardModel(model, TOKENIZERS[name], own, None if form == "rlef" else ProcessForm(form=form))
        for name, model in models.items()
        for form in ALL
    }


@pytest.mark.parametrize("form", ALL)
@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=4)
@given(rows=st.lists(st.tuples(ASKED, SOLUTIONS), min_size=1, max_size=4), width=st.integers(0, 7), data=st.data())
def test_20_scores_by_padding_batch_order_and_prefix(scorers, name, form, rows, width, data):
    prm = scorers[name, form]
    questions, steps = [row[0] for row in rows], [row[1] for row in rows]
    scores = [result.scores for result in prm.score(questions, steps)]
    order = data.draw(st.permutations(range(len(rows))))
    mixed = prm.score([questions[row] for row in order], [steps[row] for row in order], batch_size=2)
    prefixes = [prm.score([question] * len(one), [one[: place + 1] for place in range(len(one))]) for question, one in rows]
    padded = [left_padded(prm, question, one, width) for question, one in rows]
    for place, row in enumerate(order):
        assert mixed[place].scores == pytest.approx(scores[row], abs=1e-5)
    for row, whole in enumerate(scores):
        assert [result.scores[-1] for result in prefixes[row]] == pytest.approx(whole, abs=1e-5)
        assert padded[row] == pytest.approx(whole, abs=1e-5)


@torch.no_grad()
def left_padded(prm, question, steps, width):
    """Scores behind `width` columns of padding, by hand."""
    read = prm.columns(question, steps)
    batch = pad([read.ids], 0)
    batch["input_ids"] = torch.cat([torch.zeros(1, width, dtype=torch.long), batch["input_ids"]], 1)
    batch["attention_mask"] = torch.cat([torch.zeros(1, width, dtype=torch.long), batch["attention_mask"]], 1)
    batch["position_ids"] = torch.cat([torch.zeros(1, width, dtype=torch.long), batch["position_ids"]], 1)
    logits = prm.model(**batch).logits[0, [column + width for column in read.columns], 0]
    return torch.sigmoid(logits).tolist()
