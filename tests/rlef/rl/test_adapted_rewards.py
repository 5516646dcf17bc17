"""Reward models on the policy's base: the scores of the whole models, only where they are of that base."""

from __future__ import annotations

import pytest
import torch

from reward_models.adapters import FOLDER, adapted, merged
from reward_models.config import LoraSettings, ProcessModelConfig
from reward_models.instruction import Calibration, InstructionRewardModel, save_calibration
from reward_models.model import build
from reward_models.process import SETTINGS, ProcessRewardModel
from rlef.models import load_policy
from rlef.rl.adapted_rewards import on_base
from rlef.rl.adapters import AdaptedBase

QUESTIONS = ["Ann has 3 pens. Ben has 4 more. How many?", "What is 2 + 2?", "Ann has 3 pens."]
STEPS = [["Ben 3+4=7", "#### 7"], ["2+2=5"], ["a", "b", "c"]]


@pytest.fixture
def trained(tiny_folder, tmp_path):
    """What a training of adapters saves, its weights drawn instead of learnt."""

    def saved(kind, separator):
        model, tokenizer = build(kind, tiny_folder, separator=separator)
        unseen = [tokenizer.convert_tokens_to_ids(separator)] if separator else []
        net = adapted(kind, model, LoraSettings(rank=4, alpha=12), unseen)
        torch.manual_seed(2)
        with torch.no_grad():
            for weight in net.parameters():
                if weight.requires_grad:
                    weight.normal_(std=0.2)
        folder = tmp_path / kind
        net.save_pretrained(folder / FOLDER)
        merged(build(kind, tiny_folder, separator=separator)[0], folder / FOLDER).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        save_calibration(Calibration((0.0, 0.1), 1.0, 0.05, 64), folder)
        if separator:
            (folder / SETTINGS).write_text(ProcessModelConfig(separator=separator).model_dump_json())
        return folder

    return saved


def base_of(folder):
    return AdaptedBase(load_policy(folder), LoraSettings(rank=2), seed=0)


@pytest.mark.parametrize("kind,separator", [("process", "<|step|>"), ("process", "<|unheard|>"), ("instruction", None)])
def test_scores_are_those_of_the_whole_model(trained, tiny_folder, kind, separator):
    """A separator that the policy has, and one that is new to it."""
    folder, base = trained(kind, separator), base_of(tiny_folder)
    ids = torch.tensor([[7, 8, 9]])
    before = base.model(ids).logits
    model = on_base(base, "rm", folder)
    assert model is not None and torch.equal(base.model(ids).logits, before)
    if kind == "process":
        whole, light = ProcessRewardModel.load(folder), ProcessRewardModel.load(folder, model=model)
        scores = [[value for one in scorer.score(QUESTIONS, STEPS) for value in one.scores] for scorer in (whole, light)]
    else:
        whole, light = InstructionRewardModel.load(folder), InstructionRewardModel.load(folder, model=model)
        scores = [scorer.raw_scores(QUESTIONS) for scorer in (whole, light)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-5) and max(scores[0]) - min(scores[0]) > 1e-3
    assert torch.equal(base.policy.model(ids).logits, before) is False  # the adapter stays on until the next net switches
    base.use("default")
    assert torch.equal(base.model(ids).logits, before)


def test_a_model_that_is_not_of_the_base_is_loaded_whole(trained, tiny_folder, tmp_path):
    folder = trained("process", "<|step|>")
    other = load_policy(tiny_folder)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[3, 3] += 1e-3
    assert on_base(AdaptedBase(other, LoraSettings(rank=2), seed=0), "rm", folder) is None
    assert on_base(AdaptedBase(load_policy(tiny_folder, dtype="bfloat16"), LoraSettings(rank=2), seed=0), "rm", folder) is None
    assert on_base(None, "rm", folder) is None and on_base(base_of(tiny_folder), "rm", tiny_folder) is None
