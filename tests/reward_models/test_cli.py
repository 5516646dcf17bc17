"""The command line of reward_models alone: a mistake is one message and exit 2, before any model loads."""

from __future__ import annotations

import json

import pytest

from reward_models.cli import main
from reward_models.records import RankedList, read_records

LIST = {"seed_id": "a", "labeller": "me", "split": "train", "items": [{"text": "good\u2028one", "rank": 0}, {"text": "bad", "rank": 1}]}


@pytest.fixture
def labels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.jsonl").write_text(json.dumps(LIST, ensure_ascii=False) + "\n", encoding="utf-8")
    (tmp_path / "file").touch()
    return "labels.jsonl"


@pytest.mark.parametrize(
    "words,told",
    [
        (["--out", "file"], "--out file"),
        (["--max-length", "4"], "--max-length 4"),
        (["--batch-size", "33", "--micro-batch-size", "8"], "--batch-size 33"),
        (["--deepspeed", "none.json"], "--deepspeed none.json"),
        (["--patience", "2"], "--patience 2: without looks"),
        ([], "1 rows to train on, 0 held out"),
    ],
)
def test_train(labels, tmp_path, capsys, words, told):
    assert main(["train", "irm", "--labels", labels, "--init", "x", "--out", "out", *words]) == 2
    shown = capsys.readouterr().err
    assert told in shown and "fix:" in shown
    assert not (tmp_path / "out").exists()


def test_a_threshold_is_for_rows_with_rates(labels, tmp_path, capsys):
    row = {"problem_id": "p", "question": "q", "steps": ["a"], "labels": [1.0], "labeller": "me"}
    (tmp_path / "steps.jsonl").write_text(json.dumps(row) + "\n")
    for kind, file, threshold, told in [
        ("irm", labels, "0.5", "for a prm"), ("prm", "steps.jsonl", "1.5", "from 0 to below 1"), ("prm", "steps.jsonl", "0.5", "no row has"),
    ]:  # fmt: skip
        assert main(["train", kind, "--labels", file, "--init", "x", "--out", "out", "--threshold", threshold]) == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--epochs", "-1"], ["--learning-rate", "nan"], ["--batch-size", "0"], ["--batch-size", "x"]])
def test_numbers_that_are_none(labels, words):
    with pytest.raises(SystemExit) as end:
        main(["train", "irm", "--labels", labels, "--init", "x", "--out", "out", *words])
    assert end.value.code == 2


@pytest.mark.parametrize(
    "row,words,told",
    [
        ({"question": "q", "steps": "ab"}, [], "line 1: needs steps"),
        ({"question": "q", "steps": [1]}, [], "line 1: needs steps"),
        ({"question": "q", "text": 5}, [], "line 1: needs steps"),
        ({"question": "q"}, [], "line 1: needs steps"),
        ({"question": "q", "text": "a"}, ["--delimiter", ""], "--delimiter"),
        ({"question": "q", "text": "a"}, ["--output", "nowhere/out"], "--output"),
    ],
)
def test_score(labels, tmp_path, capsys, row, words, told):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    assert main(["score", "prm", "--model", "x", "--input", "rows.jsonl", "--output", "out.jsonl", *words]) == 2
    assert told in capsys.readouterr().err


def test_nothing_held_out_is_nothing_to_measure(labels, capsys):
    assert main(["evaluate", "irm", "--model", "x", "--labels", labels]) == 2
    assert "none of 1 rows is held out" in capsys.readouterr().err


def test_a_line_separator_inside_a_text_ends_no_row(labels):
    assert read_records(labels, RankedList)[0].items[0].text == "good\u2028one"
