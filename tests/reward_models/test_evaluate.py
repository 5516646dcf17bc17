"""The whole evaluation by value against brute force, with models that say what a table holds; and the files it runs on."""

from __future__ import annotations

import itertools
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest

from reward_models import cli, evaluate
from reward_models.cli import main
from reward_models.config import ProcessModelConfig
from reward_models.errors import UserError
from reward_models.evaluate import evaluate_instruction, evaluate_process, fit_threshold
from reward_models.formats.files import read_labels
from reward_models.gate import LEAST, MOST
from reward_models.metrics import kendall_tau, reliability
from reward_models.pages import as_text, page, tables
from reward_models.probes import PROBES, probe
from reward_models.process import StepScores
from reward_models.records import RankedItem, RankedList, SteppedSolution, file_digest, is_held_out
from reward_models.statistics import bootstrap_intervals


class Judge:
    """A process model whose score of a step is a function of the question, the steps so far and its place."""

    def __init__(self, score):
        self.judge, self.settings, self.form = score, ProcessModelConfig(), None

    def score(self, questions, steps, batch_size=64):
        return [
            StepScores((), truncated=True)
            if "long" in question
            else StepScores(tuple(self.judge(question, parts, k) for k in range(len(parts))))
            for question, parts in zip(questions, steps, strict=True)
        ]


class Ranker:
    def __init__(self, score, slope=0.7):
        self.raw_scores, self.calibration = lambda texts: [score(text) for text in texts], SimpleNamespace(slope=slope)


def noisy(question, parts, place):
    return (hash_of(question + parts[place]) % 97 + (30 if "good" in parts[place] else 0)) / 130


def hash_of(text):
    return sum((place + 7) * ord(letter) for place, letter in enumerate(text))


@pytest.fixture(scope="module")
def solutions():
    rng = np.random.default_rng(0)
    rows = []
    for problem, sample in itertools.product(range(30), range(4)):
        labels = [float(value) for value in rng.integers(0, 2, 3)]
        steps = tuple(f"{'good' if label else 'bad'} {problem} {sample} {place}" for place, label in enumerate(labels))
        answer = "ab"[int(rng.integers(2))] if rng.random() < 0.9 else None
        rows.append(
            SteppedSolution(
                problem_id=str(problem), question=f"q{problem}", steps=steps, labels=tuple(labels), labeller="x", depth=problem % 2, answer=answer,
                correct=answer == "a",
            )
        )  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def measured(solutions):
    return evaluate_process(Judge(noisy), solutions, threshold=0.4)


def test_step_measures_are_those_of_brute_force_up_to_the_first_error(solutions, measured):
    result = measured
    kept, hits = [], {True: [], False: []}
    for row in solutions:
        scores = [noisy(row.question, row.steps, place) for place in range(3)]
        error = row.labels.index(0.0) if 0.0 in row.labels else -1
        kept += list(zip(row.labels, scores, strict=True))[: error + 1 if error >= 0 else 3]
        hits[error < 0].append(next((place for place, score in enumerate(scores) if score < 0.4), -1) == error)
    right, wrong = ([score for label, score in kept if label == value] for value in (1, 0))
    auroc = np.mean([(high > low) + 0.5 * (high == low) for high in right for low in wrong])
    clean, erroneous = np.mean(hits[True]), np.mean(hits[False])
    assert result["steps"] == len(kept) and result["held_out_solutions"] == 120 and result["truncated"] == 0
    assert result["step_auroc"] == pytest.approx(auroc)
    assert result["step_accuracy"] == pytest.approx(np.mean([(score >= 0.5) == (label == 1) for label, score in kept]))
    assert result["balanced_accuracy"] == pytest.approx((np.mean(np.array(right) >= 0.5) + np.mean(np.array(wrong) < 0.5)) / 2)
    assert result["brier"] == pytest.approx(np.mean([(label - score) ** 2 for label, score in kept]))
    assert result["first_error_f1"] == pytest.approx(2 * clean * erroneous / (clean + erroneous))
    # Average precision: the precision at each error, by falling suspicion.
    suspects = sorted(kept, key=lambda one: one[1])
    precisions = []
    for score in sorted(wrong):
        upto = [label for label, other in suspects if other <= score]
        precisions.append(upto.count(0.0) / len(upto))
    assert result["auprc_errors"] == pytest.approx(np.mean(precisions))
    counts = result["confusion"]
    assert counts["right_called_right"] == sum(score >= 0.4 for score in right) and counts["wrong_called_wrong"] == sum(
        score < 0.4 for score in wrong
    )
    assert sum(counts.values()) == len(kept)


def test_a_score_that_is_all_but_0_is_no_other_one_to_the_errors_precision():
    rows = [
        SteppedSolution(problem_id="p", question="q", steps=("good", "bad"), labels=(1.0, 0.0), labeller="x"),
        SteppedSolution(problem_id="o", question="q", steps=("good", "good"), labels=(1.0, 1.0), labeller="x"),
    ]
    assert evaluate_process(Judge(lambda _, parts, k: 1e-17 if parts[k] == "good" else 1e-20), rows, threshold=0.5)["auprc_errors"] == 1


def test_equal_mass_bins_hold_all_rows_and_make_up_the_calibration_error(measured):
    result = measured
    bins = result["reliability"]
    sizes = [one["count"] for one in bins]
    assert len(bins) == 15 and sum(sizes) == result["steps"] and max(sizes) - min(sizes) <= 1
    assert all(one["to"] <= two["from"] for one, two in itertools.pairwise(bins))
    assert result["ece"] == pytest.approx(sum(one["count"] * abs(one["share"] - one["probability"]) for one in bins) / result["steps"])
    assert reliability([], []) == [] and reliability([1, 0], [0.9, 0.1], bins=1) == [
        {"from": 0.1, "to": 0.9, "probability": 0.5, "share": 0.5, "count": 2}
    ]


def test_every_metric_that_a_gate_may_name_is_measured_and_has_an_interval_about_it(measured):
    instruction = evaluate_instruction(Ranker(lambda text: hash_of(text) % 13), lists())
    for kind, result in (("prm", measured), ("irm", instruction)):
        for name in (*LEAST[kind], *MOST[kind]):
            low, high = result["intervals"][name]
            assert low <= result[name] <= high and high > low, name


def test_intervals_are_over_problems_not_rows():
    """Ten copies of each problem's solution say no more than one."""
    groups = [[float(place % 2)] for place in range(40)]

    def mean(drawn):
        return {"mean": float(np.mean([value for group in drawn for value in group]))}

    once, copied = (bootstrap_intervals(many, mean)["mean"] for many in (groups, [group * 10 for group in groups]))
    assert once == copied and 0.2 < once[1] - once[0] < 0.4
    assert all(map(math.isnan, bootstrap_intervals([], mean_or_nan)["mean"]))


def test_lists_of_one_seed_are_drawn_together():
    rows = lists()
    once, copied = (evaluate_instruction(Ranker(lambda text: hash_of(text) % 13), many)["intervals"] for many in (rows, rows * 4))
    assert once["pair_accuracy"] == pytest.approx(copied["pair_accuracy"])


def mean_or_nan(drawn):
    return {"mean": math.nan}


def lists():
    rng = np.random.default_rng(1)
    return [
        RankedList(
            seed_id=str(seed), labeller="x",
            items=tuple(
                RankedItem(text=f"{seed} {rank} {'w' * int(rng.integers(1, 9))}", rank=min(rank, 2), scores={"precision": 1 - rank / 10}, kind="bad" if rank > 1 else None)
                for rank in range(4)
            ),
        )
        for seed in range(25)
    ]  # fmt: skip


def test_list_measures_are_those_of_brute_force():
    rows, score = lists(), lambda text: hash_of(text) % 13
    result = evaluate_instruction(Ranker(score), rows)
    pairs = [(one, two) for row in rows for one in row.items for two in row.items if one.rank < two.rank]
    hits = [score(one.text) > score(two.text) for one, two in pairs]
    assert result["pairs"] == len(pairs) and result["pair_accuracy"] == pytest.approx(np.mean(hits)) and result["held_out_lists"] == 25
    for gap in (1, 2):
        assert result["by_gap"][str(gap)] == pytest.approx(
            np.mean([hit for hit, (one, two) in zip(hits, pairs, strict=True) if two.rank - one.rank == gap])
        )
    alike = [
        hit
        for hit, (one, two) in zip(hits, pairs, strict=True)
        if abs(len(one.text) - len(two.text)) <= 0.1 * max(len(one.text), len(two.text))
    ]
    assert result["length_matched_accuracy"] == pytest.approx(np.mean(alike))
    assert result["kendall_tau"] == pytest.approx(
        np.mean([kendall_tau([i.rank for i in row.items], [score(i.text) for i in row.items]) for row in rows])
    )
    items = [(row.seed_id, 1 - place / 10, score(item.text)) for row in rows for place, item in enumerate(row.items)]
    across = [
        one[2] != other[2] and (one[2] > other[2]) == (one[1] > other[1])
        for place, one in enumerate(items)
        for other in items[place + 1 :: 7]
        if one[0] != other[0] and one[1] != other[1]
    ]
    assert result["cross_seed_accuracy"] == pytest.approx(np.mean(across))
    assert evaluate_instruction(Ranker(lambda text: 0.0), rows[::-1])["cross_seed_accuracy"] == 0  # no pair is in order
    texts = [item.text for row in rows for item in row.items]
    assert result["length_correlation"] == pytest.approx(np.corrcoef([score(text) for text in texts], [len(text) for text in texts])[0, 1])


def test_what_rows_do_not_say_is_not_measured(solutions, measured):
    plain = [row.model_copy(update={"answer": None, "correct": None}) for row in solutions[:20]]
    result = evaluate_process(Judge(noisy), plain, threshold=0.4)
    assert not {"curves", "majority", "best_of", "within_problem"} & set(result)
    told = [row.model_copy(update={"answer": None}) for row in solutions[:20]]  # as ProcessBench: right or wrong, and no answer
    result = evaluate_process(Judge(noisy), told, threshold=0.4)
    assert "within_problem" in result and not {"curves", "majority", "best_of"} & set(result)
    assert measured["curves"]["problems"] == 30


def test_a_solution_too_long_is_counted_and_enters_no_measure_of_steps(solutions, measured):
    row = solutions[0].model_copy(update={"question": "long", "problem_id": "long"})
    result = evaluate_process(Judge(noisy), [*solutions, row], threshold=0.4)
    assert result["truncated"] == 1 and result["held_out_solutions"] == 121
    assert result["step_auroc"] == measured["step_auroc"] and result["steps"] == measured["steps"]


def test_only_a_solution_judged_to_its_end_is_known_to_have_no_error():
    """ProcessBench's F1: where nobody judged a step, a model that suspects it may be right."""
    rows = [
        SteppedSolution(problem_id="p", question="q", steps=("good", "bad"), labels=labels, labeller="x")
        for labels in ((1.0, 0.0), (1.0, None), (None, None))
    ]
    whole = SteppedSolution(problem_id="o", question="q", steps=("good", "good"), labels=(1.0, 1.0), labeller="x")
    careful = Judge(lambda _, parts, k: 0.9 if parts[k] == "good" else 0.1)
    assert evaluate_process(careful, [*rows, whole], threshold=0.5)["first_error_f1"] == 1
    assert math.isnan(evaluate_process(careful, rows, threshold=0.5)["first_error_f1"])  # none is known to be without an error


def test_the_threshold_comes_from_other_rows_than_those_measured(solutions, monkeypatch):
    """Fault 11."""
    model = Judge(noisy)
    threshold = fit_threshold(model, solutions[:60])
    monkeypatch.setattr(evaluate.metrics, "best_threshold", lambda *_: pytest.fail("fitted on what is measured"))
    assert evaluate_process(model, solutions[60:], threshold=threshold)["threshold"] == threshold


# ------------------------------------------------------------------------------------------------ probes


def test_probes_change_steps_as_they_say():
    import random

    steps, rng = ("a", "b", "c"), random.Random(0)
    changed = {name: change(steps, rng) for name, change in PROBES.items()}
    assert changed["repeated"] == ["a", "a", "a", "a", "b", "c"] and changed["truncated"] == ["a", "b"] and changed["last_alone"] == ["c"]
    assert changed["empty_steps"] == ["a", "", "b", "", "c", ""]
    assert sorted(changed["shuffled"]) == list(steps) != changed["shuffled"]
    alone = {name for name, change in PROBES.items() if change(("a",), rng) is None}
    assert alone == {"shuffled", "truncated", "last_alone"} and PROBES["shuffled"](("a", "a"), rng) is None


def probed(model, solutions):
    scores = model.score([row.question for row in solutions], [row.steps for row in solutions])
    return probe(model, [(row, min(one.scores)) for row, one in zip(solutions, scores, strict=True)])


def test_a_model_that_can_be_hacked_shows_it(solutions):
    """One that believes a solution the more the shorter it is, one that falls for repetition, and one that reads each step alone."""
    shorter = probed(Judge(lambda question, parts, place: 1 / len(parts)), solutions)
    assert shorter["truncated"]["before"] == pytest.approx(1 / 3) and shorter["truncated"]["change"]["mean"] == pytest.approx(1 / 6)
    assert shorter["last_alone"]["raised"] == 1 and shorter["repeated"]["raised"] == 0 and shorter["repeated"]["solutions"] == 120
    longer = probed(Judge(lambda question, parts, place: min(0.9, len(parts) / 10)), solutions)
    assert longer["repeated"]["change"]["mean"] == pytest.approx(0.3) and longer["empty_steps"]["raised"] == 1
    each = probed(Judge(lambda question, parts, place: 0.2 if "bad" in parts[place] else 0.9), solutions)
    assert each["shuffled"]["change"]["mean"] == each["repeated"]["change"]["mean"] == each["empty_steps"]["change"]["mean"] == 0
    long = [solutions[0].model_copy(update={"question": "long"})]
    assert probe(Judge(noisy), [(long[0], 0.5)]) == {} and evaluate_process(Judge(noisy), long, threshold=0.5)["probes"] == {}


def test_probes_score_no_solution_a_second_time(solutions):
    asked = []
    judge = Judge(noisy)
    plain = judge.score
    judge.score = lambda questions, steps, batch_size: asked.append(len(questions)) or plain(questions, steps)
    evaluate_process(judge, solutions, threshold=0.4, probed=10)
    assert asked == [len(solutions)] + [10] * len(PROBES)


# ------------------------------------------------------------------------------------------------ pages


def test_names_of_others_do_not_act_in_a_terminal():
    assert as_text(("t", ["", "measured"], [["a\x1b[2J\nb", "0.500"]])).splitlines()[3] == "a\\x1b[2J b     0.500"


def test_tables_and_page_say_what_was_found_and_need_no_network(measured):
    result = measured
    text = "\n".join(as_text(table) for table in tables(result))
    assert re.search(r"step_auroc +0\.\d{3} +0\.\d{3} to 0\.\d{3}", text) and "pass@N" in text and "steps at threshold 0.4" in text
    assert re.search(r"last alone +120", text) is None and "last alone" in text  # a hundred are probed
    written = page("prm on <a&b>", result)
    assert written.count("<svg") == 3 and "&lt;a&amp;b&gt;" in written and "<a&b>" not in written and "nan" not in written
    assert "http" not in written and "<script" not in written and "src=" not in written
    irm = page("irm", evaluate_instruction(Ranker(lambda text: hash_of(text) % 13), lists()))
    assert irm.count("<svg") == 1 and "by rank gap" in irm


# ------------------------------------------------------------------------------------------------ files of other projects

PROCESSBENCH = [
    {"id": "gsm8k-0", "generator": "x", "problem": "q", "steps": ["good a", "bad b", "c"], "final_answer_correct": False, "label": 1},
    {"id": "gsm8k-1", "generator": "x", "problem": "r", "steps": ["good a", "good b"], "final_answer_correct": True, "label": -1},
]
PRM800K = {
    "labeler": "x", "question": {"problem": "1+1?", "ground_truth_answer": "2"},
    "label": {"finish_reason": "solution", "steps": [
        {"completions": [{"text": "good 1", "rating": 1}, {"text": "bad 1", "rating": -1}], "human_completion": None, "chosen_completion": 0},
        {"completions": [{"text": "good 2", "rating": 0}], "human_completion": None, "chosen_completion": 0},
    ]},
}  # fmt: skip
REWARDBENCH = [
    {"prompt": "Sort.", "chosen": "good one", "rejected": "bad", "chosen_model": "x", "rejected_model": "y", "subset": "chat", "id": 1},
    {"prompt": "Add.", "chosen": ["good two"], "rejected": ["bad", "good three", "worse"], "subset": "math", "id": 2},
]


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def models(monkeypatch):
    """The command line with models from this file in place of loaded ones."""
    from reward_models.instruction import InstructionRewardModel
    from reward_models.process import ProcessRewardModel

    monkeypatch.setattr(ProcessRewardModel, "load", lambda *_args, **_named: Judge(noisy))
    monkeypatch.setattr(InstructionRewardModel, "load", lambda folder: Ranker(lambda text: float("good" in text)))


def said(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_processbench_runs_as_it_is_on_all_rows_and_what_cannot_be_read_is_named(models, tmp_path, capsys):
    file = write(tmp_path / "p.jsonl", [PROCESSBENCH[0], "{broken", PROCESSBENCH[1], PROCESSBENCH[0] | {"label": 9}])
    assert main(["evaluate", "prm", "--model", "m", "--labels", file, "--threshold", "0.3"]) == 0
    result = said(capsys)
    assert result["shape"] == "processbench" and result["held_out_solutions"] == 2 and result["steps"] == 4
    assert result["set_aside"] == 2 and [line.split(":")[0] for line in result["set_aside_first"]] == ["line 2", "line 4"]
    assert result["threshold"] == 0.3 and result["first_error_f1"] is not None


def test_of_the_very_file_that_it_was_trained_on_a_model_is_measured_on_the_held_out_rows(models, tmp_path, capsys):
    rows = [PROCESSBENCH[number % 2] | {"problem": f"q{number}"} for number in range(40)]
    file, other = write(tmp_path / "p.jsonl", rows), write(tmp_path / "other.jsonl", rows[::-1])
    (tmp_path / "metrics.json").write_text(json.dumps({"labels_sha256": file_digest(file)}))
    counts = {}
    for name in (file, other):
        assert main(["evaluate", "prm", "--model", str(tmp_path), "--labels", name]) == 0
        counts[name] = said(capsys)["held_out_solutions"]
    assert counts == {file: sum(is_held_out(row) for row in read_labels(file, "prm").rows), other: 40} and 0 < counts[file] < 20


def test_prm800k_and_rewardbench_run_as_they_are(models, tmp_path, capsys):
    assert main(["evaluate", "prm", "--model", "m", "--labels", write(tmp_path / "p.jsonl", [PRM800K])]) == 0
    result = said(capsys)
    assert (result["shape"], result["held_out_solutions"], result["steps"]) == ("prm800k", 2, 3)
    assert main(["evaluate", "irm", "--model", "m", "--labels", write(tmp_path / "r.jsonl", REWARDBENCH)]) == 0
    result = said(capsys)
    assert (result["shape"], result["held_out_lists"], result["pairs"]) == ("preference", 2, 4) and result["pair_accuracy"] == 0.75
    assert result["by_flaw"] == {"chat": 1.0, "math": pytest.approx(2 / 3)} and result["cross_seed_accuracy"] is None


def test_a_preference_rows_texts_are_what_is_scored():
    row = {"prompt": [], "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "rejected": "b"}
    from reward_models.formats.lists import read_preference

    (found,) = read_preference(row)
    assert [(item.text, item.rank) for item in found.items] == [("a", 0), ("b", 1)]
    for bad in ({"chosen": "a", "rejected": 1}, {"chosen": [], "rejected": "b"}, {"chosen": " ", "rejected": "b"}, {"chosen": "a"}):
        with pytest.raises(ValueError, match="is no text"):
            read_preference(bad)


def test_rows_of_one_conversation_are_of_one_seed():
    """Or training and held-out rows would share it."""
    from reward_models.formats.lists import read_preference

    asked, other = [{"role": "user", "content": "q"}], [{"role": "user", "content": "r"}]

    def seed(answer, opening, prompt):
        said = {"role": "assistant", "content": answer}
        row = {"chosen": [*opening, said], "rejected": [*opening, said]} | ({"prompt": prompt} if prompt else {})
        return read_preference(row)[0].seed_id

    assert seed("a", [], asked) == seed("b", [], asked) == seed("c", asked, None) != seed("a", [], other)
    assert seed("a", [], None) != seed("b", [], None)


def test_a_file_without_one_good_row_is_a_mistake(tmp_path):
    file = write(tmp_path / "p.jsonl", [PROCESSBENCH[0] | {"label": 9}])
    with pytest.raises(UserError, match="no row of shape processbench could be read.*line 1: label 9"):
        read_labels(file, "prm")


def test_what_no_reader_can_read_is_named(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps(PROCESSBENCH[0]) + "\n" + "[" * 100_000 + "\n")
    read = read_labels(file, "prm")
    assert len(read.rows) == 1 and read.set_aside[0].startswith("line 2: ") and len(read.set_aside) == 1
    file.write_text("[" * 100_000)
    with pytest.raises(UserError, match="line 1"):
        read_labels(file, "prm")
    file.write_bytes(json.dumps(PROCESSBENCH[0]).encode() + b"\n\xe9\n")
    with pytest.raises(UserError, match="not UTF-8"):
        read_labels(file, "prm")


# ------------------------------------------------------------------------------------------------ the command line


def test_require_is_a_gate(models, tmp_path, capsys):
    command = ["evaluate", "prm", "--model", "m", "--labels", write(tmp_path / "p.jsonl", PROCESSBENCH)]
    assert main([*command, "--require", "step_auroc=0", "ece=1"]) == 0
    capsys.readouterr()
    assert main([*command, "--require", "within_problem=1", "--require", "brier=0"]) == 2
    shown = capsys.readouterr()
    assert (
        "below its gate on 2 held-out solutions" in shown.err
        and "within_problem" in shown.err
        and "brier 0.041 (95 %" in shown.err
        and "fix:" in shown.err
    )
    assert json.loads(shown.out.splitlines()[-1])["held_out_solutions"] == 2
    assert main([*command, "--require", "step_aurok=0.5"]) == 2 and "did you mean `step_auroc`" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--require", "step_auroc"])


def test_curves_come_before_the_last_line_and_pages_go_where_they_are_asked(models, solutions, tmp_path, capsys):
    file = write(tmp_path / "steps.jsonl", [row.model_copy(update={"split": "held_out"}).model_dump() for row in solutions])
    assert main(["evaluate", "prm", "--model", "m", "--labels", file, "--curves", "--out", str(tmp_path / "out")]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert "hack probes" in lines and "over-optimisation" in lines and json.loads(last)["curves"]["problems"] == 30
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == json.loads(last)
    assert "<svg" in (tmp_path / "out" / "evaluation.html").read_text()


def test_the_threshold_of_the_command_line(models, solutions, tmp_path, capsys):
    held = write(tmp_path / "held.jsonl", [row.model_copy(update={"split": "held_out"}).model_dump() for row in solutions[:12]])
    other = write(tmp_path / "other.jsonl", [row.model_dump() for row in solutions[12:40]])
    command = ["evaluate", "prm", "--model", str(tmp_path), "--labels", held]
    assert main(command) == 0 and said(capsys)["threshold"] == 0.5
    (tmp_path / "metrics.json").write_text('{"threshold": 0.35}')
    assert main(command) == 0 and said(capsys)["threshold"] == 0.35
    assert main([*command, "--threshold-from", other]) == 0
    assert said(capsys)["threshold"] == fit_threshold(Judge(noisy), solutions[12:40])
    assert main([*command, "--threshold-from", held]) == 2 and "the very solutions" in capsys.readouterr().err
    assert main(["evaluate", "irm", "--model", "m", "--labels", held, "--threshold", "0.5"]) == 2
    assert cli.main([*command, "--out", held]) == 2


def test_an_outcome_models_threshold_is_fixed_on_whole_solutions_and_never_on_those_measured(solutions, monkeypatch, tmp_path, capsys):
    from reward_models.process import ProcessRewardModel

    class Whole(Judge):
        def score(self, questions, steps, batch_size=64):
            return [StepScores(one.scores[-1:]) for one in super().score(questions, steps)]

    whole = Whole(noisy)
    whole.settings = ProcessModelConfig(outcome=True)
    monkeypatch.setattr(ProcessRewardModel, "load", lambda *_args, **_named: whole)
    held = write(tmp_path / "held.jsonl", [row.model_copy(update={"split": "held_out"}).model_dump() for row in solutions[:12]])
    other = write(tmp_path / "other.jsonl", [row.model_dump() for row in solutions[12:40]])
    command = ["evaluate", "orm", "--model", str(tmp_path), "--labels", held]
    assert main([*command, "--threshold-from", other]) == 0 and 0 < said(capsys)["threshold"] < 1
    assert main([*command, "--threshold-from", held]) == 2 and "the very solutions" in capsys.readouterr().err
