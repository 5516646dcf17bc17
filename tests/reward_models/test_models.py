"""Scores by padding, batch and prefix; training through the inference API; what is saved loads anywhere."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from reward_models.config import InstructionModelConfig, ProcessModelConfig
from reward_models.data import collate_lists, collate_steps, instruction_rows, step_columns, step_rows
from reward_models.errors import UserError
from reward_models.instruction import CALIBRATION, Calibration, InstructionRewardModel, save_calibration
from reward_models.losses import IGNORE
from reward_models.metrics import auroc
from reward_models.model import build
from reward_models.process import ProcessRewardModel, aggregate
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
    assert collate_steps(data, 0)["labels"].dtype == torch.float32  # fault 2: never bool, where -100 would be True


def test_aggregates():
    assert [aggregate((0.5, 0.4, 0.8), how) for how in ("min", "product", "mean", "last")] == pytest.approx([0.4, 0.16, 1.7 / 3, 0.8])
    assert aggregate(()) == 0
    with pytest.raises(UserError):
        aggregate((0.5,), "median")


@pytest.mark.parametrize("language_weight", [0.0, 0.7])
def test_8_prm_gradient_is_invariant_to_micro_batch_and_padding(prm, language_weight):
    rows = [
        SteppedSolution(problem_id="p", question=q, steps=tuple(s), labels=(1.0,) * len(s), labeller="x")
        for q, s in zip(QUESTIONS, STEPS, strict=True)
    ]
    data, _ = step_rows(rows, prm.tokenizer, separator="<|step|>", max_length=200, mask_after_first_error=False)
    model = prm.model.double()
    torch.manual_seed(0)
    head = torch.randn(len(prm.tokenizer), model.config.hidden_size) if language_weight else None
    gradients = []
    for size in (3, 1):
        model.zero_grad()
        for start in range(0, 3, size):
            part = collate_steps(data[start : start + size], 0)
            (steps_loss(model, part, balance=(1.0, 1.0), head=head, language_weight=language_weight) / 8).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert (gradients[0] - gradients[1]).abs().max() < 1e-10 and gradients[0].abs().max() > 1e-4


def ranked(seed, texts, **fields):
    items = tuple(
        RankedItem(text=text, rank=rank, scores={"precision": 1.0 - rank / 10}, kind="bad" if rank == 2 else None)
        for rank, text in enumerate(texts)
    )
    return RankedList(seed_id=str(seed), items=items, labeller="x", **fields)


def test_8_irm_gradient_is_invariant_to_micro_batch(policy_folder):
    model, tokenizer = build("instruction", policy_folder)
    model = model.double()
    lists = [ranked(seed, [f"good {seed}", f"fair {seed} " * seed, "bad"]) for seed in range(1, 4)]
    data = instruction_rows(lists, tokenizer, max_length=64, anchors=2, seed=0)
    gradients = []
    for size in (3, 1):
        model.zero_grad()
        for start in range(0, 3, size):
            (
                lists_loss(model, collate_lists(data[start : start + size], tokenizer.pad_token_id), settings=InstructionModelConfig()) / 3
            ).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert (gradients[0] - gradients[1]).abs().max() < 1e-10 and gradients[0].abs().max() > 1e-4


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
    assert irm.raw_scores(texts) == raw  # 23: cached equals fresh
    (tmp_path / CALIBRATION).unlink()
    with pytest.raises(UserError, match="calibration"):
        InstructionRewardModel.load(tmp_path)


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
    plain = AutoModelForTokenClassification.from_pretrained(tmp_path / "prm").eval()
    read = step_columns(loaded.tokenizer, rows[0].question, rows[0].steps, "<|step|>")
    with torch.no_grad():
        logits = plain(torch.tensor([read.ids])).logits[0, read.columns, 0]
    assert torch.sigmoid(logits).tolist() == pytest.approx(scores[:2], abs=1e-5)


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
    from reward_models.cli import main

    (tmp_path / "x.jsonl").write_text(line + "\n")
    assert main(["train", "irm", "--labels", str(tmp_path / "x.jsonl"), "--init", str(policy_folder), "--out", str(tmp_path / "o")]) == 2
    assert word in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_command_line_trains_scores_and_evaluates(policy_folder, tmp_path, capsys):
    from reward_models.cli import main

    rows = [
        SteppedSolution(
            problem_id=str(n), question=f"{n}?", steps=("good", "bad"), labels=(1, 0), labeller="x", split="held_out" if n < 2 else "train"
        )
        for n in range(6)
    ]
    labels = str(write(tmp_path / "steps.jsonl", rows))
    out = str(tmp_path / "prm")
    assert main(["train", "prm", "--labels", labels, "--init", str(policy_folder), "--out", out, "--epochs", "2"]) == 0
    (tmp_path / "in.jsonl").write_text('{"question": "1?", "text": "good\\nbad"}\n{"question": "1?", "steps": ["good"]}\n')
    assert main(["score", "prm", "--model", out, "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]) == 0
    scored = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [len(row["step_scores"]) for row in scored] == [2, 1] and scored[0]["score"] == min(scored[0]["step_scores"])
    assert main(["evaluate", "prm", "--model", out, "--labels", labels]) == 0
    assert main(["score", "irm", "--model", out, "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "o2")]) == 2
    assert "step_auroc" in capsys.readouterr().out
