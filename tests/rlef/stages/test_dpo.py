"""DPO's losses by their formulas, its rounds (what each samples, holds to and leaves; a kill between them), its pairs of steps."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from rlef.config import Config, DpoStage
from rlef.models import load_policy, save_policy
from rlef.records import PairRow, Problem, problem_id, read_jsonl
from rlef.rl.pairs import Pair
from rlef.rl.reward import Score
from rlef.rl.sampling import Prompt, Sample
from rlef.rollout.base import Completion
from rlef.stages import dpo
from rlef.stages.context import StageContext
from rlef.tracking import Tracker


def context(folder, inputs, **settings):
    base = {"count": 6, "samples_per_prompt": 4, "max_tokens": 14, "min_margin": 0.0, "max_length_ratio": 99, "batch_size": 4}
    stage = DpoStage(**(base | {"learning_rate": 1e-3} | settings))
    config = Config.model_validate({"model": {"random": {}}, "launch": {"device": "cpu"}, "stages": {"dpo": stage.model_dump()}})
    folder.mkdir(exist_ok=True)
    return StageContext("dpo", config, stage, inputs, folder, Tracker("dpo", folder / "metrics.jsonl", quiet=True))


def logged(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["dpo/loss"] for row in rows if "dpo/loss" in row}


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def pair(prompt, chosen, rejected):
    def sample(tokens):
        score = Score("", (), (), (), 1.0, 1.0, None, "1", 0, 0)
        return Sample(
            Prompt(Problem(id=problem_id("q"), question="q"), prompt, None), 0, Completion(tokens, (0.0,) * len(tokens), True), score
        )

    return Pair(sample(chosen), sample(rejected))


PAIRS = [pair((9, 10, 11), (12, 13, 14, 15), (16, 17)), pair((9, 12), (30,), (31, 32, 33)), pair((20, 21, 22, 23), (5, 6), (7, 8, 9))]
BETA, SMOOTHING = 0.3, 0.2


def log_sigmoid(value):
    return -math.log1p(math.exp(-value))


FORMULAS = {  # of beta times the difference of log-ratios; of ipo: of that of their means a token
    "sigmoid": lambda d: -log_sigmoid(BETA * d),
    "cdpo": lambda d: -(1 - SMOOTHING) * log_sigmoid(BETA * d) - SMOOTHING * log_sigmoid(-BETA * d),
    "robust": lambda d: (-(1 - SMOOTHING) * log_sigmoid(BETA * d) + SMOOTHING * log_sigmoid(-BETA * d)) / (1 - 2 * SMOOTHING),
    "ipo": lambda d: (d - 1 / (2 * BETA)) ** 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("loss,nll_weight", [("sigmoid", 0.0), ("sigmoid", 0.7), ("cdpo", 0.0), ("robust", 0.0), ("ipo", 0.0)])
def test_each_loss_is_its_formula(tiny, tiny_folder, tmp_path, loss, nll_weight):
    """One optimiser step on hand-made pairs: the loss that TRL reports against the formula, of a policy far from its reference."""
    model, tokenizer = tiny
    save_policy(model, tokenizer, tmp_path / "policy")
    reference = load_policy(tiny_folder)

    def logprobs(model, prompt, answer):
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            each = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
        return each[len(prompt) - 1 :].double()

    def ratio(prompt, answer):
        difference = logprobs(model, prompt, answer) - logprobs(reference, prompt, answer)
        return (difference.mean() if loss == "ipo" else difference.sum()).item()

    differences = [ratio(one.prompt_ids, one.chosen_ids) - ratio(one.prompt_ids, one.rejected_ids) for one in PAIRS]
    assert min(map(abs, differences)) > 0.01
    expected = sum(map(FORMULAS[loss], differences)) / len(PAIRS)
    if nll_weight:
        expected -= nll_weight * torch.cat([logprobs(model, one.prompt_ids, one.chosen_ids) for one in PAIRS]).mean().item()
    smoothing = SMOOTHING if loss in ("cdpo", "robust") else 0.0
    ctx = context(tmp_path / "dpo", {}, loss=loss, beta=BETA, label_smoothing=smoothing, nll_weight=nll_weight)
    result = dpo._train(ctx, ctx.settings, PAIRS, tmp_path / "policy", tiny_folder, tmp_path / "out", 0)
    assert result["steps"] == 1 and result["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_rounds_take_the_next_prompts_from_the_policy_of_the_last(scored, tmp_path, monkeypatch):
    trained, real = [], dpo._train

    def watched(ctx, settings, pairs, start, reference, folder, steps):
        trained.append((start, reference, steps))
        return real(ctx, settings, pairs, start, reference, folder, steps)

    monkeypatch.setattr(dpo, "_train", watched)
    settings = {"batch_size": 1}
    one = dpo.run(context(tmp_path / "one", scored, **settings))
    first, second = tmp_path / "two" / "shards" / "round_0", tmp_path / "two" / "shards" / "round_1"
    two = dpo.run(context(tmp_path / "two", scored, rounds=2, **settings))
    steps = one["steps"]
    assert trained[1:] == [(scored["init"], scored["init"], 0), (first / "model", scored["init"], steps)]
    assert one["rounds"] == 1 and two["rounds"] == 2 and two["prompts"] == 12 and two["pairs"] > one["pairs"] and two["steps"] > steps
    assert same(weights(tmp_path / "one"), weights(first)) and not same(weights(first), weights(tmp_path / "two"))
    rows = read_jsonl(tmp_path / "two" / "pairs.jsonl", PairRow)
    asked = [{row.problem_id for row in rows if row.round == number} for number in (0, 1)]
    assert all(asked) and not asked[0] & asked[1]
    assert [row for row in rows if row.round == 0] == read_jsonl(tmp_path / "one" / "pairs.jsonl", PairRow)
    assert logged(tmp_path / "two").keys() == {5, steps + 5} and not second.with_name("round_1.partial").exists()

    dpo.run(context(tmp_path / "held", scored, rounds=2, reference="round", **settings))
    assert trained[-1][:2] == (tmp_path / "held" / "shards" / "round_0" / "model",) * 2

    def killed(*arguments):
        if arguments[1].rounds == 2 and arguments[-1] > 0:
            raise KeyboardInterrupt
        return watched(*arguments)

    monkeypatch.setattr(dpo, "_train", killed)
    with pytest.raises(KeyboardInterrupt):
        dpo.run(context(tmp_path / "killed", scored, rounds=2, **settings))
    monkeypatch.setattr(dpo, "_train", watched)
    before = len(trained)
    dpo.run(context(tmp_path / "killed", scored, rounds=2, **settings))
    assert len(trained) == before + 1  # the finished round is not done again
    assert same(weights(tmp_path / "two"), weights(tmp_path / "killed")) and logged(tmp_path / "two") == logged(tmp_path / "killed")
    assert (tmp_path / "killed" / "pairs.jsonl").read_bytes() == (tmp_path / "two" / "pairs.jsonl").read_bytes()


@pytest.mark.slow
def test_steps_are_paired_after_the_same_right_steps(scored, tmp_path, monkeypatch):
    seen, real = [], dpo._train
    monkeypatch.setattr(dpo, "_train", lambda *arguments: seen.extend(arguments[2]) or real(*arguments))
    result = dpo.run(context(tmp_path / "steps", scored, count=12, pairs="steps", step_threshold=0.3, min_margin=0.1))
    rows = read_jsonl(tmp_path / "steps" / "pairs.jsonl", PairRow)
    assert result["pairs"] == len(rows) == len(seen) and result["pairs"] + sum(result["left_out"].values()) == 12
    assert any(row.prefix for row in rows) and all(row.chosen_reward >= 0.3 > row.rejected_reward for row in rows)
    for one in seen:
        start, prompt = 3 * one.step, one.chosen.prompt.ids
        assert one.prompt_ids == prompt + one.rejected.completion.tokens[:start] == prompt + one.chosen.completion.tokens[:start]
        assert one.rejected_ids == one.rejected.completion.tokens[start : start + 3] != one.chosen_ids
        assert one.chosen.completion.finished and one.chosen.index >= 4  # noise of its own
    assert not same(weights(tmp_path / "steps"), load_file(scored["init"] / "model.safetensors"))


@pytest.mark.slow
def test_a_round_without_a_pair_is_the_last(scored, tmp_path, monkeypatch):
    real = dpo._pairs
    monkeypatch.setattr(dpo, "_pairs", lambda ctx, settings, number, start: real(ctx, settings, number, start) if number == 0 else ([], {}))
    first = dpo.run(context(tmp_path / "dpo", scored, rounds=3))
    assert first["rounds"] == 1 and weights(tmp_path / "dpo")
    assert dpo.run(context(tmp_path / "dpo", scored, rounds=3)) == first  # stopped before the manifest: nothing is done again
