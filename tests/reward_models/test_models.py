"""Scores by padding, batch and prefix; training through the inference API; what is saved loads anywhere."""

from __future__ import annotations

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    TrainerCallback,
)

from reward_models.cli import main
from reward_models.config import InstructionModelConfig, ProcessModelConfig
from reward_models.data import (
    SortedSteps,
    batches_by_length,
    collate_lists,
    collate_steps,
    instruction_rows,
    step_columns,
    step_rows,
    step_trees,
)
from reward_models.errors import UserError
from reward_models.instruction import CALIBRATION, Calibration, InstructionRewardModel, save_calibration, score_texts
from reward_models.losses import IGNORE
from reward_models.metrics import auroc
from reward_models.model import build, label_head
from reward_models.process import ProcessRewardModel, StepScores, aggregate
from reward_models.records import RankedItem, RankedList, SteppedSolution, is_held_out
from reward_models.train import TrainOptions, lists_loss, steps_loss, train_instruction, train_process

QUESTIONS = ["Ann has 3 pens. How many?", "How many pens does Ben have? So many.", "7?"]
STEPS = [["Ben 3+4=7", "Ben 7-1=6", "#### 6"], ["naïve — 数学"], ["a", "b", "c", "d"]]


@pytest.fixture
def prm(policy_folder):
    torch.manual_seed(0)
    model, tokenizer = build("process", policy_folder, separator="<|step|>")
    torch.nn.init.normal_(model.score.weight, std=0.5)
    return ProcessRewardModel(model, tokenizer, ProcessModelConfig())


def flat(results):
    return [score for result in results for score in result.scores]


def test_20_scores_do_not_depend_on_padding_batch_or_order(prm):
    together = prm.score(QUESTIONS, STEPS)
    for size in (1, 2):
        assert flat(prm.score(QUESTIONS, STEPS, batch_size=size)) == pytest.approx(flat(together), abs=1e-5)
    assert flat(prm.score(QUESTIONS[::-1], STEPS[::-1])[::-1]) == pytest.approx(flat(together), abs=1e-5)
    assert [len(result.scores) for result in together] == [3, 1, 4]


def test_20_one_forward_equals_one_per_prefix(prm):
    whole = prm.score(QUESTIONS[:1], STEPS[:1])[0].scores
    parts = [prm.score(QUESTIONS[:1], [STEPS[0][: place + 1]])[0].scores[-1] for place in range(3)]
    assert list(whole) == pytest.approx(parts, abs=1e-5)


def test_labels_lie_where_scores_are_read(prm):
    """Fault 1: one function places the columns of training and of inference."""
    read = step_columns(prm.tokenizer, QUESTIONS[0], STEPS[0], "<|step|>")
    mark = prm.tokenizer.convert_tokens_to_ids("<|step|>")
    assert [place for place, token in enumerate(read.ids) if token == mark] == read.columns and len(read.columns) == 3
    row = SteppedSolution(problem_id="p", question=QUESTIONS[0], steps=tuple(STEPS[0]), labels=(1, 0.5, 0), labeller="x")
    (data,), _ = step_rows([row], prm.tokenizer, separator="<|step|>", max_length=200, mask_after_first_error=False)
    assert [label for label in data["labels"] if label != IGNORE] == [1.0, 0.5, 0.0]
    assert [place for place, label in enumerate(data["labels"]) if label != IGNORE] == read.columns


def test_language_weights_are_on_the_tokens_of_right_steps(prm):
    row = SteppedSolution(problem_id="p", question=QUESTIONS[0], steps=tuple(STEPS[0]), labels=(1, None, 0), labeller="x")
    (data,), _ = step_rows([row], prm.tokenizer, separator="<|step|>", max_length=200, mask_after_first_error=True)
    chosen = [token for token, weight in zip(data["input_ids"], data["language"], strict=True) if weight]
    assert chosen == prm.tokenizer.encode(STEPS[0][0] + "\n", add_special_tokens=False) and sum(data["language"]) == pytest.approx(1)


def test_a_step_that_spells_the_separator_is_judged_once(prm):
    assert len(step_columns(prm.tokenizer, "q", ["a <|step|> b"], "<|step|>").columns) == 1
    assert len(prm.score(["q"], [["a <|step|> b"]])[0].scores) == 1


def test_22_long_and_unlabelled_rows_are_dropped_and_counted_or_flagged(prm):
    rows = [
        SteppedSolution(problem_id="p", question="q", steps=("x " * 300,), labels=(1,), labeller="x"),
        SteppedSolution(problem_id="p", question="q", steps=("x",), labels=(None,), labeller="x"),
        SteppedSolution(problem_id="p", question="q", steps=("x",), labels=(1,), labeller="x"),
    ]
    data, dropped = step_rows(rows, prm.tokenizer, separator="<|step|>", max_length=100, mask_after_first_error=True)
    assert len(data) == 1 and dropped == {"too_long": 1, "no_label": 1}
    scorer = ProcessRewardModel(prm.model, prm.tokenizer, ProcessModelConfig(max_length=100))
    long, short, empty = scorer.score(["q", "q", "q"], [["x " * 300, "y"], ["x"], []])
    assert long.truncated and long.scores == () and not short.truncated and empty.scores == () and not empty.truncated
    assert all(math.isfinite(score) for score in short.scores)
    loss = steps_loss(prm.model, collate_steps(data, 0), balance=(1.0, 1.0))
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in prm.model.parameters() if p.grad is not None)
    assert collate_steps(data, 0)["labels"].dtype == torch.float32  # fault 2: never bool, where -100 would be True


def test_22_labels_after_the_first_error_change_nothing(prm):
    """Nor do places that hold no label: the batch with other numbers there has the same loss and gradient."""
    rows = [
        SteppedSolution(problem_id="p", question="q", steps=("a", "b", "c", "d"), labels=labels, labeller="x")
        for labels in ((1, 0, 1, 0), (1, 0, 0, None), (1, 0, 0.3, 1))
    ]
    options = {"separator": "<|step|>", "max_length": 100}
    data, _ = step_rows(rows, prm.tokenizer, mask_after_first_error=True, **options)
    assert data[0] == data[1] == data[2] and sum(label != IGNORE for label in data[0]["labels"]) == 2
    kept, _ = step_rows(rows, prm.tokenizer, mask_after_first_error=False, **options)
    assert [sum(label != IGNORE for label in row["labels"]) for row in kept] == [4, 3, 4]


def test_what_stands_behind_the_last_label_is_cut_and_changes_nothing(prm):
    row = SteppedSolution(problem_id="p", question="q", steps=("a", "b", "c", "d"), labels=(1, 0, 1, None), labeller="x")
    (data,), _ = step_rows([row], prm.tokenizer, separator="<|step|>", max_length=100, mask_after_first_error=True)
    read = step_columns(prm.tokenizer, "q", row.steps, "<|step|>")
    assert data["input_ids"] == read.ids[: read.columns[1] + 1] and len(data["labels"]) == len(data["language"]) == data["length"]
    whole = data | {key: [*data[key], *[fill] * (len(read.ids) - data["length"])] for key, fill in (("labels", IGNORE), ("language", 0.0))}
    whole["input_ids"] = read.ids
    losses = [steps_loss(prm.model, collate_steps([one], 0), balance=(1.0, 1.0)).item() for one in (data, whole)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_a_tree_gives_each_step_the_logit_and_the_gradient_of_its_own_row(prm):
    """Solutions that share a beginning, and one of another question; against the rows one by one, shared steps counted once."""
    texts = [("a b", "c"), ("a b", "d e"), ("a f", "c"), ("a b", "c", "g")]
    labels = [(1, 1), (1, 0), (0, None), (1, 1, 0)]
    rows = [SteppedSolution(problem_id="p", question="q", steps=s, labels=v, labeller="x") for s, v in zip(texts, labels, strict=True)]
    rows.append(SteppedSolution(problem_id="r", question="q 2", steps=("a b",), labels=(0,), labeller="x"))
    data, _ = step_rows(rows, prm.tokenizer, separator="<|step|>", max_length=200, mask_after_first_error=True)
    trees = step_trees(data, 200)
    assert len(trees) == 2 and trees[0]["length"] <= sum(row["length"] for row in data[:4]) / 2
    head = torch.randn(len(prm.tokenizer), prm.model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    options = {"balance": (1.0, 1.0), "head": head, "language_weight": 0.7}
    prm.model.zero_grad()
    loss = steps_loss(prm.model, collate_steps(trees, 0), **options)
    loss.backward()
    packed = torch.cat([p.grad.flatten().clone() for p in prm.model.parameters() if p.grad is not None])
    # By hand: what an earlier row has judged already is taken out of the later ones.
    once = [
        {"labels": [IGNORE if column in known else label for column, label in enumerate(row["labels"])]}
        | {"language": [0.0 if column <= known_to else weight for column, weight in enumerate(row["language"])]}
        for row, known, known_to in ((data[1], _marks(data[1], 1), _end(data[1], 1)), (data[3], _marks(data[3], 2), _end(data[3], 2)))
    ]
    plain = [data[0], data[1] | once[0], data[2], data[3] | once[1], data[4]]
    prm.model.zero_grad()
    expected = sum(steps_loss(prm.model, collate_steps([row], 0), **options) for row in plain)
    expected.backward()
    alone = torch.cat([p.grad.flatten().clone() for p in prm.model.parameters() if p.grad is not None])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (packed - alone).abs().max() < 1e-5 * alone.abs().max()
    small = step_trees(data, max(row["length"] for row in data))
    assert len(small) > 2 and all(row["length"] <= max(one["length"] for one in data) for row in small)


def test_the_mask_of_trees_is_held_once_for_all_layers(prm):
    rows = [
        {"question": "q", "input_ids": [*range(10, 50), 50 + end], "labels": [IGNORE] * 40 + [1.0], "language": [0.0] * 41, "length": 41}
        for end in range(2)
    ]
    batch, kept = collate_steps(step_trees(rows, 200), 0), set()

    def note(tensor):
        if tensor.shape == batch["attention_mask"].shape:
            kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = steps_loss(prm.model, batch, balance=(1.0, 1.0))
    loss.backward()
    assert prm.model.config.num_hidden_layers > 1 and len(kept) == 1


def _marks(row, count):
    """Columns of its first `count` labels."""
    return [column for column, label in enumerate(row["labels"]) if label != IGNORE][:count]


def _end(row, count):
    return _marks(row, count)[-1]


def test_rows_of_an_optimiser_step_are_sorted_and_every_epoch_has_all_rows_in_another_order():
    lengths = [7, 3, 9, 1, 8, 2, 6, 5, 4, 10]
    sampler, epochs = SortedSteps(lengths, 4, seed=0), []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert sorted(order) == list(range(10)) and order == list(sampler)
        for start in (0, 4, 8):
            step = [lengths[row] for row in order[start : start + 4]]
            assert step == sorted(step)
        epochs.append([set(order[start : start + 4]) for start in (0, 4, 8)])
    assert epochs[0] != epochs[1]


def test_aggregates():
    assert [aggregate((0.5, 0.4, 0.8), how) for how in ("min", "product", "mean", "last")] == pytest.approx([0.4, 0.16, 1.7 / 3, 0.8])
    assert aggregate(()) == 0
    with pytest.raises(UserError):
        aggregate((0.5,), "median")


def test_the_first_error_is_a_place_or_none_where_nothing_was_read():
    assert [StepScores((0.9, 0.4, 0.3)).first_error(threshold) for threshold in (0.5, 0.35, 0.1)] == [1, 2, -1]
    assert StepScores(()).first_error(0.5) == -1 and StepScores((), truncated=True).first_error(0.5) is None


def test_a_head_is_found_whatever_its_family_calls_it(policy_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=128)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for kind, name in (("process", "classifier"), ("instruction", "score")):
        model, _ = build(kind, tmp_path, separator="<|step|>")
        assert label_head(model)[0] == name and label_head(model)[1].weight.std() > 0
    model, words = build("process", tmp_path, separator="<|step|>")
    assert len(flat(ProcessRewardModel(model, words, ProcessModelConfig(max_length=100)).score(QUESTIONS, STEPS))) == 8
    model.classifier = torch.nn.Sequential(torch.nn.Linear(32, 1))
    with pytest.raises(UserError, match="0 layers"):
        label_head(model)


def ranked(seed, texts, **fields):
    items = tuple(
        RankedItem(text=text, rank=rank, scores={"precision": 1.0 - rank / 10}, kind="bad" if rank == 2 else None)
        for rank, text in enumerate(texts)
    )
    return RankedList(seed_id=str(seed), items=items, labeller="x", **fields)


class Gradients(TrainerCallback):
    """The whole gradient at each optimiser step."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.seen.append(torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None]))


@pytest.mark.parametrize("kind", ["prm", "irm"])
def test_8_the_trainers_gradient_is_the_mean_over_the_whole_step(policy_folder, tmp_path, monkeypatch, kind):
    """Accumulated over micro-batches of one row, with very unequal rows, on the last and smaller batch of the data too (R2)."""
    real, counts = {"prm": steps_loss, "irm": lists_loss}[kind], []

    def counted(model, inputs, **options):
        counts.append(int((inputs["labels"] != IGNORE).sum()))
        return real(model, inputs, **options)

    monkeypatch.setattr(f"reward_models.train.{real.__name__}", counted)
    if kind == "prm":
        rows = [
            SteppedSolution(
                problem_id=str(n), question=f"{n}?", steps=("a b c",) * (1 + 3 * (n % 3)), labels=(1, 0, 0, 1, 1, 0, 1)[: 1 + 3 * (n % 3)],
                labeller="x", split="held_out" if n == 9 else "train",
            )
            for n in range(10)
        ]  # fmt: skip
    else:
        rows = [
            ranked(n, [f"{word} {n} " * (1 + n % 3) for word in ("a", "b", "c", "d")[: 2 + n % 3]], split="held_out" if n == 9 else "train")
            for n in range(10)
        ]
    file, found = write(tmp_path / "rows.jsonl", rows), []
    for size in (4, 1):
        gradients = Gradients()
        options = TrainOptions(learning_rate=1e-9, batch_size=4, micro_batch_size=size, max_grad_norm=1e9, callbacks=(gradients,))
        if kind == "prm":
            settings = ProcessModelConfig(epochs=1, mask_after_first_error=False)
            train_process(file, policy_folder, tmp_path / str(size), settings, options)
        else:
            settings = InstructionModelConfig(epochs=1, references=8)
            train_instruction(file, policy_folder, tmp_path / str(size), settings, options)
        found.append(gradients.seen)
    assert len(found[0]) == len(found[1]) == 3  # nine rows, four a step
    for whole, split in zip(*found, strict=True):
        assert (whole - split).abs().max() < 1e-5 * whole.abs().max()

    # The scale, by brute force: the three steps, weighted by their counts of steps or lists, add up to the sum over all rows.
    torch.manual_seed(0)
    model, tokenizer = build("process" if kind == "prm" else "instruction", policy_folder, separator="<|step|>" if kind == "prm" else None)
    if kind == "prm":
        data, _ = step_rows(rows[:9], tokenizer, separator="<|step|>", max_length=200, mask_after_first_error=False)
        loss = steps_loss(model, collate_steps(data, 0), balance=(1.0, 1.0))
    else:
        data = instruction_rows(rows[:9], tokenizer, max_length=256, anchors=2, seed=0)
        loss = lists_loss(model, collate_lists(data, tokenizer.pad_token_id), settings=settings)
    loss.backward()
    true = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    total = sum(count * gradient for count, gradient in zip(counts[:3], found[0], strict=True))
    assert sum(counts[:3]) == (sum(len(row.steps) for row in rows[:9]) if kind == "prm" else 9)
    assert (total.cpu() - true).abs().max() < 1e-4 * true.abs().max()


@pytest.mark.parametrize("kind", ["instruction", "process"])
def test_15_what_the_policy_pads_with_changes_no_loss_gradient_or_score(policy_folder, tmp_path, kind):
    """Of one policy saved twice; texts hold EOS, as those of chats do."""
    texts, found = ["Ann has <|end|> 3 pens.", "Ben<|end|>", "So"], []
    for pad_token in ("<|pad|>", "<|end|>"):
        policy, tokenizer = AutoModelForCausalLM.from_pretrained(policy_folder), AutoTokenizer.from_pretrained(policy_folder)
        tokenizer.pad_token = pad_token
        policy.config.pad_token_id = tokenizer.pad_token_id
        policy.save_pretrained(tmp_path / pad_token)
        tokenizer.save_pretrained(tmp_path / pad_token)
        torch.manual_seed(0)
        model, tokenizer = build(kind, tmp_path / pad_token, separator="<|step|>" if kind == "process" else None)
        torch.nn.init.normal_(model.score.weight, std=0.5)
        if kind == "instruction":
            data = instruction_rows([ranked(1, texts)], tokenizer, max_length=64, anchors=0, seed=0)
            loss = lists_loss(model, collate_lists(data, tokenizer.pad_token_id), settings=InstructionModelConfig())
            scores = score_texts(model, tokenizer, texts, 64)
        else:
            row = SteppedSolution(problem_id="p", question=texts[0], steps=texts[1:], labels=(1, 0), labeller="x")
            rows = [row, row.model_copy(update={"question": "q"})]
            data, _ = step_rows(rows, tokenizer, separator="<|step|>", max_length=200, mask_after_first_error=False)
            loss = steps_loss(model, collate_steps(data, tokenizer.pad_token_id), balance=(1.0, 1.0))
            scores = flat(ProcessRewardModel(model, tokenizer, ProcessModelConfig()).score([texts[0], "q"], [texts[1:]] * 2))
        loss.backward()
        gradients = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
        assert model.get_input_embeddings().weight.grad[tokenizer.eos_token_id].abs().sum() > 0
        found.append((loss.item(), scores, gradients))
    assert found[0][:2] == found[1][:2] and torch.equal(found[0][2], found[1][2]) and len(set(found[0][1])) == len(found[0][1])


@pytest.mark.parametrize("folder", ["policy_folder", "pad_is_eos_folder"])
def test_15_irm_reads_eos_with_any_padding_and_plain_transformers_agrees(folder, request, tmp_path):
    model, tokenizer = build("instruction", request.getfixturevalue(folder))
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    save_calibration(Calibration((0.0, 0.1), 1.0, 0.05, 200), tmp_path)
    irm = InstructionRewardModel.load(tmp_path)
    texts = ["Ann has 3 pens.", "A much longer instruction. " * 4]
    raw = irm.raw_scores(texts)
    plain, words = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    batch = words([text + words.eos_token for text in texts], add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert plain(**batch).logits[:, 0].tolist() == pytest.approx(raw, abs=1e-5)
        alone = words(texts[0] + words.eos_token, add_special_tokens=False, return_tensors="pt")
        assert plain(**alone).logits[0, 0].item() == pytest.approx(raw[0], abs=1e-5)
    mixed = irm.raw_scores([texts[1], "Ben has 4.", texts[0], texts[1]])  # 23: the same in whatever company
    alone = irm.raw_scores(["Ben has 4."])
    assert mixed == pytest.approx([raw[1], alone[0], raw[0], raw[1]], abs=1e-5) and mixed[0] == mixed[3]
    (tmp_path / CALIBRATION).unlink()
    with pytest.raises(UserError, match="calibration"):
        InstructionRewardModel.load(tmp_path)


def test_23_a_bias_of_the_head_changes_no_win_rate_and_one_text_is_scored_as_many_are(policy_folder):
    """References are scored anew by the model that has it; r_I rises with the raw score."""
    model, tokenizer = build("instruction", policy_folder)
    torch.nn.init.normal_(model.score.weight, std=0.5)
    texts, rates = [f"Ann has {number} pens" + "." * (number % 3) for number in range(12)], []

    def scorer():
        references = score_texts(model, tokenizer, texts[6:], 64)
        return InstructionRewardModel(model, tokenizer, Calibration(tuple(references), 1.3, 0.05, 64))

    for bias in (0.0, 3.7):
        hook = model.score.register_forward_hook(lambda module, inputs, logits, bias=bias: logits + bias)
        irm = scorer()
        rates.append(irm.score(texts))
        raw = irm.raw_scores(texts)
        assert sorted(range(12), key=lambda place: raw[place]) == sorted(range(12), key=lambda place: rates[-1][place])
        assert irm.score(texts[::-1] + texts[:2], batch_size=1) == pytest.approx([*rates[-1][::-1], *rates[-1][:2]], abs=1e-6)
        assert scorer().score(texts[3:5], batch_size=1) == pytest.approx(rates[-1][3:5], abs=1e-6)
        hook.remove()
    assert rates[1] == pytest.approx(rates[0], abs=1e-5) and max(rates[0]) - min(rates[0]) > 1e-3


def write(file, rows):
    file.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    return file


def test_21_overfits_eight_solutions_through_the_inference_api(policy_folder, tmp_path):
    rows = []
    for number in range(8):
        good, bad = f"Ben {number}+1={number + 1}", f"Ben {number}+1={number + 3}"
        rows.append(
            SteppedSolution(problem_id=str(number), question=f"{number}?", steps=(good, bad), labels=(1, 0), labeller="x", split="train")
        )
    held = rows[0].model_copy(update={"split": "held_out"})
    file = write(tmp_path / "steps.jsonl", [*rows, held])
    options = TrainOptions(learning_rate=3e-3, batch_size=8)
    metrics = train_process(file, policy_folder, tmp_path / "prm", ProcessModelConfig(epochs=40), options)
    loaded = ProcessRewardModel.load(tmp_path / "prm")
    scores = flat(loaded.score([row.question for row in rows], [row.steps for row in rows]))
    assert auroc([1, 0] * 8, scores) == 1.0 and metrics["step_auroc"] == 1.0
    assert min(scores[::2]) > 0.9 and max(scores[1::2]) < 0.1  # read one column off, the order might still be right
    plain = AutoModelForTokenClassification.from_pretrained(tmp_path / "prm").eval()
    read = step_columns(loaded.tokenizer, rows[0].question, rows[0].steps, "<|step|>")
    with torch.no_grad():
        logits = plain(torch.tensor([read.ids])).logits[0, read.columns, 0]
    assert torch.sigmoid(logits).tolist() == pytest.approx(scores[:2], abs=1e-5)


def test_21_an_outcome_model_overfits_eight_solutions_through_the_inference_api(policy_folder, tmp_path, capsys):
    """Solutions that differ in one step of three, by the command line; one score each."""
    rows = []
    for number in range(8):
        steps = (f"Ben {number}+1={number + 1 + number % 2}", "So", f"#### {number}")
        fields = {"problem_id": str(number // 2), "question": "How many?", "steps": steps, "labels": (None,) * 3, "labeller": "x"}
        rows.append(SteppedSolution(**fields, correct=number % 2 == 0, split="train"))
    rows += [rows[0].model_copy(update={"split": "held_out"}), rows[1].model_copy(update={"split": "held_out"})]
    rows.append(rows[0].model_copy(update={"correct": None}))
    file, out = write(tmp_path / "steps.jsonl", rows), tmp_path / "orm"
    words = ["--epochs", "40", "--learning-rate", "3e-3", "--batch-size", "8", "--micro-batch-size", "8"]
    assert main(["train", "orm", "--labels", str(file), "--init", str(policy_folder), "--out", str(out), *words]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["dropped"] == {"no_label": 1} and metrics["train_solutions"] == 8 and metrics["within_problem"] == 1.0
    results = ProcessRewardModel.load(out).score([row.question for row in rows[:8]], [row.steps for row in rows[:8]])
    assert all(len(result.scores) == 1 for result in results)
    assert min(flat(results)[::2]) > 0.9 and max(flat(results)[1::2]) < 0.1
    assert main(["evaluate", "orm", "--model", str(out), "--labels", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["step_auroc"] == 1.0

    # As the card says how to load it elsewhere, word for word.
    card = (out / "README.md").read_text()
    assert "# Outcome reward model" in card and "Single steps have no score" in card
    recipe, _ = re.findall(r"```python\n(.*?)```", card, re.DOTALL)  # the other is for vLLM
    there = {"FOLDER": str(out)}
    exec(recipe, there)
    with torch.no_grad():
        assert there["score"](rows[0].question, rows[0].steps) == pytest.approx(results[0].scores, abs=1e-5)


def test_neutral_steps_reach_training_and_measuring(policy_folder, tmp_path):
    rows = [
        SteppedSolution(problem_id=split, question="q", steps=("a", "b", "c"), labels=(1, 0.5, 0.5), labeller="me", split=split)
        for split in ("train", "held_out")
    ]
    file, options = write(tmp_path / "rows.jsonl", rows), TrainOptions(learning_rate=1e-9, batch_size=4)
    for neutral, right, judged in [("wrong", 1 / 2, 2), ("mask", 1, 1)]:
        metrics = train_process(file, policy_folder, tmp_path / neutral, ProcessModelConfig(epochs=1, neutral=neutral), options)
        assert metrics["right_steps"] == pytest.approx(right, abs=1e-5) and metrics["steps"] == judged


def test_a_threshold_labels_anew_what_is_trained_on_and_what_is_measured(policy_folder, tmp_path):
    rates = [(0.75, 0.5, 0.0), (0.25, 0.0, 0.0)]
    rows = [
        SteppedSolution(problem_id=str(n), question=f"{n}?", steps=("a", "b", "c"), labels=pair, rates=pair, labeller="monte_carlo", split=split)
        for n, (pair, split) in enumerate([(rates[0], "train"), (rates[1], "train"), (rates[0], "held_out")])
    ]  # fmt: skip
    file, options = write(tmp_path / "rows.jsonl", rows), TrainOptions(learning_rate=1e-9, batch_size=4)
    for threshold, right, judged in [(None, 1.5 / 4, 3), (0.5, 1 / 3, 2), (0.1, 3 / 5, 3)]:  # up to the first below 0.5
        settings = ProcessModelConfig(epochs=1, threshold=threshold)
        metrics = train_process(file, policy_folder, tmp_path / str(threshold), settings, options)
        assert metrics["right_steps"] == pytest.approx(right) and metrics["steps"] == judged
        assert ProcessRewardModel.load(tmp_path / str(threshold)).settings.threshold == threshold


def test_irm_learns_to_rank_and_reports_by_flaw(policy_folder, tmp_path):
    lists = [
        ranked(
            seed,
            [f"Ann has {seed} pens.", f"Ann has {seed} pens or so.", f"Ann has some pens {seed}"],
            split="held_out" if seed < 4 else "train",
        )
        for seed in range(16)
    ]
    file = write(tmp_path / "lists.jsonl", lists)
    metrics = train_instruction(
        file,
        policy_folder,
        tmp_path / "irm",
        InstructionModelConfig(epochs=12, references=16),
        TrainOptions(learning_rate=2e-3, batch_size=4),
    )
    assert metrics["pair_accuracy"] > 0.9 and set(metrics["by_flaw"]) == {"bad"} and metrics["cross_seed_accuracy"] > 0.8
    assert json.loads((tmp_path / "irm" / "metrics.json").read_text())["pairs"] == 12
    good, bad = InstructionRewardModel.load(tmp_path / "irm").score(["Ann has 5 pens.", "Ann has some pens 5"])
    assert 0.05 <= bad < good < 1


def test_split_goes_by_seed():
    rows = [ranked(seed, ["a", "b"]) for seed in range(400)]
    share = sum(is_held_out(row) for row in rows) / 400
    assert 0.08 < share < 0.22 and all(is_held_out(row) == is_held_out(ranked(row.seed_id, ["c", "d"])) for row in rows)


@pytest.mark.parametrize("line,word", [("{broken", "line 1"), ('{"seed_id": 1}', "line 1"), ("", "no row")])
def test_broken_label_files_are_named(policy_folder, tmp_path, capsys, line, word):
    (tmp_path / "x.jsonl").write_text(line + "\n")
    assert main(["train", "irm", "--labels", str(tmp_path / "x.jsonl"), "--init", str(policy_folder), "--out", str(tmp_path / "o")]) == 2
    assert word in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_command_line_trains_scores_and_evaluates(policy_folder, tmp_path, capsys):
    rows = [
        SteppedSolution(
            problem_id=str(n), question=f"{n}?", steps=("good", "bad"), labels=(1, 0), labeller="x", split="held_out" if n < 2 else "train"
        )
        for n in range(6)
    ]
    labels = str(write(tmp_path / "steps.jsonl", rows))
    out = str(tmp_path / "prm")
    how = ["--epochs", "2", "--lora-rank", "2", "--lora-alpha", "4", "--bf16", "--gradient-checkpointing", "--save-every", "1"]
    assert main(["train", "prm", "--labels", labels, "--init", str(policy_folder), "--out", out, *how]) == 0
    assert json.loads((tmp_path / "prm" / "adapter" / "adapter_config.json").read_text())["r"] == 2
    (tmp_path / "in.jsonl").write_text('{"question": "1?", "text": "good\\nbad"}\n{"question": "1?", "steps": ["good"]}\n')
    assert main(["score", "prm", "--model", out, "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]) == 0
    scored = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [len(row["step_scores"]) for row in scored] == [2, 1] and scored[0]["score"] == min(scored[0]["step_scores"])
    assert main(["evaluate", "prm", "--model", out, "--labels", labels]) == 0
    assert main(["score", "irm", "--model", out, "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "o2")]) == 2
    assert "step_auroc" in capsys.readouterr().out


@pytest.mark.parametrize(
    "lengths, size, found",
    [
        ([5, 9, 10, 4, 8], 2, [[2, 1], [4], [0, 3]]),  # 5 is too short beside 8, 4 is not beside 5
        ([10, 10, 10], 2, [[0, 1], [2]]),
        ([100, 1, 1, 1], 4, [[0], [1, 2, 3]]),
        ([], 4, []),
    ],
)
def test_rows_scored_together_are_alike_in_length(lengths, size, found):
    assert list(batches_by_length(lengths, size)) == found


def test_a_score_does_not_hang_on_earlier_calls(monkeypatch):
    """A run that goes on has not made them, and other batches give other last digits."""
    batches = []
    monkeypatch.setattr(
        "reward_models.instruction.score_texts", lambda model, tokenizer, texts, *rest: batches.append(texts) or [0.0] * len(texts)
    )
    scorer = InstructionRewardModel(torch.nn.Identity(), None, SimpleNamespace(max_length=9))
    scorer.raw_scores(["a", "b"])
    assert scorer.raw_scores(["b", "c", "b"]) == [0.0] * 3 and batches == [["a", "b"], ["b", "c"]]
