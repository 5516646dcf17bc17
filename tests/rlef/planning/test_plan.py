"""What fits, what is proposed, and what `rlef plan` and `rlef check` say of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlef.cli import main
from rlef.errors import UserError
from rlef.load_config import load_config
from rlef.pipeline import resolve_all
from rlef.planning.memory import GB, Zero
from rlef.planning.needs import Machines, Planner
from rlef.planning.plan import Speed, plan, refused, seconds, together

ROOT = Path(__file__).parents[3]
LLAMA_7B = "model.path=tests/configs/llama_7b"
SEVEN, SEVENTY = "configs/wizardmath_7b.yaml", "tests/configs/70b.yaml"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def planned(file, *overrides, gpus=8, memory=80):
    config = load_config(file, [*overrides, f"launch.processes={gpus}"])
    machines = Machines(gpus, memory * GB)
    return {one.name: one for one in plan(config, resolve_all(config), machines)}, machines


def need(stage, *overrides, file=SEVEN, gpus=8, zero=Zero(stage=2)):  # noqa: B008
    config = load_config(file, [LLAMA_7B, *overrides, f"launch.processes={gpus}"])
    found = Planner(config, resolve_all(config), Machines(gpus, 80 * GB)).need(stage, config.stages[stage], zero)
    return found, {moment.name: moment.parts for moment in found.moments}


@pytest.mark.parametrize("file,gpus,overrides", [(SEVEN, 8, [LLAMA_7B]), (SEVENTY, 64, [])])
def test_shipped_settings_fit(file, gpus, overrides, capsys):
    assert main(["check", file, *overrides, "--gpus", str(gpus), "--gpu-memory", "80"]) == 0
    assert "memory of a device at the most" in capsys.readouterr().out


def test_70b_on_8_gpus_is_refused_with_the_nearest_setting_that_fits(capsys):
    assert main(["check", SEVENTY, "--gpus", "8", "--gpu-memory", "80"]) == 2
    shown = capsys.readouterr().err
    assert "stages.sft: needs" in shown and "of a GPU's 80" in shown
    assert "set launch.deepspeed=configs/deepspeed/zero3_offload.json (" in shown and "of the machine's memory" in shown
    assert "or 64 such GPUs" in shown
    # What is proposed passes.
    assert main(["check", SEVENTY, "launch.deepspeed=configs/deepspeed/zero3_offload.json", "--gpus", "8", "--gpu-memory", "80"]) == 0


def test_every_proposal_fits_when_it_is_set():
    plans, machines = planned(SEVEN, LLAMA_7B, "launch.deepspeed=null", "ppo.gradient_checkpointing=false", gpus=8)
    wrong = [one for one in plans.values() if not one.fits]
    assert {"sft", "ppo"} <= {one.name for one in wrong}
    for one in wrong:
        again, _ = planned(
            SEVEN, LLAMA_7B, "launch.deepspeed=null", "ppo.gradient_checkpointing=false", *one.best.overrides.split(), gpus=8
        )
        assert again[one.name].fits, one.name
    words = together(list(plans.values()))
    again, _ = planned(SEVEN, LLAMA_7B, "launch.deepspeed=null", "ppo.gradient_checkpointing=false", *words.split(), gpus=8)
    assert refused(list(again.values()), machines) == []


def test_of_what_fits_the_fastest_is_proposed():
    plans, machines = planned(SEVEN, LLAMA_7B, "irm.gradient_checkpointing=false", "irm.micro_batch_size=8", "irm.bf16=false")
    irm = plans["irm"]
    assert not irm.fits and irm.best.seconds == min(one.seconds for one in irm.fitting)
    assert all(one.need.peak.total <= machines.memory for one in irm.fitting)


def test_ppo_under_zero_3_samples_from_a_whole_copy_and_divides_all_else_of_its_own():
    parameters, critic = 6_738_415_616, 6_738_415_616 - 32000 * 4096  # of which the head is one number a state
    _, moments = need("ppo", "prm.lora=null", zero=Zero(stage=3))
    for name, parts in moments.items():
        assert parts["weights"] == pytest.approx(2 * (parameters + critic) / 8, rel=1e-5), name
        assert parts["frozen"] == pytest.approx(2 * parameters / 8 + 4 * critic, rel=1e-5), (
            name
        )  # the reference; and the PRM, whole in fp32
    assert moments["sample"]["buffers"] == 2 * parameters and not moments["score"].get("buffers")
    _, served = need("ppo", "ppo.rollout.server=http://localhost:8000/v1", zero=Zero(stage=3))
    assert "sample" not in served


def test_ppo_on_whole_weights_is_never_proposed_zero_3_and_refused_under_it(capsys):
    plans, _ = planned(SEVEN, LLAMA_7B)
    assert any(setting.zero is not None and setting.zero.stage == 3 for setting in plans["ppo"].table)
    three = "launch.deepspeed=configs/deepspeed/zero3.json"
    for key, override in {"lora": "ppo.lora={rank: 16}", "average": "ppo.average=0.9"}.items():
        plans, _ = planned(SEVEN, LLAMA_7B, override)
        assert all(setting.zero is None or setting.zero.stage < 3 for setting in (*plans["ppo"].table, *plans["ppo"].fitting))
        for command in ("check", "run"):
            assert main([command, SEVEN, three, override]) == 2
            shown = capsys.readouterr().err
            assert f"stages.ppo.{key}: it works on whole weights, and ZeRO-3 divides them" in shown and "rlef ppo CONFIG" in shown
        divided, _ = planned(SEVEN, LLAMA_7B, override, three)
        assert divided["ppo"].now is None and not divided["ppo"].fits and (divided["ppo"].best is not None) == (key == "lora")


def test_where_nothing_fits_other_ways_are_told_with_what_they_change():
    plans, machines = planned(SEVEN, LLAMA_7B, gpus=8, memory=42)
    told = {error.problem.split(":")[0]: error.fix for error in refused(list(plans.values()), machines)}
    assert told["stages.ppo"].startswith("'ppo.lora={rank: 16}'") and told["stages.ppo"].endswith(", with other results")
    plans, machines = planned(SEVEN, LLAMA_7B, gpus=8, memory=24)
    told = {error.problem.split(":")[0]: error.fix for error in refused(list(plans.values()), machines)}
    assert told["stages.ppo"].startswith("nothing: 40 GB of models stand whole") and "serve them" in told["stages.ppo"]
    assert told["stages.irm"].startswith("nothing: 26 GB") and told["stages.label"].startswith("set label.batch_size=16 ")


def test_layouts_of_ppo_hold_fewer_models():
    parameters = 6_738_415_616
    rest = {}
    for name, overrides in {"whole": [], "shared": ["ppo.shared_trunk=true"], "lora": ["ppo.lora={rank: 16}"]}.items():
        _, moments = need("ppo", "prm.lora=null", *overrides, zero=Zero(stage=2))
        rest[name] = moments["step"]
    assert rest["whole"]["weights"] == pytest.approx(2 * 2 * parameters, rel=0.02)  # policy and critic in bfloat16
    assert rest["shared"]["weights"] == pytest.approx(2 * parameters, rel=0.001)
    assert rest["lora"]["weights"] < 0.03 * rest["shared"]["weights"]
    prm = 4 * (parameters - 32000 * 4096)
    for name in rest:  # the reference, or the base under the adapters; and the PRM in fp32
        assert rest[name]["frozen"] == pytest.approx(2 * parameters + prm, rel=0.001), name
    _, on_base = need("ppo", "ppo.lora={rank: 16}", "prm.lora={rank: 16}", zero=Zero(stage=2))
    assert on_base["step"]["frozen"] == 2 * parameters  # the PRM is adapters of it


def test_what_is_served_takes_no_room_here():
    _, whole = need("ppo")
    _, served = need("ppo", "ppo.prm=http://localhost:8500", "ppo.rollout.server=http://localhost:8000/v1")
    assert "sample" in whole and "sample" not in served
    assert whole["step"]["frozen"] - served["step"]["frozen"] == pytest.approx(26.4 * GB, rel=0.01)
    _, own = need("ppo", "ppo.rollout={vllm: vllm, options: --gpu-memory-utilization 0.4 --max-model-len 2048}")
    assert own["step"]["vllm"] == 0.4 * 80 * GB
    _, beside = need("ppo", "ppo.rollout={colocated: true}")
    assert beside["step"]["vllm"] == 0.3 * 80 * GB and "sample" not in beside
    _, lent = need("ppo", "ppo.rollout={colocated: true, options: --enable-sleep-mode}")
    assert lent["sample"]["vllm"] == 0.3 * 80 * GB and not lent["step"].get("vllm")


def test_a_policy_that_is_served_is_not_labelled_with_here():
    config = load_config(SEVEN, [LLAMA_7B, "label.server=http://localhost:8000/v1"])
    planner = Planner(config, resolve_all(config), Machines(8, 80 * GB))
    assert planner.need("label", config.stages["label"], None) is None
    assert planner.need("evolve", config.stages["evolve"], None) is None  # an openai teacher


def test_micro_batches_and_rollouts_are_what_the_key_says():
    _, two = need("ppo", "ppo.micro_batch_size=2", "ppo.rollout_batch_size=8")
    _, four = need("ppo", "ppo.micro_batch_size=4", "ppo.rollout_batch_size=16")
    assert four["train"]["activations"] == 2 * two["train"]["activations"]
    assert four["sample"]["kv_cache"] == 2 * two["sample"]["kv_cache"]


def test_time_falls_with_gpus_and_rises_with_what_is_computed_twice():
    times = {}
    for gpus in (8, 16):
        config = load_config(SEVEN, [LLAMA_7B, f"launch.processes={gpus}"])
        machines = Machines(gpus, 80 * GB)
        found = Planner(config, resolve_all(config), machines).need("sft", config.stages["sft"], Zero(stage=2))
        times[gpus] = seconds(config.stages["sft"], found, machines, Speed())
    # 6 operations x 6.6 billion parameters x 128 x 1024 tokens at 40 % of 989 TFLOP/s, and what travels.
    assert 6 * 6.6e9 * 131072 / (0.4 * 989e12) / 8 < times[8] < 1.3 * 6 * 6.6e9 * 131072 / (0.4 * 989e12) / 8
    assert times[16] < 0.7 * times[8]


def test_plan_shows_a_table_and_json(capsys):
    assert main(["plan", SEVEN, LLAMA_7B, "--gpus", "16", "--gpu-memory", "80", "--nodes", "2"]) == 0
    shown = capsys.readouterr().out
    for word in ("if checkpointed", "zero3_offload", "estimates for H100s", "vLLM", "KV"):
        assert word in shown
    assert main(["plan", SEVENTY, "--gpus", "8", "--gpu-memory", "80", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert not told["fits"] and told["stages"]["sft"]["best"]["changes"]["launch.deepspeed"].endswith("zero3_offload.json")
    weights = {one["deepspeed"]: one["moments"]["train"]["weights"] for one in told["stages"]["sft"]["settings"]}
    assert weights["configs/deepspeed/zero2.json"] == 2 * 70_553_706_496 == 8 * weights["configs/deepspeed/zero3.json"]


def test_what_cannot_be_known_is_told(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert main(["check", SEVEN]) == 0
    assert "not on this machine" in capsys.readouterr().out
    assert main(["plan", SEVEN, "--gpu-memory", "80"]) == 2
    assert "model.path=FOLDER" in capsys.readouterr().err


def test_a_planner_without_torch_answers_at_once():
    code = """
import sys, time
from rlef.cli import main
main(sys.argv[1:])
print([one for one in ("torch", "transformers", "deepspeed") if one in sys.modules], time.process_time())
"""
    words = ["check", SEVENTY, "--gpus", "64", "--gpu-memory", "80"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    loaded, _, seconds_used = done.stdout.splitlines()[-1].rpartition(" ")
    assert loaded == "[]" and float(seconds_used) < 1  # of the processor: other work may run on this machine


def test_a_broken_deepspeed_file_is_named(tmp_path):
    (tmp_path / "ds.json").write_text('{"zero_optimization": [2]}')
    with pytest.raises(UserError, match=r"launch\.deepspeed: .*ds\.json: not a JSON object as DeepSpeed reads it"):
        load_config(SEVEN, [f"launch.deepspeed={tmp_path / 'ds.json'}"])
