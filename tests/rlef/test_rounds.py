"""What the stages of further rounds are, by value; and that one round leaves a config and its fingerprints as they are."""

from __future__ import annotations

import copy

import pytest
import yaml

from rlef import pipeline
from rlef.cli import main
from rlef.errors import UserError
from rlef.load_config import load_config
from rlef.rounds import expand
from rlef.run_dir import RunDir

STAGES = {
    "problems": {"seeds": 10},
    "evolve": {"rounds": 4, "paid": True},
    "respond": {},
    "sft": {"max_steps": 5},
    "label": {"count": 7},
    "irm": {},
    "prm": {"epochs": 2},
    "dpo": {},
    "ppo": {"init": "dpo"},
    "evaluate": {"policies": ["sft", "ppo"], "gain_over": "ppo"},
    "report": {},
}


def config(rounds=2, seed=3, stages=STAGES, **run):
    return {"model": {"random": {}}, "run": {"seed": seed, "rounds": rounds} | run, "stages": copy.deepcopy(stages)}


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def to_file(data):
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
        return "c.yaml"

    return to_file


def test_one_round_is_the_config_itself():
    data = config(rounds=1)
    assert expand(data) == config(rounds=1)


def test_a_second_round_begins_with_the_policy_of_the_first():
    stages = expand(config())["stages"]
    assert list(stages) == [
        *("problems", "evolve", "respond", "sft", "label", "irm", "prm", "dpo", "ppo"),
        *("evolve_2", "label_2", "irm_2", "prm_2", "dpo_2", "ppo_2", "evaluate", "report"),
    ]
    assert stages["evolve_2"] == {"kind": "evolve", "rounds": 4, "paid": True, "pool": "evolve", "seed": 1003}
    assert stages["label_2"] == {"kind": "label", "count": 7, "policy": "ppo", "prompts": "none", "seed": 1003}
    assert stages["irm_2"] == {"kind": "irm", "init": "ppo", "seed": 1003}
    assert stages["prm_2"] == {"kind": "prm", "epochs": 2, "init": "ppo", "seed": 1003}
    assert stages["dpo_2"] == {"kind": "dpo", "init": "ppo", "seed": 1003}  # ppo: the end of SFT -> DPO -> PPO
    assert stages["ppo_2"] == {"kind": "ppo", "init": "dpo_2", "seed": 1003}
    assert stages["evaluate"] == {"kind": "evaluate", "policies": ["sft", "ppo", "ppo_2"], "gain_over": "ppo"}
    assert expand(config())["run"] == {"seed": 3}  # what was expanded is not expanded again


def test_each_round_begins_where_the_one_before_ended():
    stages = expand(config(rounds=3))["stages"]
    assert (stages["evolve_3"]["pool"], stages["evolve_3"]["seed"]) == ("evolve_2", 2003)
    assert (stages["label_3"]["policy"], stages["irm_3"]["init"], stages["ppo_3"]["init"]) == ("ppo_2", "ppo_2", "dpo_3")
    assert stages["evaluate"]["policies"] == ["sft", "ppo", "ppo_2", "ppo_3"]


def test_of_policies_side_by_side_the_first_goes_on():
    side = STAGES | {"ppo": {}, "dpo": {}}
    assert expand(config(stages=side))["stages"]["ppo_2"]["init"] == "dpo"
    assert expand(config(stages=side, repeat=["evolve", "label", "irm", "prm", "ppo"]))["stages"]["ppo_2"]["init"] == "ppo"


def test_sft_comes_again_where_it_is_asked_for_and_then_with_its_answers():
    repeat = ["sft", "evolve", "respond", "label", "irm", "prm", "ppo"]
    stages = expand(config(stages=STAGES | {"ppo": {}}, repeat=repeat))["stages"]
    assert list(stages)[9:16] == ["evolve_2", "respond_2", "sft_2", "label_2", "irm_2", "prm_2", "ppo_2"]
    assert stages["sft_2"]["init"] == "ppo" and stages["label_2"]["policy"] == stages["ppo_2"]["init"] == "sft_2"
    assert "prompts" not in stages["label_2"]  # the nearest respond stage is this round's


def test_inputs_from_outside_stay_where_they_are_no_policy(tmp_path):
    outside = {"prm": {"init": "big_trunk"}, "ppo": {"init": "policy", "irm": "http://host:8500", "prm": "orm", "seed": 7}, "orm": {}}
    stages = expand(config(stages={"problems": {}, "sft": {}, "label": {"policy": "policy"}, **outside}))["stages"]
    assert (stages["prm_2"]["init"], stages["orm_2"]["init"], stages["label_2"]["policy"]) == ("big_trunk", "ppo", "ppo")
    assert stages["ppo_2"] == {"kind": "ppo", "init": "ppo", "irm": "http://host:8500", "prm": "orm_2", "seed": 1007}


def test_evolution_by_feedback_asks_the_policy_of_the_round_before():
    patch = {"evolve_2": {"choose": "feedback"}}
    stages = expand(config(rounds=3, stages=STAGES | patch))["stages"]
    assert stages["evolve_2"]["policy"] == "ppo" and stages["evolve_2"]["choose"] == "feedback"
    assert "policy" not in stages["evolve_3"]
    sieved = {"sieve": {"kind": "evolve", "choose": "feedback"}}  # a second one, behind prm, in every round
    stages = expand(config(stages={name: one for name, one in STAGES.items() if name != "ppo"} | sieved | {"ppo": {"prompts": "sieve"}}))
    stages = stages["stages"]
    assert (stages["sieve_2"]["policy"], stages["evolve_2"]["pool"], stages["ppo_2"]["prompts"]) == ("dpo", "sieve", "sieve_2")
    assert "pool" not in stages["sieve_2"]  # the nearest: evolve_2


def test_settings_of_one_round_and_of_all(write):
    file = write(config(rounds=1, stages=STAGES | {"ppo": {}, "prm": {"epochs": 2}}))
    loaded = load_config(file, ["ppo_2.iterations=30", "ppo.max_tokens=9", "stages.prm_2.init=sft", "run.rounds=2"])
    assert (loaded.stages["ppo"].iterations, loaded.stages["ppo_2"].iterations) == (60, 30)
    assert loaded.stages["ppo"].max_tokens == loaded.stages["ppo_2"].max_tokens == 9
    assert loaded.stages["prm_2"].init == "sft" and loaded.stages["prm_2"].epochs == 2
    assert loaded.run.rounds == 1 and loaded.seed_of(loaded.stages["ppo"]) == 3 and loaded.seed_of(loaded.stages["ppo_2"]) == 1003
    inputs = pipeline.resolve_all(loaded)
    assert inputs["ppo_2"] == {"init": "dpo", "prompts": "evolve_2", "irm": "irm_2", "prm": "prm_2"}
    assert inputs["label_2"] == {"policy": "dpo", "problems": "problems", "evolved": "evolve_2"}


def test_check_lists_the_stages_of_all_rounds(write, capsys):
    assert main(["check", write(config(rounds=3))]) == 0
    shown = capsys.readouterr().out
    assert "23 stages" in shown and "init <- dpo_3, prompts <- evolve_3, irm <- irm_3, prm <- prm_3" in " ".join(shown.split())


def test_one_round_has_the_fingerprints_of_before(write):
    loaded = load_config(write(config(rounds=1)), [])
    print_ = pipeline.fingerprint(loaded, RunDir("r"), "ppo", pipeline.resolve_inputs(loaded, "ppo"))
    assert print_["run.seed"] == "3" and not {"ppo.seed", "ppo.rounds", "ppo.repeat"} & print_.keys()
    other = load_config("c.yaml", ["run.rounds=2"])
    assert print_ == pipeline.fingerprint(other, RunDir("r"), "ppo", pipeline.resolve_inputs(other, "ppo"))
    second = pipeline.fingerprint(other, RunDir("r"), "ppo_2", pipeline.resolve_inputs(other, "ppo_2"))
    assert second["ppo_2.seed"] == "1003" and "run.seed" not in second


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (config(stages=STAGES | {"evolve_2": {"kind": "evolve"}}), "stages.evolve_2: run.rounds makes a stage of this name"),
        (config(repeat=["evolve", "evaluate"]), "run.repeat: 'evaluate' is no stage that can be repeated"),
        (config(repeat=["evolve", "label"]), "no repeated stage trains a policy"),
        (config(stages={"problems": {}, "sft": {}}), "no repeated stage trains a policy"),
        (config(rounds=0), "run.rounds"),
        (config(stages=STAGES | {"label": 3}), "stages.label: must be a mapping"),
        (config(stages=STAGES | {"ppo_3": {"iterations": 3}}), "unknown stage kind 'ppo_3'"),
        (config(stages=STAGES | {"prm": {"seed": "x"}}), "stages.prm_2.seed"),
    ],
)
def test_mistakes(write, data, told):
    with pytest.raises(UserError) as error:
        load_config(write(data))
    assert told in str(error.value)
