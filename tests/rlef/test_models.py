"""Models and tokenizers of damaged or hostile folders: one message that names the folder, and no code of theirs is run."""

from __future__ import annotations

import json
import os
import pickle
import shutil

import pytest
import torch

from reward_models.errors import UserError as RewardModelsError
from reward_models.model import load_tokenizer as load_reward_tokenizer
from rlef.config import ModelSection, RandomInit
from rlef.errors import UserError
from rlef.models import load_policy, load_tokenizer, prompt_ids, random_policy, save_policy, stop_ids

SPEC = RandomInit(vocab_size=300, hidden_size=32, layers=1, heads=1, intermediate_size=16)
SECTION = ModelSection(random=SPEC)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_policy(*random_policy(SPEC, ["Ann has 2 eggs."], seed=0), folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def use(folder):
    tokenizer = load_tokenizer(folder)
    stop_ids(tokenizer, load_policy(folder))
    return prompt_ids(tokenizer, "How many?", SECTION)


def changed(file, **keys):
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


@pytest.mark.parametrize(
    "file,damage",
    [
        ("model.safetensors", lambda file: file.write_bytes(file.read_bytes()[:1000])),
        ("model.safetensors", lambda file: file.write_bytes(b"\xff" * 1000)),
        ("tokenizer.json", lambda file: file.write_text("true")),
        ("tokenizer.json", lambda file: file.write_text("[" * 10_000)),
        ("config.json", lambda file: changed(file, hidden_size="wide")),
        ("config.json", lambda file: changed(file, num_attention_heads=0)),
        ("config.json", lambda file: file.write_text("[]")),
        ("tokenizer_config.json", lambda file: changed(file, model_max_length=[])),
        ("generation_config.json", lambda file: changed(file, eos_token_id="/dev/zero")),
        ("chat_template.jinja", lambda file: file.write_text("{% for x 'y' %}")),
    ],
)
def test_a_damaged_file_is_a_message_that_names_the_folder(folder, file, damage):
    assert use(folder)
    damage(folder / file)
    with pytest.raises(UserError, match="model: "):
        use(folder)


def test_the_reward_models_say_so_too(folder):
    (folder / "tokenizer.json").write_text("true")
    with pytest.raises(RewardModelsError, match="no tokenizer could be loaded"):
        load_reward_tokenizer(folder)


class Runs:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_no_code_of_a_folder_is_run(folder, tmp_path):
    """Neither pickled weights in place of safetensors, nor a module that the config names, nor what a chat template reaches for."""
    ran = tmp_path / "ran"
    (folder / "chat_template.jinja").write_text(f"{{{{ cycler.__init__.__globals__.os.system('touch {ran}') }}}}")
    with pytest.raises(UserError, match="chat template does not work"):
        prompt_ids(load_tokenizer(folder), "How many?", SECTION)
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Runs(f"touch {ran}")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError):
        load_policy(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Runs(f"touch {ran}")))
    with pytest.raises(UserError):
        load_policy(folder)
    (folder / "own.py").write_text(f"import os\nos.system('touch {ran}')\n")
    changed(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"})
    with pytest.raises(UserError):
        load_policy(folder)
    assert not ran.exists()
