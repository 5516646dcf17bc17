"""A small part of the fuzzer finds no fault, and finds one that is planted."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def fuzz():
    """The script, with its neighbours."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        spec = importlib.util.spec_from_file_location("fuzz", ROOT / "scripts" / "fuzz.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["fuzz"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(ROOT / "scripts"))


def run(fuzz, capsys, *words):
    code = fuzz.main(list(words))
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_a_small_part_finds_no_fault(fuzz, tmp_path, capsys):
    code, told = run(fuzz, capsys, "--answers", "36", "--files", "60", "--seed", "1", "--out", str(tmp_path / "out"))
    assert (code, told["answers"], told["files"], told["cases"], told["faults"]) == (0, 36, 60, 36 * 12 + 60, 0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "fault,told",
    [
        (lambda text: 1 / 0, "ZeroDivisionError"),
        (lambda text: __import__("os").system("true"), "os.system"),
        (lambda text: sum(range(10**10)), "three times its limit"),
        (lambda text: __import__("os")._exit(1), "ended by the system"),
    ],
    ids=["crash", "command", "hang", "end"],
)
def test_a_planted_fault_is_found_and_kept_and_the_cases_after_it_run(fuzz, tmp_path, capsys, monkeypatch, fault, told):
    monkeypatch.setattr(fuzz, "LIMIT_S", 0.2)
    real = fuzz.AnswerDoors.__init__

    def planted(self, root):
        real(self, root)
        self.doors = {"endpoint": lambda text: fault(text) if "planted" in text else None}

    monkeypatch.setattr(fuzz.AnswerDoors, "__init__", planted)
    monkeypatch.setattr(fuzz, "answer", lambda seed, number, canary: ("family", "planted" if number == 1 else "plain"))
    code, summary = run(fuzz, capsys, "--answers", "3", "--files", "0", "--out", str(tmp_path))
    assert code == 1 and summary["faults"] == 1 and summary["cases"] == 3
    assert told in (tmp_path / "answer_1_endpoint" / "fault.txt").read_text()
    assert (tmp_path / "answer_1_endpoint" / "answer.txt").read_text() == "planted"


def test_every_family_and_every_case_is_its_seeds_own(fuzz):
    families = {fuzz.answer(0, number, "x")[0] for number in range(12)}
    assert len(families) == 12 and fuzz.answer(0, 5, "x") == fuzz.answer(0, 5, "x") != fuzz.answer(1, 5, "x")
