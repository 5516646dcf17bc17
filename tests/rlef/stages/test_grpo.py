"""GRPO and RLOO on TRL's trainer: whose samples it trains on, what its loss and gradient are, what the stage leaves."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from rlef.config import Config, GrpoStage, ModelSection
from rlef.models import load_policy, load_tokenizer, save_policy, stop_ids
from rlef.records import Rollout, read_jsonl
from rlef.rl.groups import deviation, relative, rewards_of, to_come
from rlef.rl.guards import RULES, Rule
from rlef.rl.sampling import read_prompts, sample_answers, take_prompts
from rlef.rollout.base import SamplingParams
from rlef.rollout.hf import HFGenerator
from rlef.stages import grpo
from rlef.stages.context import StageContext
from rlef.tracking import Tracker

PROMPTS, SAMPLES, TOKENS = 4, 3, 14


def context(folder, inputs, **settings):
    base = {"iterations": 2, "prompts_per_iteration": PROMPTS, "samples_per_prompt": SAMPLES, "max_tokens": TOKENS, "minibatches": 2}
    stage = GrpoStage(**(base | {"learning_rate": 1e-3} | settings))
    config = Config.model_validate({"model": {"random": {}}, "launch": {"device": "cpu"}, "stages": {"grpo": stage.model_dump()}})
    folder.mkdir(exist_ok=True)
    return StageContext("grpo", config, stage, inputs, folder, Tracker("grpo", folder / "metrics.jsonl", quiet=True))


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def ready(ctx):
    """The stage's trainer before its first step, and what it samples from."""
    folder = ctx.inputs["init"]
    tokenizer, policy = load_tokenizer(folder), load_policy(folder)
    practice = grpo.Practice(ctx, ctx.settings, tokenizer, policy)
    trainer = grpo.group_trainer(ctx, ctx.settings, practice, policy, tokenizer)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer, practice


def gradient(trainer, loss):
    parameters = [one for one in trainer.model.parameters() if one.requires_grad]
    return torch.cat([one.flatten() for one in torch.autograd.grad(loss, parameters)])


PLACES = [{"prompt": place} for place in range(PROMPTS) for _ in range(SAMPLES)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"form": "process"},
        {"advantage": "rloo", "minibatches": 1},
        {"form": "process", "scale_rewards": "group", "temperature": 0.7},
        {"scale_rewards": "batch", "minibatches": 1},
    ],
)
def test_the_gradient_is_that_of_the_advantages(scored, tmp_path, settings):
    """On samples of the policy itself: sum over tokens of -A_t grad log pi(token t), over answers and max_tokens (Dr. GRPO)."""
    ctx = context(tmp_path / "grpo", scored, beta=0.0, **settings)
    trainer, practice = ready(ctx)
    inputs = trainer._generate_and_score_completions(PLACES)
    got = gradient(trainer, trainer._compute_loss(trainer.model, inputs))

    stage, samples = ctx.settings, practice.samples
    paid = [rewards_of(sample.score, len(sample.completion.tokens), stage.form) for sample in samples]
    groups = [[rewards for rewards, _ in paid[start : start + SAMPLES]] for start in range(0, len(paid), SAMPLES)]
    every = [one for group in groups for rewards in group for one in rewards]
    loss = torch.zeros(())
    for place, sample in enumerate(samples):
        group, tokens = groups[place // SAMPLES], sample.completion.tokens
        scale = {"none": None, "group": deviation([one for rewards in group for one in rewards]), "batch": deviation(every)}
        better = relative(group, baseline=stage.advantage, divide_by=scale[stage.scale_rewards])[place % SAMPLES]
        advantages = torch.tensor(to_come(better, paid[place][1], len(tokens)))
        ids = torch.tensor([[*sample.prompt.ids, *tokens]])
        logprobs = (trainer.model(input_ids=ids).logits[0, :-1] / stage.temperature).log_softmax(-1)
        each = logprobs.gather(-1, ids[0, 1:, None]).squeeze(-1)[len(sample.prompt.ids) - 1 :]
        loss = loss - (advantages * each).sum() / (len(samples) * TOKENS)
    expected = gradient(trainer, loss)
    assert expected.norm() > 1e-4 and (got - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.slow
def test_rloo_is_what_trls_own_trainer_does_and_grpo_scaled_is_trls_grpo(scored, tmp_path):
    from trl.trainer.rloo_trainer import RLOOTrainer

    trainer, practice = ready(context(tmp_path / "grpo", scored, beta=0.0, advantage="rloo", minibatches=1))
    inputs = trainer._generate_and_score_completions(PLACES)
    ours = gradient(trainer, trainer._compute_loss(trainer.model, inputs))
    rewards = torch.tensor([sample.score.total for sample in practice.samples]).view(-1, SAMPLES)
    left_out = (rewards - (rewards.sum(1, keepdim=True) - rewards) / (SAMPLES - 1)).flatten()
    ids, mask = (torch.cat([inputs[f"prompt_{name}"], inputs[f"completion_{name}"]], 1) for name in ("ids", "mask"))
    logprobs, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, inputs["completion_ids"].shape[1])
    sums = (logprobs * inputs["completion_mask"]).sum(1).detach()
    theirs = gradient(trainer, RLOOTrainer._compute_loss(trainer, trainer.model, inputs | {"advantages": left_out, "old_logps": sums}))
    assert theirs.norm() > 1e-3 and (ours * TOKENS - theirs).norm() < 1e-3 * theirs.norm()

    # GRPO divided by the group's deviation: TRL's own advantages of the same rewards.
    trainer, practice = ready(context(tmp_path / "scaled", scored, beta=0.0, scale_rewards="group"))
    ours = trainer._generate_and_score_completions(PLACES)["advantages"]
    trainer.scale_rewards = "group"
    theirs = super(type(trainer), trainer)._generate_and_score_completions(PLACES)["advantages"]
    assert torch.allclose(ours[:, 0], theirs, atol=1e-5) and theirs.abs().max() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{}, {"form": "process", "scale_rewards": "group", "epochs": 2, "micro_batch_size": 3}, {"advantage": "rloo", "beta": 0.0}]
)
def test_the_stage_runs_and_leaves_its_files(scored, tmp_path, settings):
    folder = tmp_path / "grpo"
    result = grpo.run(context(folder, scored, **settings))
    assert result["samples"] == 2 * PROMPTS * SAMPLES and result["steps"] == 4 * settings.get("epochs", 1)
    sampled, trained = ([row for row in rows(folder) if key in row] for key in ("reward/total", "grpo/loss"))
    assert [row["step"] for row in sampled] == [1, 2] == [row["step"] for row in trained]
    assert ("grpo/kl" in trained[0]) == (settings.get("beta") != 0.0)
    rollouts = read_jsonl(folder / "rollouts.jsonl", Rollout)
    assert sampled[1]["reward/total"] == pytest.approx(sum(row.total for row in rollouts) / len(rollouts))
    start, end = load_file(scored["init"] / "model.safetensors"), load_file(folder / "model" / "model.safetensors")
    assert start.keys() == end.keys() and any((start[name] != end[name]).any() for name in start)
    again = grpo.run(context(tmp_path / "again", scored, **settings))
    repeated = load_file(tmp_path / "again" / "model" / "model.safetensors")
    assert again == result and all((end[name] == repeated[name]).all() for name in end)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"epochs": 2, "micro_batch_size": 3, "lr_decay": True}], ids=["plain", "epochs"])
def test_killed_after_a_checkpoint_it_goes_on_to_the_same_weights(scored, tmp_path, monkeypatch, settings):
    monkeypatch.setattr(grpo, "CHECKPOINT_EVERY", 2)
    monkeypatch.setitem(RULES, "length", Rule("rollout/length", lambda first: (1.0, 0.0), "always"))  # told once, in the first iteration
    settings |= {"iterations": 5}
    straight = grpo.run(context(tmp_path / "straight", scored, **settings))
    real = grpo.Practice.sample

    def killed(self, places, policy):
        if places[0] // PROMPTS == 3:
            raise KeyboardInterrupt
        return real(self, places, policy)

    folder = tmp_path / "killed"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(grpo.Practice, "sample", killed)
        grpo.run(context(folder, scored, **settings))
    assert [row["step"] for row in rows(folder) if "reward/total" in row] == [1, 2, 3]
    unfinished = folder / "checkpoints" / f"checkpoint-{8 * settings.get('epochs', 1)}"
    unfinished.mkdir()  # another kill, while this one was written
    sampled = []

    def counted(self, places, policy):
        sampled.append(places[0] // PROMPTS)
        return real(self, places, policy)

    monkeypatch.setattr(grpo.Practice, "sample", counted)
    assert grpo.run(context(folder, scored, **settings)) == straight and sampled == [2, 3, 4] and straight["alarms"]["length"] == 1
    left, right = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("straight", "killed"))
    assert all((left[name] == right[name]).all() for name in left)

    def logged(name):
        return [
            {key: value for key, value in row.items() if "time" not in key and key != "grpo/num_tokens"} for row in rows(tmp_path / name)
        ]

    assert logged("killed") == logged("straight")
    assert read_jsonl(folder / "rollouts.jsonl", Rollout) == read_jsonl(tmp_path / "straight" / "rollouts.jsonl", Rollout)


@pytest.mark.slow
def test_the_samples_are_those_that_ppo_takes(scored, tmp_path):
    """Noise, prompts and stop ids as everywhere; the habits in the checkpoint's generation_config are not read."""
    ctx = context(tmp_path / "grpo", scored, iterations=1, temperature=0.8)
    grpo.run(ctx)
    tokenizer, policy = load_tokenizer(scored["init"]), load_policy(scored["init"])
    stops = stop_ids(tokenizer, policy)
    prompts = take_prompts(read_prompts(scored["prompts"], tokenizer, ModelSection(), use_answers=False), 0, PROMPTS, ctx.seed)
    answers = sample_answers(
        HFGenerator(policy, int(tokenizer.pad_token_id)), prompts, SAMPLES, SamplingParams(TOKENS, 0.8, stops), seed=ctx.seed, iteration=0
    )
    rollouts = read_jsonl(ctx.folder / "rollouts.jsonl", Rollout)
    assert [row.text for row in rollouts] == [str(completion.tokens) for _, _, completion in answers] and len(stops) > 60
    assert [row.finished for row in rollouts] == [completion.finished for _, _, completion in answers]


@pytest.mark.slow
def test_padding_on_the_left_moves_no_learned_position(scored, tmp_path):
    """A GPT-2: log-probabilities of policy and reference in a padded batch are those of a sequence alone."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = load_tokenizer(scored["init"])
    shape = {"n_positions": 128, "n_embd": 64, "n_layer": 2, "n_head": 2, "initializer_range": 0.2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    save_policy(GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape, **ends)), tokenizer, tmp_path / "gpt2")
    trainer, _ = ready(context(tmp_path / "grpo", scored | {"init": tmp_path / "gpt2"}))
    for model in (trainer.model, trainer.ref_model):
        alone, padded = torch.tensor([[9, 10, 11, 12]]), torch.tensor([[0, 0, 0, 9, 10, 11, 12]])
        seen = [trainer._get_per_token_logps_and_entropies(model, ids, (ids > 0).long(), 2)[0] for ids in (alone, padded)]
        assert torch.allclose(*seen, atol=1e-5) and seen[0].abs().max() > 0.1


@pytest.mark.slow
def test_a_good_token_becomes_likelier(scored, tmp_path, monkeypatch):
    """Learns: the share of answers that end at once, where the reward is 1 for them and 0 for others."""
    from rlef.rl.reward import RewardFunction, Score

    def short(self, problems, completions):
        values = [float(len(completion.tokens) < 5) for completion in completions]
        return [Score("", ("s",), (value,), (0,), 1.0, value, None, "1", 0, 0) for value in values]

    monkeypatch.setattr(RewardFunction, "score", short)
    folder = tmp_path / "grpo"
    grpo.run(context(folder, scored, iterations=12, prompts_per_iteration=8, samples_per_prompt=8, learning_rate=3e-3, beta=0.0))
    seen = [row["reward/total"] for row in rows(folder) if "reward/total" in row]
    assert sum(seen[-3:]) / 3 > sum(seen[:3]) / 3 + 0.2
