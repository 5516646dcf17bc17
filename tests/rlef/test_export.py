"""What `rlef export` writes: the very weights, a card that names what is known and nothing of this machine, and nothing twice."""

from __future__ import annotations

import json
import os
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlef.cards.licences import stated_licence
from rlef.cli import main
from rlef.config import Config
from rlef.models import load_policy, load_tokenizer, save_policy
from rlef.run_dir import RunDir

ROW = {"n": 40, "pass@1": 0.5, "ci95": [0.35, 0.65], "majority@8": 0.6, "vote_n": 10}
GAIN = {"gain": {"over": "sft", "mean": 0.1, "ci95": [0.02, 0.18]}}


@pytest.fixture(scope="module")
def run(tiny_folder, tmp_path_factory):
    """Of stages whose models are the tiny one."""
    made = RunDir(tmp_path_factory.mktemp("export") / "run")
    base = tmp_path_factory.mktemp("secret_place") / "base"
    save_policy(load_policy(tiny_folder), load_tokenizer(tiny_folder), base)
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# base\n")
    stages = {
        "problems": {"kind": "problems", "source": "jsonl", "path": "/home/me/train.jsonl", "held_out_path": "/home/me/test.jsonl"},
        "sft": {"kind": "sft", "data": "seeds"},
        "prm": {"kind": "prm", "epochs": 3.0},
        "ppo": {"kind": "ppo", "irm": "none", "prm": "http://10.0.0.1:8500", "iterations": 7},
        "evaluate": {"kind": "evaluate"},
    }
    config = {"model": {"path": str(base)}, "teacher": {"kind": "openai", "model": "judge-1", "base_url": "http://10.0.0.2/v1"}}
    made.create(Config.model_validate(config | {"stages": stages}).model_dump(mode="json"))
    results = {"problems": {"seeds": 1200, "held_out": 40}, "sft": {"rows": 99}, "ppo": {"samples": 448}, "prm": {}}
    for name in stages:
        folder = made.start(name, {})
        if name in ("sft", "prm", "ppo"):
            save_policy(load_policy(tiny_folder), load_tokenizer(tiny_folder), folder / "model")
            torch.save({"folder": "/home/me"}, folder / "model" / "training_args.bin")
        if name == "ppo":
            (folder / "adapter").mkdir()
            (folder / "adapter" / "adapter_config.json").write_text('{"r": 4, "base_model_name_or_path": "/home/me/base"}')
        if name == "prm":
            (folder / "model" / "adapter").mkdir()
            (folder / "model" / "adapter" / "adapter_config.json").write_text('{"r": 8}')
            (folder / "model" / "README.md").write_text("---\ntags:\n- reward-model\n---\n\n# Process reward model\n")
        made.finish(name, {}, 12.0, results.get(name, {"sft": ROW, "ppo": ROW | GAIN}))
    return made


def test_the_last_policy_loads_in_plain_transformers_with_the_very_weights(run, tmp_path):
    assert main(["export", str(run.root), "--policy", str(tmp_path / "out")]) == 0
    ours, theirs = (load_policy(folder).state_dict() for folder in (run.root / "ppo" / "model", tmp_path / "out"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out") is not None
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"README.md", "model.safetensors"} <= names and not names & {"training_args.bin", "adapter"}
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_the_card_tells_what_is_known_and_nothing_of_this_machine(run, tmp_path):
    assert main(["export", str(run.root), "--policy", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert stated_licence(card) == "apache-2.0" and "base_model" not in card
    for told in (
        "1. `sft`: supervised", "2. `ppo`: PPO on r", "(here 1)", "No known answer entered the reward.",
        "- 1,200 seed problems", "- 99 solved examples", "- 448 answers sampled", "| **`ppo`** | 40 | 50.0% | 35.0% to 65.0% | +10.0 points over `sft`, +2.0 to +18.0 |",
        "iterations: 7", "prm: a server", "base model: a local model, apache-2.0 by its own card", "train.jsonl; their licence is not known", "teacher and judge: judge-1",
    ):  # fmt: skip
        assert told in card, told
    assert not re.search(r"/home/me|secret_place|10\.0\.0|epochs: 3", card)


@pytest.mark.parametrize(
    "info", [{}, {"versions": {"torch": "2.13", "wandb": None}, "git": "a" * 40, "python": "3.11"}, {"versions": 3, "git": [1]}]
)
def test_versions_are_told_as_far_as_they_are_known(run, tmp_path, info):
    run.info_file.write_text(json.dumps(info))
    assert main(["export", str(run.root), "--policy", str(tmp_path / "out")]) == 0
    told = (tmp_path / "out" / "README.md").read_text().partition("## Versions\n\n")[2].splitlines()[0]
    run.info_file.unlink()
    begins = {0: "not recorded; seed 0", 3: "torch 2.13, Python 3.11, commit aaaaaaaaaaaa; seed 0", 2: "commit [1]; seed 0"}
    assert told.startswith(begins[len(info)])


def test_the_cards_code_runs(run, tmp_path, capsys):
    assert main(["export", str(run.root), "--policy", str(tmp_path / "out"), "--stage", "sft"]) == 0
    code = re.search(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    assert code is not None
    capsys.readouterr()
    exec(code[1].replace("max_new_tokens=256", "max_new_tokens=5"), {"FOLDER": str(tmp_path / "out")})
    said = capsys.readouterr().out.strip()
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path / "out"), load_policy(tmp_path / "out")
    ids = tokenizer.encode("<|user|>How many are 3 and 4?<|assistant|>", add_special_tokens=False)
    assert said == tokenizer.decode(model.generate(torch.tensor([ids]), max_new_tokens=5, do_sample=False)[0, len(ids) :], skip_special_tokens=True).strip()  # fmt: skip


def test_a_reward_models_own_card_stays_and_the_adapter_comes_on_request(run, tmp_path):
    assert main(["export", str(run.root), "--prm", str(tmp_path / "prm")]) == 0
    card = (tmp_path / "prm" / "README.md").read_text()
    assert (
        card.startswith("---\ntags:\n- reward-model\n---\n\n# Process reward model\n") and "## Licences" in card and "epochs: 3.0" in card
    )
    assert main(["export", str(run.root), "--policy", str(tmp_path / "ppo"), "--adapter"]) == 0
    assert json.loads((tmp_path / "ppo" / "adapter" / "adapter_config.json").read_text()) == {"r": 4, "base_model_name_or_path": None}
    assert not (tmp_path / "prm" / "adapter").exists()
    assert main(["export", str(run.root), "--prm", str(tmp_path / "two"), "--adapter"]) == 0
    assert json.loads((tmp_path / "two" / "adapter" / "adapter_config.json").read_text())["r"] == 8


@pytest.mark.parametrize(
    "words,said",
    [
        (["--policy", "{full}"], "holds something already"),
        (["--irm", "{new}"], "no finished stage makes the irm"),
        (["--policy", "{new}", "--stage", "prm"], "one of: sft, ppo"),
        (["--policy", "{new}", "--stage", "sft", "--adapter"], "trained without one"),
        (["--policy", "{new}", "--public"], "nothing is pushed"),
        (["--policy", "{new}", "--push", "me/x"], "no token in HF_TOKEN"),
    ],
)
def test_mistakes_are_told_and_nothing_is_left(run, tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    places = {"full": tmp_path / "full", "new": tmp_path / "new"}
    assert main(["export", str(run.root), *(word.format(**places) for word in words)]) == 2
    assert said in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["full"] and (tmp_path / "full" / "mine").read_text() == "x"


def test_weights_that_changed_since_are_not_exported(run, tmp_path, capsys):
    file = run.root / "sft" / "model" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert main(["export", str(run.root), "--policy", str(tmp_path / "out"), "--stage", "sft"]) == 2
    finally:
        file.write_bytes(whole)
    assert "not as it was written" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_push_makes_a_private_repository_and_the_token_is_nowhere(run, tmp_path, monkeypatch, capsys):
    calls = []

    class Api:
        def __init__(self, token):
            calls.append(token)

        def create_repo(self, name, private):
            if name == "me/there":
                raise ValueError("409: it exists\nmore")
            calls.append((name, private))
            return f"https://hub/{name}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            calls.append((repo_id, sorted(os.listdir(folder_path))))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert main(["export", str(run.root), "--policy", str(tmp_path / "out"), "--push", "me/x"]) == 0
    assert (
        calls[:2] == ["hf_secret", ("me/x", True)] and "README.md" in calls[2][1] and capsys.readouterr().out.endswith("https://hub/me/x\n")
    )
    assert not any(b"hf_secret" in file.read_bytes() for file in (tmp_path / "out").iterdir())
    assert main(["export", str(run.root), "--policy", str(tmp_path / "two"), "--push", "me/there"]) == 2
    assert "409: it exists" in capsys.readouterr().err and (tmp_path / "two" / "README.md").is_file()


@pytest.mark.parametrize(
    "card,licence",
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("license: mit", None),
        ("---\na: 1\n---\nlicense: mit\n", None),
        ("", None),
        (json.dumps({}), None),
    ],
)
def test_a_licence_is_read_from_the_front_matter_alone(card, licence):
    assert stated_licence(card) == licence
