"""A user's mistakes: one message, every mistake in it, exit code 2, nothing half-written."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import yaml

from rlef.cli import main
from rlef.errors import UserError
from rlef.load_config import load_config, parse_config
from rlef.pipeline import resolve_all
from rlef.planning.needs import Machines
from rlef.planning.plan import memory_lines

ZERO_3 = Path(__file__).parents[2] / "configs" / "deepspeed" / "zero3.json"
GOOD = {"model": {"random": {}}, "stages": {"problems": {"seeds": 20, "held_out": 10}, "sft": {"data": "seeds"}}}


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def to_file(data, name="run.yaml"):
        file = tmp_path / name
        file.write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False))
        return str(file)

    return to_file


def changed(**stages):
    return GOOD | {"stages": {name: dict(settings) for name, settings in GOOD["stages"].items()} | stages}


def test_defaults_and_overrides(write):
    config = load_config(write(GOOD), ["sft.max_steps=7", "run.seed=3", "model.random.layers=2"])
    assert config.run.dir == "runs/run" and config.run.seed == 3
    assert config.stages["sft"].max_steps == 7 and config.stages["problems"].kind == "problems" and config.model.random.layers == 2


@pytest.mark.parametrize(
    "data,overrides,words",
    [
        (changed(sft={"max_step": 3}), [], ["stages.sft.max_step", "unknown key", "max_steps"]),
        (changed(sft={"max_steps": "many"}), [], ["stages.sft.max_steps", "many"]),
        (GOOD, ["sft.learning_rate=-1"], ["stages.sft.learning_rate", "-1"]),
        (GOOD | {"modle": {}}, [], ["modle", "did you mean `model`"]),
        (changed(ppoo={}), [], ["stages.ppoo", "did you mean `ppo`", "a stage with a name of its own says `kind: ppo`"]),
        (GOOD | {"ppo": {"iterations": 3}}, [], ["ppo: unknown key; a stage stands under `stages:`"]),
        (changed(ppo={"lora": 16}), [], ["stages.ppo.lora: must be a mapping of keys, not 16"]),
        (GOOD | {"teacher": "symbolic"}, [], ["teacher: must be a mapping of keys, not 'symbolic'"]),
        (GOOD, ["sft_2.max_steps=7"], ["neither a section nor a stage; `sft_2` comes with run.rounds=2"]),
        (GOOD | {"model": {"path": "."}}, [], ["model.path: . holds no config.json"]),
        (changed(ppo={"init": "."}), [], ["stages.ppo.init: . holds no model"]),
        (GOOD | {"model": {}}, [], ["exactly one of"]),
        (GOOD | {"model": {"random": {"hidden_size": 100}}}, [], ["model.random", "hidden_size"]),
        (GOOD | {"teacher": {"kind": "openai"}}, [], ["base_url"]),
        (changed(problems={"source": "jsonl", "path": "nowhere.jsonl"}), [], ["stages.problems.path", "nowhere.jsonl"]),
        ("model: [1\nstages: {", [], ["not valid YAML", "line"]),
        ("- 1", [], ["mapping"]),
        (GOOD, ["nonsense"], ["not an override"]),
        (changed(label={}, prm={"require": {"step_aurok": 0.8}}), [], ["stages.prm.require.step_aurok", "did you mean `step_auroc`"]),
        (changed(label={}, irm={"require": {"pair_accuracy": 90}}), [], ["stages.irm.require.pair_accuracy", "90 is not in 0..1"]),
        (changed(label={}, prm={"patience": 2}), [], ["stages.prm.patience", "eval_every"]),
        (changed(ppo={"lora": {}, "shared_trunk": True}), [], ["stages.ppo.shared_trunk", "lora"]),
        (changed(ppo={"lora": {}, "critic_init": "prm"}), [], ["stages.ppo.critic_init", "with lora"]),
        (changed(ppo={"shared_trunk": True, "critic_init": "prm"}), [], ["stages.ppo.critic_init", "with shared_trunk"]),
        (changed(ppo={"lora": {}}), [f"launch.deepspeed={ZERO_3}"], ["stages.ppo", "ZeRO-3"]),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(write, tmp_path, capsys, data, overrides, words):
    file = write(data)
    assert main(["run", file, *overrides]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error:") and "Traceback" not in shown and "fix:" in shown
    for word in words:
        assert word in shown, shown
    assert not (tmp_path / "runs").exists()


def test_all_mistakes_come_at_once(write):
    with pytest.raises(UserError) as error:
        load_config(write(changed(sft={"max_steps": 0, "batch": 2}) | {"run": {"sed": 1}}))
    assert all(word in str(error.value) for word in ("3 mistake(s)", "stages.sft.max_steps", "stages.sft.batch", "run.sed"))


def test_missing_config_and_unknown_stage(write, capsys):
    assert main(["run", "nowhere.yaml"]) == 2
    assert main(["run", write(GOOD), "--only", "ppo"]) == 2
    assert "no such stage" in capsys.readouterr().err


def test_an_input_without_a_maker_is_named_before_anything_runs(write, tmp_path, capsys):
    assert main(["run", write(changed(ppo={}))]) == 2
    assert "stages.ppo" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_a_broken_row_is_named_with_its_line(write, tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n{broken\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_text("{broken\n[]\n")
    data = changed(problems={"source": "jsonl", "path": "p.jsonl", "held_out_path": "p.jsonl"})
    for name, words in (("empty.jsonl", "empty"), ("bad.jsonl", "line 1"), ("p.jsonl", "line 2")):
        assert main(["run", write(data), f"problems.path={name}", "--only", "problems"]) == 2
        shown = capsys.readouterr().err
        assert name in shown and words in shown


def test_check_loads_no_model_and_shows_the_stages(write, capsys):
    assert main(["check", write(GOOD)]) == 0
    shown = capsys.readouterr().out
    assert "problems" in shown and "to run" in shown and "M parameters" in shown


def test_a_run_that_makes_data_alone_needs_no_model():
    data = {"problems": {"kind": "problems"}, "evolve": {"kind": "evolve"}, "respond": {"kind": "respond"}}
    config = parse_config({"stages": data}, "c.yaml")
    assert config.model.path is None and memory_lines(config, resolve_all(config), Machines(1, 0.0)) == []
    with pytest.raises(UserError, match="exactly one of"):
        parse_config({"stages": data | {"sft": {"kind": "sft"}}}, "c.yaml")


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ({"problems": {"path": "my.jsonl"}}, "stages.problems.path: not read with source: symbolic"),
        ({"problems": {"domain": "general"}}, "stages.problems.domain: not read"),
        ({"problems": {"source": "jsonl", "path": "a.jsonl"}, "evaluate": {"policies": ["base"]}}, "no held-out problems"),
        ({"dpo": {"label_smoothing": 0.1}}, "stages.dpo.label_smoothing: of the losses cdpo and robust"),
        ({"dpo": {"loss": "cdpo"}}, "stages.dpo.label_smoothing: of the losses cdpo and robust, which need it above 0"),
        (
            {"grpo": {"prompts_per_iteration": 6, "samples_per_prompt": 2, "minibatches": 5}},
            "stages.grpo: prompts_per_iteration x samples_per_prompt must be a multiple of minibatches",
        ),
        ({"grpo": {"micro_batch_size": 100}}, "and what comes out (128) of micro_batch_size"),
        ({"label": {"policy": ".", "server": "localhost:8000"}}, "stages.label.server: localhost:8000: an address begins with"),
        ({"ppo": {"rollout": {"server": "localhost:8000"}}}, "stages.ppo.rollout.server: localhost:8000: an address begins with"),
        (
            {"ppo": {"rollout": {"server": "http://a/v1", "vllm": "vllm"}}},
            "stages.ppo.rollout: give one of `server`, `vllm` and `colocated`",
        ),
        ({"evaluate": {"servers": {"base": "localhost:8000"}}}, "stages.evaluate.servers.base: localhost:8000: an address begins with"),
        ({"evaluate": {"servers": {"other": "http://a/v1"}}}, "stages.evaluate.servers.other: no such policy is evaluated"),
    ],
)
def test_what_would_be_ignored_or_found_too_late_is_told(stages, told):
    data = {"model": {"random": {}}, "teacher": {"kind": "openai", "model": "m", "base_url": "http://127.0.0.1:9"}}
    with pytest.raises(UserError, match=re.escape(told)):
        parse_config(data | {"stages": {name: {"kind": name, **one} for name, one in stages.items()}}, "c.yaml")


def test_groups_stay_on_one_process():
    stages = {"grpo": {"kind": "grpo", "prompts_per_iteration": 6, "samples_per_prompt": 4, "minibatches": 2}}
    data = {"model": {"random": {}}, "stages": stages}
    assert parse_config(data | {"launch": {"processes": 3}}, "c.yaml").stages["grpo"].step_rows(3) == (4, 4)
    with pytest.raises(UserError, match="stages.grpo.prompts_per_iteration: must be a multiple of the processes"):
        parse_config(data | {"launch": {"processes": 4}}, "c.yaml")


def laughs(first, again):
    return first + "".join(again.format(n, ",".join([f"*a{n - 1}"] * 9)) for n in range(1, 25))


@pytest.mark.parametrize(
    "text",
    [
        laughs("a0: &a0 [x]\n", "a{0}: &a{0} [{1}]\n") + "run: *a24\n",
        laughs("a0: &a0 {k: 1}\n", "a{0}: &a{0} {{<<: [{1}]}}\n") + "stages: *a24\n",
        "run: &r {seed: *r}\n",
        "x: 2001-99-99\n",
        "x: " + "[" * 2000,  # beyond what Python nests
        "? [a, b]\n: c\n",
        "x: !!python/object/apply:os.system [exit]\n",
        "a: 1\n---\nb: 2\n",
        "run: {seed: 0x" + "f" * 9000 + "}\n",
        "\0",
    ],
    ids=["laughs", "merges", "itself", "date", "deep", "key", "tag", "two", "number", "nul"],
)
def test_yaml_that_is_made_to_harm_is_one_message(tmp_path, capsys, text):
    (tmp_path / "run.yaml").write_text(text)
    began = time.process_time()
    assert main(["check", str(tmp_path / "run.yaml")]) == 2
    assert time.process_time() - began < 3 and capsys.readouterr().err.startswith("error: ")


def test_aliases_that_mean_no_harm_are_as_written_out(tmp_path):
    text = "run: {{seed: {0}3}}\nmodel: {{random: &r {{}}}}\nstages: {{problems: {{seeds: {1}, held_out: {1}}}, sft: {{data: seeds}}}}\n"
    for name, anchor, alias in (("plain", "", "3"), ("alias", "&n ", "*n")):
        (tmp_path / f"{name}.yaml").write_text(text.format(anchor, alias))
    assert load_config(tmp_path / "plain.yaml", ["run.dir=x"]) == load_config(tmp_path / "alias.yaml", ["run.dir=x"])


@pytest.mark.parametrize(
    "data", [b"\xff{}", b"9" * 5000, b"[" * 100_000, b'{"zero_optimization": {"stage": 7}}', b'{"zero_optimization": {"stage": 1e999}}']
)
def test_a_deepspeed_file_that_is_none_is_named(tmp_path, capsys, data):
    (tmp_path / "zero.json").write_bytes(data)
    assert main(["check", "configs/quickstart.yaml", f"launch.deepspeed={tmp_path / 'zero.json'}"]) == 2
    assert "launch.deepspeed: " in capsys.readouterr().err


def test_what_a_message_quotes_does_not_act_in_the_terminal(capsys):
    assert main(["check", "configs/\x1b[2Jnone.yaml"]) == 2
    assert "\\x1b[2J" in capsys.readouterr().err
