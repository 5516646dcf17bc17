"""Files scored by the command line: part by part with the same bytes, after a kill too, and by the very function that RL uses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from reward_models import instruction, scoring
from reward_models.cli import main
from reward_models.config import ProcessModelConfig
from reward_models.instruction import Calibration, InstructionRewardModel, save_calibration
from reward_models.model import build
from reward_models.process import SETTINGS, ProcessRewardModel, aggregate
from rlef.config import ModelSection, RandomInit
from rlef.records import Problem
from rlef.rl.reward import RewardFunction
from rlef.rollout.base import Completion

ROOT = Path(__file__).parents[2]
TEXTS = ["Ben 3+4=7\nSo\n#### 7\nWait", "naïve — 数学\n\n#### 1", "a\u2028b", "", "#### 7\n" * 3, "No answer\nat all"]
LONG = "x " * 200


@pytest.fixture(scope="module")
def folders(policy_folder, tmp_path_factory):
    """Untrained models whose heads are so large that scores differ."""
    found = {}
    for kind, name in (("instruction", "irm"), ("process", "prm"), ("process", "other")):
        folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(len(found))
        model, tokenizer = build(kind, policy_folder, separator=None if name == "irm" else "<|step|>")
        with torch.no_grad():
            model.score.weight.mul_(30)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        found[name] = folder
        if name != "irm":
            (folder / SETTINGS).write_text(ProcessModelConfig(max_length=128).model_dump_json())
    save_calibration(Calibration((-0.5, 0.0, 0.5), 1.0, 0.05, 32), found["irm"])
    return found


def solutions(count=20):
    return [{"id": n, "question": f"Ann has {n} pens.", "text": TEXTS[n % len(TEXTS)]} for n in range(count)]


def write(file, rows):
    file.write_bytes(b"".join(row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    return file


def command(kind, model, file, out, *words):
    return ["score", kind, "--model", str(model), "--input", str(file), "--output", str(out), "--part-rows", "3", "--device", "cpu", *words]


def rows_of(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def test_rows_have_the_scores_that_the_models_give(folders, tmp_path, capsys):
    rows = [*solutions(), {"question": "q", "steps": ["a", "b"], "text": "not read"}, {"question": "q", "text": LONG}]
    file, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    assert main(command("prm", folders["prm"], file, out)) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"rows": 22, "output": str(out), "set_aside": 0, "truncated": 1, "replaced": 0}
    assert "scored part 8 of 8" in printed.err and sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]
    model = ProcessRewardModel.load(folders["prm"])
    for row, scored in zip(rows, rows_of(out), strict=True):
        steps = row.get("steps") or [line.strip() for line in row["text"].split("\n") if line.strip()]
        (one,) = model.score([row["question"]], [steps])
        least = None if one.truncated else pytest.approx(aggregate(one.scores), abs=1e-6)
        expected = {"step_scores": pytest.approx(list(one.scores), abs=1e-6), "score": least, "truncated": one.truncated}
        assert scored == row | expected
    assert scored["truncated"] and scored["step_scores"] == [] and scored["score"] is None


def test_instructions_too_long_are_flagged_and_each_text_of_a_part_is_forwarded_once(folders, tmp_path, capsys, monkeypatch):
    texts = ["Ann has 3 pens.", "Ann has 3 pens.", LONG, "Ben", "Ann has 3 pens."]
    file, out = write(tmp_path / "in.jsonl", [{"text": text, "score": 9} for text in texts]), tmp_path / "out.jsonl"
    seen, real = [], instruction.score_texts
    monkeypatch.setattr(
        instruction, "score_texts", lambda model, words, new, *rest: seen.append(len(new)) or real(model, words, new, *rest)
    )
    assert main(command("irm", folders["irm"], file, out)) == 0
    assert seen == [2, 2]
    told = json.loads(capsys.readouterr().out)
    assert told["truncated"] == 1 and told["replaced"] == 5
    expected = InstructionRewardModel.load(folders["irm"]).score(texts)
    assert [row["score"] for row in rows_of(out)] == pytest.approx(expected, abs=1e-6)
    assert [row["truncated"] for row in rows_of(out)] == [False, False, True, False, False]


def test_scores_are_those_that_the_reward_inside_rl_is_made_of(folders, tiny, tmp_path):
    """Same steps, same scores, same r_A and r_I for the text of a policy with another tokenizer."""
    _, tokenizer = tiny
    completions = []
    for row in solutions(12):
        ids = [*tokenizer.encode(row["text"], add_special_tokens=False), tokenizer.eos_token_id]
        completions.append(Completion(tuple(ids), (0.0,) * len(ids), True))
    problems = [Problem(id=str(row["id"]), question=row["question"]) for row in solutions(12)]
    models = {"prm": ProcessRewardModel.load(folders["prm"]), "irm": InstructionRewardModel.load(folders["irm"])}
    section = ModelSection(random=RandomInit())
    rewards = RewardFunction(**models, tokenizer=tokenizer, model=section, stops=(tokenizer.eos_token_id,)).score(problems, completions)
    texts = [tokenizer.decode(one.tokens, skip_special_tokens=True) for one in completions]
    file = write(tmp_path / "in.jsonl", [{"question": one.question, "text": text} for one, text in zip(problems, texts, strict=True)])
    asked = write(tmp_path / "asked.jsonl", [{"text": one.question} for one in problems])
    assert main(command("prm", folders["prm"], file, tmp_path / "out", "--answer-marker", section.answer_marker)) == 0
    assert main(command("irm", folders["irm"], asked, tmp_path / "r_i")) == 0
    assert any(one.steps_after_answer for one in rewards)
    for one, row, weight in zip(rewards, rows_of(tmp_path / "out"), rows_of(tmp_path / "r_i"), strict=True):
        assert list(one.step_scores) == pytest.approx(row["step_scores"], abs=1e-6)
        assert one.answer == (0 if one.zeroed else pytest.approx(row["score"], abs=1e-6))
        assert one.instruction == pytest.approx(weight["score"], abs=1e-6)


BAD = [
    (b"{broken\n", "Expecting property name"),
    (b"[1]\n", "needs question as text"),
    (b'{"question": 5, "text": "a"}\n', "needs question as text"),
    (b'{"question": "q", "steps": [1]}\n', "needs steps as a list"),
    (b'{"question": "q", "text": "\xff"}\n', "can't decode"),
    (b'{"question": "q", "text": "\\ud800"}\n', "surrogates not allowed"),
    (b"[" * 200_000 + b"\n", "nested too deeply"),
]


def test_lines_that_cannot_be_scored_are_counted_and_set_aside_with_their_number(folders, tmp_path, capsys):
    good = solutions(len(BAD))
    lines = [line for pair in zip(good, (bad for bad, _ in BAD), strict=True) for line in pair]
    ends = [b"\r\n", b'{"question": "q", "text": "no line break"}']
    file, out = write(tmp_path / "in.jsonl", [b"\xef\xbb\xbf\n", *lines, *ends]), tmp_path / "out"
    assert main(command("prm", folders["prm"], file, out)) == 0
    told, aside = json.loads(capsys.readouterr().out), rows_of(tmp_path / "out.set_aside.jsonl")
    assert told["rows"] == len(good) + 1 and told["set_aside"] == len(BAD)
    assert [row["id"] for row in rows_of(out)[:-1]] == list(range(len(good)))
    assert [row["line"] for row in aside] == [3 + 2 * place for place in range(len(BAD))]
    for row, (line, reason) in zip(aside, BAD, strict=True):
        assert reason in row["reason"] and row["text"] == line.decode(errors="backslashreplace").rstrip("\n")
    write(file, good)
    assert main(command("prm", folders["prm"], file, out)) == 0 and not (tmp_path / "out.set_aside.jsonl").exists()


def test_nothing_but_bad_lines_is_a_mistake_that_no_model_is_loaded_for(tmp_path, capsys):
    file = write(tmp_path / "in.jsonl", [b"\n", {"text": "a"}, b"{broken\n"])
    assert main(command("prm", "nowhere", file, tmp_path / "out")) == 2
    assert "line 2: needs question" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.set_aside.jsonl"] and len(rows_of(tmp_path / "out.set_aside.jsonl")) == 2


class Stopped(Exception):
    pass


@pytest.fixture
def stopped(monkeypatch):
    """stopped(parts) -> the parts that are scored from now on; after so many of them it raises."""
    real = scoring._scored

    def after(count):
        made = []

        def score(rows, *rest):
            if len(made) == count:
                raise Stopped
            made.append([row["question"] for row in rows])
            return real(rows, *rest)

        monkeypatch.setattr(scoring, "_scored", score)
        return made

    return after


def test_a_start_that_ended_early_goes_on_and_only_whole_parts_count(folders, tmp_path, stopped):
    file = write(tmp_path / "in.jsonl", solutions())
    assert main(command("prm", folders["prm"], file, tmp_path / "whole")) == 0
    stopped(4)
    words = command("prm", folders["prm"], file, tmp_path / "out")
    with pytest.raises(Stopped):
        main(words)
    parts = sorted((tmp_path / "out.parts").iterdir())
    assert len(parts) == 4 and not (tmp_path / "out").exists()
    parts[0].write_bytes(parts[0].read_bytes().replace(b"Ann", b"Ben"))
    parts[1].write_bytes(parts[1].read_bytes()[:-20])
    (tmp_path / "out.parts" / "half.jsonl.partial").write_text("{")
    made = stopped(99)
    assert main(words) == 0
    assert len(made) == 7 - 2  # seven parts, of which two were whole
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes() and not (tmp_path / "out.parts").exists()


def test_what_was_made_of_another_input_or_by_another_model_is_not_taken(folders, tmp_path, stopped):
    file = write(tmp_path / "in.jsonl", solutions())
    for change in ("model", "settings", "input"):
        out = tmp_path / change
        stopped(6)
        with pytest.raises(Stopped):
            main(command("prm", folders["prm"], file, out))
        made, rows, model, words = stopped(99), solutions(), folders["prm"], []
        if change == "model":
            model = folders["other"]
        elif change == "settings":
            words = ["--delimiter", " "]
        else:
            rows[0]["question"] = "Ann has no pens."
        again = write(tmp_path / "again.jsonl", rows)
        assert main(command("prm", model, again, out, *words)) == 0
        assert len(made) == (2 if change == "input" else 7)  # of the changed input one part is another; the seventh was never made
        assert main(command("prm", model, again, tmp_path / "fresh", *words)) == 0
        assert out.read_bytes() == (tmp_path / "fresh").read_bytes()


def test_an_input_that_changes_meanwhile_is_told(folders, tmp_path, monkeypatch, capsys):
    file, real = write(tmp_path / "in.jsonl", solutions()), scoring._scored
    monkeypatch.setattr(scoring, "_scored", lambda *given: write(file, solutions(3) * 9) and real(*given))
    assert main(command("prm", folders["prm"], file, tmp_path / "out")) == 2
    assert "changed while it was scored" in capsys.readouterr().err and not (tmp_path / "out").exists()


def start(words, ranks=1):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "reward_models", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_killed_run_begun_again_on_two_ranks_leaves_the_bytes_of_one_process(folders, tmp_path):
    rows = [*solutions(300), b"{broken\n"]
    file = write(tmp_path / "in.jsonl", rows)
    assert main(command("prm", folders["prm"], file, tmp_path / "whole")) == 0
    words = command("prm", folders["prm"], file, tmp_path / "out")
    killed = start(words)
    parts = tmp_path / "out.parts"
    while len(list(parts.glob("*.jsonl")) if parts.is_dir() else []) < 5:
        assert killed.poll() is None
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert 5 <= len(list(parts.glob("*.jsonl"))) < 100 and not (tmp_path / "out").exists()
    two = start(words, ranks=2)
    out, err = two.communicate(timeout=300)
    assert two.returncode == 0, err[-4000:]
    assert [json.loads(line)["rows"] for line in out.splitlines()] == [300]
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
    assert rows_of(tmp_path / "out.set_aside.jsonl")[0]["line"] == 301 and not parts.exists()
