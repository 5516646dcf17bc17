"""The whole loop on a tiny config, through the command line; then what must hold of its results."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.printed import foreign, printed

CONFIG = Path(__file__).parent / "configs" / "tiny.yaml"


def rlef(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "rlef", *arguments], capture_output=True, text=True, timeout=600)
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> tuple[Path, str, str]:
    """The run's folder, and what it printed."""
    folder = tmp_path_factory.mktemp("loop") / "run"
    done = printed("-m", "rlef", "run", CONFIG, f"run.dir={folder}", "tracking.wandb=offline")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return folder, done.stdout, done.stderr


@pytest.fixture(scope="module")
def finished(shown) -> Path:
    return shown[0]


@pytest.mark.slow
def test_it_prints_lines_of_ours_alone(shown):
    _, output, errors = shown
    assert foreign(output) == [] and foreign(errors) == []


@pytest.mark.slow
def test_so_does_a_reward_models_own_command(finished, tmp_path):
    words = [
        "train",
        "irm",
        "--labels",
        finished / "label" / "rankings.jsonl",
        "--init",
        finished / "sft" / "model",
        "--out",
        tmp_path / "irm",
    ]
    alone = printed("-m", "reward_models", *words, "--batch-size", "8")
    assert alone.returncode == 0 and alone.stdout.count("\n") == 1 and alone.stdout.startswith("{")
    assert [line for line in alone.stderr.splitlines() if not re.fullmatch(r"step \d+ of \d+, [\d.]+ minutes left", line)] == []


@pytest.mark.slow
def test_every_stage_leaves_its_files(finished):
    for stage in ("problems", "evolve", "respond", "sft", "label", "irm", "prm", "ppo", "dpo", "grpo", "evaluate", "report"):
        assert (finished / stage / "manifest.json").is_file(), stage
    summary = json.loads((finished / "summary.json").read_text())
    assert {"irm", "prm"} <= set(summary["reward_models"])
    assert {"sft", "ppo", "dpo", "grpo"} <= set(summary["evaluate"])
    assert {"n", "pass@1", "ci95", "majority@4", "prm_vote@4", "best_of_4", "pass@4"} <= set(summary["evaluate"]["ppo"])
    assert summary["evaluate"]["ppo"]["gain"]["over"] == "sft"
    assert summary["evolution"]["kept"] > 0 and summary["evolution"]["eliminated"]
    html = (finished / "report.html").read_text()
    assert "src=" not in html.split("<script", 1)[0] and "default-src 'none'" in html  # it fetches nothing


@pytest.mark.slow
def test_what_is_saved_loads_in_plain_transformers(finished):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

    for stage, kind in {
        "sft": AutoModelForCausalLM,
        "ppo": AutoModelForCausalLM,
        "dpo": AutoModelForCausalLM,
        "grpo": AutoModelForCausalLM,
        "irm": AutoModelForSequenceClassification,
        "prm": AutoModelForTokenClassification,
    }.items():
        _, info = kind.from_pretrained(finished / stage / "model", output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"], (stage, info)
        tokenizer = AutoTokenizer.from_pretrained(finished / stage / "model")
        assert tokenizer.pad_token_id != tokenizer.eos_token_id


@pytest.mark.slow
def test_a_second_run_redoes_nothing(finished):
    before = {file: file.stat().st_mtime_ns for file in finished.rglob("manifest.json")}
    rlef("run", str(CONFIG), f"run.dir={finished}")
    assert before == {file: file.stat().st_mtime_ns for file in finished.rglob("manifest.json")}


@pytest.mark.slow
def test_a_second_round_goes_on_from_a_finished_first_one(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shown = rlef(
        "run", str(CONFIG), f"run.dir={run}", "run.rounds=2", "evolve_2.choose=feedback", "evolve_2.keep_outside=true", "evolve_2.rounds=1"
    )
    first = {file.parent.name for file in finished.glob("*/manifest.json")} - {"evaluate", "report"}
    assert shown.stdout.count("done before") == len(first)
    evolved = [json.loads(line) for line in (run / "evolve_2" / "evolved.jsonl").read_text().splitlines()]
    assert {problem["lineage"]["round"] for problem in evolved} == {3} and all(problem["pass_rate"] is not None for problem in evolved)
    practised = {json.loads(line)["problem_id"] for line in (run / "ppo_2" / "rollouts.jsonl").read_text().splitlines()}
    assert practised <= {problem["id"] for problem in evolved}
    assert {"sft", "ppo", "dpo", "ppo_2", "dpo_2"} <= set(json.loads((run / "summary.json").read_text())["evaluate"])
    assert all(name in (run / "report.html").read_text() for name in ("(evolve_2)", "(prm_2)", "(ppo_2)"))
    again = rlef("run", str(run / "config.yaml"))
    assert again.stdout.count("done before") == len(list(run.glob("*/manifest.json"))) > len(first) + 2


@pytest.mark.slow
def test_poisoned_answers_change_no_sample_no_reward_no_weight(finished, tmp_path):
    """After the labels, gold answers of the RL prompts are replaced by nonsense: PPO, DPO and GRPO stay bitwise the same."""
    from safetensors.torch import load_file

    from rlef.load_config import load_config
    from rlef.records import Problem, read_jsonl, write_jsonl
    from rlef.stages import dpo, grpo, ppo
    from rlef.stages.context import StageContext
    from rlef.tracking import Tracker

    config = load_config(str(CONFIG))
    poisoned = tmp_path / "prompts"
    prompts = read_jsonl(finished / "respond" / "prompts.jsonl", Problem)
    assert any(problem.answer for problem in prompts)
    write_jsonl(poisoned / "prompts.jsonl", [problem.model_copy(update={"answer": "nonsense"}) for problem in prompts])
    for stage, module, rows in (("ppo", ppo, "rollouts.jsonl"), ("dpo", dpo, "pairs.jsonl"), ("grpo", grpo, "rollouts.jsonl")):
        inputs = {name: finished / name for name in ("irm", "prm")} | {"init": finished / "sft", "prompts": poisoned}
        folder = tmp_path / stage
        folder.mkdir()
        module.run(StageContext(stage, config, config.stages[stage], inputs, folder, Tracker.null()))
        clean, dirty = (load_file(root / "model" / "model.safetensors") for root in (finished / stage, folder))
        assert clean.keys() == dirty.keys() and all((clean[name] == dirty[name]).all() for name in clean), stage
        assert (folder / rows).read_bytes() == (finished / stage / rows).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage,settings",
    [
        ("dpo", {"rounds": 2, "loss": "cdpo", "label_smoothing": 0.1}),  # pairs of steps need a better PRM: tests/rlef/stages/test_dpo.py
        ("grpo", {"form": "process", "scale_rewards": "group"}),
        ("grpo", {"advantage": "rloo"}),
    ],
)
def test_each_form_runs_on_what_the_loop_made(finished, tmp_path, stage, settings):
    overrides = [f"{stage}.{key}={value}" for key, value in settings.items()]
    inputs = [
        f"{stage}.{name}={finished / source}" for name, source in {"init": "sft", "prompts": "respond", "irm": "irm", "prm": "prm"}.items()
    ]
    run = tmp_path / "run"
    rlef("run", str(CONFIG), f"run.dir={run}", "--only", stage, *overrides, *inputs)
    assert (run / stage / "model" / "model.safetensors").is_file() and not (run / stage / "shards").exists()
    assert (run / stage / ("pairs.jsonl" if stage == "dpo" else "rollouts.jsonl")).stat().st_size
