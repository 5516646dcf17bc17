"""Both command lines: every command and argument has help, every example parses and is right, every mistake is told in one style."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pytest

import reward_models.cli
import rlef.cli
from rlef.load_config import load_config

ROOT = Path(__file__).parents[1]
LINES = {"rlef": rlef.cli, "python -m reward_models": reward_models.cli}
COMMANDS = [(line, name) for line, cli in LINES.items() for name in ("", *cli.parser()[1])]
RUN = ("check", "plan")  # what costs nothing


def parser_of(line, name):
    main, commands = LINES[line].parser()
    return commands[name] if name else main


def examples(text):
    return [line.removeprefix("example: ") for line in (text or "").splitlines() if line.startswith("example: ")]


@pytest.mark.parametrize("line,name", COMMANDS)
def test_every_argument_has_help_and_every_command_an_example(line, name):
    parser = parser_of(line, name)
    nameless = [action.dest for action in parser._actions if not action.help and not isinstance(action, argparse._SubParsersAction)]
    assert nameless == []
    assert parser.epilog and examples(parser.epilog) and all(text.startswith("example: ") for text in parser.epilog.splitlines())
    assert any(example.startswith(f"{line} {name}".strip()) for example in examples(parser.epilog))
    assert all(example in parser.format_help() for example in examples(parser.epilog))  # unbroken, to be copied
    main, _ = LINES[line].parser()
    (commands,) = [action for action in main._actions if isinstance(action, argparse._SubParsersAction)]
    assert {choice.dest for choice in commands._choices_actions if choice.help} == set(commands.choices)


@pytest.mark.parametrize("example", [one for line, name in COMMANDS for one in examples(parser_of(line, name).epilog)])
def test_every_example_is_a_right_command(example, monkeypatch):
    monkeypatch.chdir(ROOT)
    line = next(line for line in LINES if example.startswith(line + " "))
    options = LINES[line].parse(shlex.split(example)[len(line.split()) :])
    if Path(vars(options).get("config", "")).suffix == ".yaml":
        load_config(options.config, options.overrides)
        if options.command in RUN and options.config == "configs/quickstart.yaml":  # others need a model that is not here
            assert options.run(options) == 0


@pytest.mark.parametrize(
    "line,words,told",
    [
        ("rlef", "rn", "rn: no such command; did you mean `run`?"),
        ("rlef", "rn configs/quickstart.yaml", "rn: neither a command nor a stage of configs/quickstart.yaml; did you mean `run`?"),
        ("rlef", "sftt configs/quickstart.yaml", "did you mean `sft`?"),
        ("rlef", "chekc configs/quickstart.yaml --gpus 8", "chekc: no such command; did you mean `check`?"),
        ("rlef", "run configs/quickstart.yaml --form ppo", "unrecognized arguments: --form ppo; did you mean `--from`?"),
        ("rlef", "run configs/quickstart.yaml --from pop", "--from pop: the config has no such stage; did you mean `ppo`?"),
        ("rlef", "run configs/quickstart.yaml --only evlove", "--only evlove: the config has no such stage; did you mean `evolve`?"),
        ("rlef", "run configs/quickstart.yaml ppo.init=stf", "stages.ppo.init: 'stf' is neither an earlier stage nor a path; did you mean `sft`?"),
        ("rlef", "check configs/quickstart.yaml dpo.init=config/deepspeed", "did you mean `configs/deepspeed`?"),
        ("rlef", "check configs/quickstart.yaml launch.deepspeed=configs/deepspeed/zero22.json", "did you mean `configs/deepspeed/zero2.json`?"),
        ("rlef", "check configs/quickstart.yaml ppo.reward_mode=min_termnal", "stages.ppo.reward_mode: must be one of min_terminal, "),
        ("rlef", "check configs/quickstart.yaml ppo.reward_mode=min_termnal", "did you mean `min_terminal`? (given: 'min_termnal')"),
        ("rlef", "check configs/quikstart.yaml", "no such config file; did you mean `configs/quickstart.yaml`?"),
        ("rlef", "report config", "config: no such run directory; did you mean `configs`?"),
        ("rlef", "convert a b --to step", "did you mean `steps`?"),
        ("rlef", "run", "the following arguments are required: config\n"),
        ("rlef", "plan configs/quickstart.yaml", "the following arguments are required: --gpu-memory\n"),
        ("python -m reward_models", "trian", "'trian' is none of train, score, best, evaluate, convert, serve; did you mean `train`?"),
        ("python -m reward_models", "train prn", "kind: 'prn' is none of irm, prm, orm; did you mean `prm`?"),
        ("python -m reward_models", "serve --modle x", "unrecognized arguments: --modle x"),
        ("python -m reward_models", "serve --prn x", "did you mean `--prm`?"),
        ("python -m reward_models", "evaluate prm --model m --labels configs/none.jsonl", "configs/none.jsonl: no such file\n"),
    ],
)  # fmt: skip
def test_every_mistake_is_one_message_with_its_mending(line, words, told, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    try:
        code = LINES[line].main(words.split())
    except SystemExit as end:  # of argparse
        code = end.code
    shown = capsys.readouterr()
    assert (code, shown.out) == (2, "")
    assert told in shown.err and "usage:" not in shown.err
    first, *_, last = shown.err.splitlines()
    assert first.startswith("error: ") and last.startswith("  fix: ") and len(last) > len("  fix: ")


def test_overrides_of_one_command_are_not_those_of_the_next():
    assert rlef.cli.parse(["run", "c.yaml", "--yes", "a=1"]).overrides == ["a=1"]
    assert rlef.cli.parse(["run", "c.yaml"]).overrides == []
