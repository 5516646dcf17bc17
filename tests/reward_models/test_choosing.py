"""Best-of-N and votes by hand-made scores, and through the command on a real tiny model."""

from __future__ import annotations

import json

import pytest
import torch

from reward_models.choosing import answer_of, choose
from reward_models.cli import main
from reward_models.config import ProcessModelConfig
from reward_models.model import build
from reward_models.process import SETTINGS, ProcessRewardModel, StepScores


class Counted:
    """A step's score is the number it ends with, a tenth each; a step that says "long" is too long."""

    def score(self, questions, steps, batch_size):
        self.asked = list(zip(questions, steps, strict=True))
        return [StepScores((), truncated=True) if "long" in one else StepScores(tuple(int(step[-1]) / 10 for step in one)) for one in steps]


def test_scores_votes_and_the_best_by_hand():
    prm = Counted()
    first = ["a9\n#### 8", "b3\n#### 4", "b4\n#### 4.0\nc0", "b9", "long\n#### 4"]
    one, none = choose(prm, ["q", "r"], [first, ["long", "x1"]])
    assert one.step_scores == [[0.9, 0.8], [0.3, 0.4], [0.4, 0.0], [0.9], None]
    assert one.scores == [0.8, 0.3, 0.0, 0.9, None]
    assert (one.best, one.best_answer) == (0, "8")  # "b9" has no answer
    assert one.weighted_vote == "8" and one.majority == "4"  # 0.8 against 0.3 + 0.0 + 0; one against three
    assert (none.best, none.best_answer, none.weighted_vote, none.majority) == (None, None, None, None)
    assert prm.asked[2] == ("q", ["b4", "#### 4.0"])  # up to the answer's line


def test_of_equal_scores_the_first_is_the_best():
    (one,) = choose(Counted(), ["q"], [["#### 5\n", "a5\n#### 5", "a5\n#### 15"]])
    assert (one.best, one.best_answer) == (0, "5")


@pytest.mark.parametrize(
    "text,answer",
    [
        ("#### 1,200.50", "1200.5"), ("#### 1200.5.", "1200.5"), ("#### -0", "-0"), ("####  x  y ", "x y"), ("#### ", None), ("7", None),
        ("#### 7\n#### 8", "7"), ("#### 1e5000", "1e5000"), ("#### NaN", "NaN"), ("#### 1E+2", "100"),
    ],
)  # fmt: skip
def test_answers(text, answer):
    assert answer_of(text, "####") == answer


def test_the_command(policy_folder, tmp_path, capsys):
    torch.manual_seed(1)
    model, tokenizer = build("process", policy_folder, separator="<|step|>")
    model.save_pretrained(tmp_path / "prm")
    tokenizer.save_pretrained(tmp_path / "prm")
    (tmp_path / "prm" / SETTINGS).write_text(ProcessModelConfig(max_length=96).model_dump_json())
    row = {"question": "7?", "completions": ["a\n#### 7", "b\n#### 8"], "id": 3}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + '\n\n{"question": "7?"}\nno\n')
    words = ["best", "--prm", str(tmp_path / "prm"), "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["completions"], told["set_aside"]) == (1, 2, 2)
    (found,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    scores = ProcessRewardModel.load(tmp_path / "prm").score(["7?"] * 2, [["a", "#### 7"], ["b", "#### 8"]])
    least = [min(one.scores) for one in scores]
    assert found["scores"] == pytest.approx(least, abs=1e-6) and found["id"] == 3 and "instruction" not in found
    assert found["best"] == least.index(max(least)) and found["best_answer"] == found["weighted_vote"] == ["7", "8"][found["best"]]
    aside = [json.loads(line)["line"] for line in (tmp_path / "out.jsonl.set_aside.jsonl").read_text().splitlines()]
    assert aside == [3, 4]
    (tmp_path / "in.jsonl").write_text("[]\n")
    assert main(words) == 2 and "no row can be read (line 1" in capsys.readouterr().err
