"""`rlef init`: whatever is wished for becomes a config that `rlef check` takes; what is there already is left alone."""

from __future__ import annotations

import itertools
import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlef import starter
from rlef.cli import main
from rlef.commands.init import ask
from rlef.load_config import load_config

ROOT = Path(__file__).parents[2]
ENDPOINT = ["--teacher", "http://localhost:8000/v1", "--teacher-model", "served"]
DOMAINS = [
    ["--domain", "embedded"],
    ["--domain", "math", "--data", "train.jsonl", "--test", "test.jsonl"],
    ["--domain", "math", "--data", "train.jsonl"],
    ["--domain", "math", "--data", "openai/gsm8k:main"],
    ["--domain", "code", "--data", "train.jsonl"],
    ["--domain", "general", "--data", "train.jsonl"],
]
MODELS = [[], ["--model", "small"]]  # without: random, or one of the hub that is not here
MACHINES = [[], ["--gpus", "4", "--gpu-memory", "80"], ["--gpu-memory", "1"]]
TEACHERS = [[], ["--teacher", "hf", "--teacher-model", "small"], ENDPOINT]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs" / "deepspeed", tmp_path / "configs" / "deepspeed")
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"question": f"{name}: 1+1?", "answer": "1+1=2\n#### 2"}) + "\n")
    (tmp_path / "small").mkdir()
    shape = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1024, "vocab_size": 32000}
    (tmp_path / "small" / "config.json").write_text(json.dumps(shape | {"model_type": "llama"}))
    return tmp_path


@pytest.mark.parametrize("domain", DOMAINS, ids=" ".join)
def test_every_combination_is_a_config_that_check_takes(folder, capsys, domain):
    for number, (model, machine, teacher) in enumerate(itertools.product(MODELS, MACHINES, TEACHERS)):
        file, words = f"{number}.yaml", [*domain, *model, *machine, *teacher]
        assert main(["init", file, "--yes", *words]) == 0, words
        note = capsys.readouterr().out.splitlines()[0]
        here = bool(model) or "embedded" in domain
        assert ("is not here yet" in note) == (bool(machine) and not here), (words, note)
        fits = "It fits" in note
        assert fits or "80" not in machine or not here, (words, note)
        code = main(["check", file, *(machine[-2:] if fits else ())])
        assert code == 0, (words, capsys.readouterr().err)
        capsys.readouterr()


def test_every_section_and_stage_has_a_comment_and_no_key_stands_in_it(folder, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert main(["init", "my.yaml", "--domain", "math", "--data", "train.jsonl", "--test", "test.jsonl", *ENDPOINT]) == 0
    text = Path("my.yaml").read_text()
    lines = text.splitlines()
    named = [place for place, line in enumerate(lines) if line.split(":")[0].strip() in (*starter.COMMENTS,) and line[:3] != "   "]
    assert len(named) == 13 and all(lines[place - 1].strip().startswith("# ") for place in named)
    assert "sk-secret" not in text and "api_key_env: OPENAI_API_KEY" in text
    assert max(map(len, lines)) <= 160


def test_what_is_said_is_what_comes(folder):
    words = ["--domain", "math", "--data", "train.jsonl", "--test", "test.jsonl", "--model", "small", "--gpus", "2", *ENDPOINT]
    assert main(["init", "my.yaml", *words]) == 0
    config = load_config("my.yaml")
    assert (config.model.path, config.launch.processes, config.launch.deepspeed) == ("small", 2, "configs/deepspeed/zero2.json")
    assert (config.teacher.kind, config.teacher.base_url, config.teacher.model) == ("openai", ENDPOINT[1], "served")
    assert (config.stages["problems"].path, config.stages["problems"].held_out_path) == ("train.jsonl", "test.jsonl")
    assert list(config.stages) == ["problems", "evolve", "respond", "sft", "label", "irm", "prm", "ppo", "dpo", "evaluate", "report"]
    assert not config.stages["evolve"].paid  # of one's own
    assert main(["init", "paid.yaml", *words[:-3], "https://elsewhere.org/v1", "--teacher-model", "served"]) == 0
    assert load_config("paid.yaml").stages["evolve"].paid


def test_rows_are_made_to_fit_and_a_deepspeed_file_that_is_not_here_is_told(folder, capsys):
    words = ["--domain", "math", "--data", "train.jsonl", "--model", "small", "--gpus", "2"]
    assert main(["init", "roomy.yaml", *words, "--gpu-memory", "80"]) == 0
    assert main(["init", "tight.yaml", *words, "--gpu-memory", "3"]) == 0
    roomy, tight = load_config("roomy.yaml").stages, load_config("tight.yaml").stages
    assert tight["dpo"].micro_batch_size < roomy["dpo"].micro_batch_size
    assert main(["check", "tight.yaml", "--gpu-memory", "3"]) == 0
    assert main(["check", "roomy.yaml", "--gpu-memory", "3"]) == 2
    changed, missing = starter.with_changes({"launch": {"processes": 2}, "stages": {"sft": {}}}, "launch.deepspeed=none.json sft.bf16=true")
    assert (changed, missing) == ({"launch": {"processes": 2}, "stages": {"sft": {"bf16": True}}}, "none.json")


@pytest.mark.parametrize(
    "words,told",
    [
        (["there.yaml"], "there.yaml: exists"),
        (["nowhere/my.yaml"], "its folder does not exist"),
        (["--domain", "math"], "needs problems to start from"),
        (["--domain", "maths"], "did you mean `math`?"),
        (["--data", "train.jsonl"], "makes its own problems"),
        (["--domain", "math", "--data", "trian.jsonl"], "trian.jsonl: no such file; did you mean `train.jsonl`?"),
        (["--domain", "math", "--data", "train.jsonl", "--test", "none"], "--test none: no such file"),
        (["--domain", "code", "--data", "train.jsonl", "--test", "test.jsonl"], "nothing is graded in code"),
        (["--domain", "math", "--data", "train.jsonl", "--teacher", "symbolic"], "knows the embedded problems alone"),
        (["--teacher", "gpt"], "neither symbolic, hf nor an address"),
        (["--teacher", "http://localhost:8000/v1"], "which model answers there?"),
        (["--teacher", "http://me:secret@host/v1", "--teacher-model", "x"], "no password in an address"),
        (["--teacher-model", "x"], "the symbolic teacher is a program"),
        (["--gpus", "0", "--gpu-memory", "80"], "--gpu-memory 80: of no GPU"),
        (["--gpus", "-1"], "--gpus: -1: give a whole number"),
    ],
)
def test_mistakes_write_nothing(folder, capsys, words, told):
    Path("there.yaml").write_text("mine")
    try:
        code = main(["init", *words, "--yes"])
    except SystemExit as end:
        code = end.code
    assert code == 2 and told in capsys.readouterr().err
    assert Path("there.yaml").read_text() == "mine" and not Path("rlef.yaml").exists()


def test_questions_are_asked_again_until_they_can_be_read(folder, monkeypatch, capsys):
    answers = iter(
        ["maths", "math", "", "train.jsonl", "nothing.jsonl", "test.jsonl", "small", "two", "2", "", "http://localhost:1/v1", "m"]
    )
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert main(["init", "my.yaml"]) == 0 and next(answers, None) is None
    config = load_config("my.yaml")
    assert (config.model.path, config.launch.processes, config.teacher.model) == ("small", 2, "m")
    told = capsys.readouterr().out
    for word in ("did you mean `math`", "an answer is needed", "nothing.jsonl: no such file", "two: give a whole number"):
        assert word in told


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_questions_can_be_left(folder, monkeypatch, capsys, end):
    def leave(question):
        raise end

    monkeypatch.setattr("builtins.input", leave)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert main(["init"]) == 2
    assert "nothing was written" in capsys.readouterr().err and not Path("rlef.yaml").exists()


def test_in_a_terminal_return_alone_makes_the_default(folder):
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "rlef", "init"], stdin=theirs, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    os.write(ours, b"\n" * 8)
    told, _ = child.communicate(timeout=60)
    os.close(ours), os.close(theirs)
    assert child.returncode == 0 and "domain [embedded]: " in told and "rlef.yaml is written" in told
    assert load_config("rlef.yaml").teacher.kind == "symbolic"
    assert yaml.safe_load(Path("rlef.yaml").read_text())["run"] == {"seed": 0}


def test_its_domains_are_those_of_the_command():
    from rlef.commands.init import DOMAINS

    assert tuple(starter.DOMAINS) == DOMAINS and callable(ask)
