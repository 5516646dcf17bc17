"""What an iteration of PPO hands to its update, and the coefficients it goes on with: by value, from the samples and plain transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch

from rlef.config import Config, PpoStage
from rlef.models import load_policy, load_tokenizer
from rlef.records import Problem
from rlef.rl.losses import mismatch_weights
from rlef.rl.reward import RewardFunction, Score, place_rewards
from rlef.rl.sampling import Prompt, Sample
from rlef.rollout.base import Completion
from rlef.stages import ppo
from rlef.stages.context import StageContext
from rlef.tracking import Tracker

TEMPERATURE, TOKENS, BETA, GAMMA, LAM = 0.7, 12, 0.3, 0.9, 0.8
ADAPTED = {"kl_coef": BETA, "kl_target": 1.3, "kl_horizon": 40}  # between the KL an answer and a token that it comes to


def stage(**settings):
    base = {"iterations": 4, "prompts_per_iteration": 4, "samples_per_prompt": 2, "max_tokens": TOKENS, "minibatches": 2}
    learned = {"critic_warmup": 1, "policy_lr": 1e-2, "lr_warmup": 0, "lr_decay": True, "target_kl": None, "temperature": TEMPERATURE}
    return PpoStage(**(base | learned | {"gamma": GAMMA, "lam": LAM, "correction": "token", "correction_cap": 1.01} | ADAPTED | settings))


@pytest.fixture
def handed(scored, tmp_path, monkeypatch):
    """handed(settings) -> (the scores, the batch and plain log-probabilities of its answers at each update, the log); scores of every
    fifth answer are missing."""
    monkeypatch.setattr(RewardFunction, "score", partial(_some_masked, RewardFunction.score))

    def run(settings):
        seen, real = [], ppo.update
        rewarded = []
        score = RewardFunction.score
        monkeypatch.setattr(RewardFunction, "score", lambda *given: rewarded.append(score(*given)) or rewarded[-1])

        def watched(actors, batch, *rest):
            seen.append((rewarded[-1], batch, [plain(actors.sampler, *row) for row in zip(batch.prompts, batch.answers, strict=True)]))
            return real(actors, batch, *rest)

        monkeypatch.setattr(ppo, "update", watched)
        config = Config.model_validate({"model": {"random": {}}, "stages": {"ppo": settings.model_dump()}})
        tracker = Tracker("ppo", tmp_path / "metrics.jsonl", quiet=True)
        ppo.run(StageContext("ppo", config, settings, scored, tmp_path, tracker))
        return seen, [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]

    return run


def _some_masked(real, self, problems, completions):
    scores = real(self, problems, completions)
    return [replace(one, masked=True) if row % 5 == 4 else one for row, one in enumerate(scores)]


def plain(model, prompt, answer):
    """Log-probabilities of an answer's tokens at the temperature that it was sampled at."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
    return torch.log_softmax(logits, -1)[range(len(answer)), list(answer)]


def estimated(rewards, values):
    """Advantages and returns of one answer, from the definition."""
    advantages, after, carried = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards.tolist()), reversed(values.tolist()), strict=True):
        carried = reward + GAMMA * after - value + GAMMA * LAM * carried
        advantages.append(carried)
        after = value
    advantages = torch.tensor(advantages[::-1])
    return advantages, advantages + values


@pytest.mark.parametrize("reuse", [False, True])
def test_an_update_is_handed_the_rewards_less_the_kl_of_the_policy_and_what_follows_of_them(handed, scored, reuse):
    """R15, R21, 26: minus beta times k1, which is what the log tells; returns from advantages before they are whitened; and as many
    answers end as stop ids say (R6)."""
    seen, log = handed(stage(reuse_logprobs=reuse))
    start, eos = load_policy(scored["init"]), load_tokenizer(scored["init"]).eos_token_id
    for iteration, (scores, batch, now) in enumerate(seen):
        beta, raw = log[iteration]["ppo/kl_coef"], []
        kl, judged = 0.0, 0
        for row, (score, prompt, answer) in enumerate(zip(scores, batch.prompts, batch.answers, strict=True)):
            length, mask = len(answer), [0.0 if score.masked else float(place < len(answer)) for place in range(batch.mask.shape[1])]
            assert batch.mask[row].tolist() == mask
            finished = answer[-1] == eos or answer[-1] in range(20, 80)
            assert finished or length == TOKENS
            if score.masked:
                continue
            old, ref = batch.old_logprobs[row, :length], batch.ref_logprobs[row, :length]
            assert torch.allclose(old, now[row], atol=1e-4) and torch.allclose(ref, plain(start, prompt, answer), atol=1e-4)
            assert torch.allclose(batch.rollout_logprobs[row, :length], old, atol=1e-4)
            placed = torch.tensor(place_rewards(score, length, mode="running_min_delta"))
            placed[-1] -= 0.0 if finished else 0.1
            assert torch.allclose(batch.rewards[row, :length], placed - beta * (old - ref), atol=1e-6)
            advantages, returns = estimated(batch.rewards[row, :length], batch.values[row, :length])
            assert torch.allclose(batch.returns[row, :length], returns, atol=1e-5)
            raw.append(advantages)
            kl, judged = kl + (old - ref).sum().item(), judged + 1
        together = torch.cat(raw)
        white = (together - together.mean()) / together.std(correction=0)
        assert torch.allclose(batch.advantages[batch.mask.bool()], white, atol=1e-4)
        expected = mismatch_weights(batch.old_logprobs, batch.rollout_logprobs, batch.mask, how="token", cap=1.01)
        assert torch.equal(batch.weights, expected)
        assert judged < len(scores) and log[iteration]["ppo/kl"] == pytest.approx(kl / judged, abs=1e-5)
        assert torch.equal(batch.old_logprobs, batch.rollout_logprobs) == reuse
        same = partial(torch.allclose, atol=1e-4) if reuse else torch.equal
        assert same(batch.old_logprobs, batch.ref_logprobs) == (iteration < 2)  # until the policy has moved
    # 31: one step of the coefficient an iteration, from the KL an answer before the update; R22: the last rate of six steps.
    for before, after in pairwise(log):
        error = max(-0.2, min(0.2, before["ppo/kl"] / 1.3 - 1))
        assert after["ppo/kl_coef"] == pytest.approx(before["ppo/kl_coef"] * (1 + error * 8 / 40))
    assert log[0]["ppo/kl_coef"] == BETA and log[3]["optim/lr"] == pytest.approx(1e-2 / 6)


def test_unwhitened_advantages_are_those_that_returns_are_made_of(handed):
    seen, _ = handed(stage(iterations=1, whiten_advantages=False, correction="none"))
    ((_, batch, _),) = seen
    assert torch.allclose(batch.returns, (batch.advantages + batch.values) * batch.mask, atol=1e-6)
    assert torch.equal(batch.weights, torch.ones_like(batch.weights)) and batch.advantages.abs().max() > 0


@pytest.mark.parametrize("mode,paid", [("min_terminal", [0.0, 0.0, 0.0, 0.3]), ("running_min_delta", [0.0, -0.1, 0.0, -0.1])])
@pytest.mark.parametrize("gold,finished,more", [("8", True, 0.0), ("7", True, 2.0), ("8", False, -0.5), ("7", False, 1.5)])
def test_16_what_a_known_answer_adds_and_a_cut_costs_is_on_the_last_token_and_no_part_of_r_i(mode, paid, gold, finished, more):
    score = Score("", ("a", "b"), (0.8, 0.6), (1, 3), 0.5, 0.6, None, "7", 0, 0)
    sample = Sample(Prompt(Problem(id="0" * 16, question="q"), (1,), gold), 0, Completion((2, 3, 4, 5), (0.0,) * 4, finished), score)
    settings = PpoStage(reward_mode=mode, outcome_weight=2.0, missing_eos_penalty=0.5, max_tokens=4)
    assert ppo._rewards(sample, settings) == pytest.approx([*paid[:-1], paid[-1] + more])
    ramp = PpoStage(reward_mode=mode, missing_eos_penalty=0.5, max_tokens=5, soft_tokens=4, soft_penalty=0.8)  # three of four used
    assert ppo._rewards(sample, ramp) == pytest.approx([*paid[:-1], paid[-1] - 0.6 - 0.5 * (not finished)])
