"""The three layouts of PPO's nets: what is shared, what moves, what is sampled, what is saved."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rlef.config import Config, PpoStage
from rlef.models import load_policy
from rlef.rl.actors import adapted_base, build_actors
from rlef.rl.adapters import POLICY
from rlef.rl.advantages import gae
from rlef.rl.batch import RolloutBatch, columns
from rlef.rl.losses import policy_loss, value_loss
from rlef.rl.update import fill, update
from rlef.rollout.base import SampleRequest, SamplingParams
from rlef.rollout.hf import HFGenerator

CPU = torch.device("cpu")
LAYOUTS = {"whole": {}, "lora": {"lora": {"rank": 4}}, "trunk": {"shared_trunk": True}}
PROMPTS = [(7, 8, 9, 10), (11, 12, 13), (7, 8, 9, 10), (14, 15, 16, 17, 18)]
ANSWERS = [(20, 21, 22), (23,), (24, 25, 26, 27, 28), (29, 30)]


def settings(layout, **changes):
    base = {"prompts_per_iteration": 2, "samples_per_prompt": 2, "minibatches": 1, "critic_warmup": 0, "target_kl": None, "lr_warmup": 0}
    return PpoStage(**(base | {"policy_lr": 1e-3, "critic_lr": 2e-3, "max_grad_norm": 1e9} | LAYOUTS[layout] | changes))


def built(folder, config, *, double=False):
    """The nets, their value heads no longer at zero."""
    whole = Config.model_validate({"model": {"random": {}}, "stages": {"ppo": config.model_dump()}})
    model = load_policy(folder)
    actors = build_actors(config, whole, model, adapted_base(config, model, CPU, 0), folder, folder, CPU)
    torch.manual_seed(1)
    critic = actors.critic.engine.module
    torch.nn.init.normal_(critic.head.weight if hasattr(critic, "head") else critic.model.score.weight, std=0.2)
    if double:
        for part in (*(engine.module for engine in actors.engines.values()), actors.sampler, actors._reference):
            if isinstance(part, torch.nn.Module):
                part.double()
    return actors


def filled(actors, config, *, double=False):
    batch = RolloutBatch.of(PROMPTS, ANSWERS, [(0.0,) * len(answer) for answer in ANSWERS], range(4))
    batch.rewards = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(0)) * batch.mask
    if double:
        for name in ("old_logprobs", "ref_logprobs", "values", "rewards", "mask"):
            setattr(batch, name, getattr(batch, name).double())
    fill(batch, actors, config, 0, CPU)
    batch.advantages, batch.returns = gae(batch.rewards, batch.values, batch.mask)
    return batch


def learn(actors, batch, config, iterations=(0,)):
    for iteration in iterations:
        metrics = update(actors, batch, config, iteration, 0, 0, CPU)
    return metrics


def gradients(actors):
    """Filled with each engine's whole gradient as its optimiser sees it."""
    seen = {}
    for name, engine in actors.engines.items():

        def watched(name=name, engine=engine, real=engine.optimizer.step):
            seen[name] = {key: weight.grad.clone() for key, weight in engine.module.named_parameters()}
            return real()

        engine.optimizer.step = watched
    return seen


def snapshot(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def moved(module, before):
    return {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_reference_is_the_start_bitwise_before_and_after_updates(tiny_folder, layout):
    config = settings(layout)
    actors = built(tiny_folder, config, double=True)
    batch = filled(actors, config, double=True)
    assert torch.equal(batch.ref_logprobs, batch.old_logprobs) and batch.ref_logprobs.abs().max() > 1
    learn(actors, batch, config, range(3))
    after = filled(actors, config, double=True)
    assert torch.equal(after.ref_logprobs, batch.ref_logprobs) and (after.old_logprobs - after.ref_logprobs).abs().max() > 1e-3
    layout_of = columns(batch, 0, CPU)
    plain = torch.log_softmax(load_policy(tiny_folder).double()(torch.tensor([PROMPTS[0] + ANSWERS[0]])).logits[0], -1)
    told = actors.reference(layout_of, batch.mask.shape[1], 1.0)[0, :3]
    assert torch.allclose(told, plain[range(3, 6), list(ANSWERS[0])], atol=1e-12)


def test_adapters_move_and_the_base_does_not(tiny_folder):
    config = settings("lora")
    actors = built(tiny_folder, config)
    start, base = {name: snapshot(engine.module) for name, engine in actors.engines.items()}, snapshot(actors.sampler)
    learn(actors, filled(actors, config), config, range(3))
    changed = moved(actors.sampler, base)
    assert changed == {name for name in base if "lora_" in name}
    plain = dict(load_policy(tiny_folder).named_parameters())
    for name, value in actors.sampler.named_parameters():
        if "lora_" not in name:
            assert torch.equal(value, plain[name.replace(".base_layer", "")])
    assert moved(actors.engines["critic"].module, start["critic"]) == start["critic"].keys() and "head.weight" in start["critic"]
    # What an engine holds, moves and saves is its own part alone.
    own = {name: sum(value.numel() for value in part.values()) for name, part in start.items()}
    adapter = sum(value.numel() for name, value in base.items() if f".{POLICY}." in name)
    assert own == {"policy": adapter, "critic": adapter + actors.sampler.config.hidden_size + 1}
    assert {name for name, one in actors.sampler.named_parameters() if one.requires_grad} == changed


@pytest.mark.parametrize("layout", LAYOUTS)
def test_11_a_critic_that_warms_up_moves_no_policy(tiny_folder, layout):
    """Of a shared trunk the value head alone is trained."""
    config = settings(layout, critic_warmup=2)
    actors = built(tiny_folder, config)
    batch, critic = filled(actors, config), actors.critic.engine.module
    before = snapshot(critic)
    metrics = learn(actors, batch, config, range(2))
    assert moved(critic, before) == ({"head.weight", "head.bias"} if layout == "trunk" else before.keys())
    again = filled(actors, config)
    assert torch.equal(again.old_logprobs, batch.old_logprobs) and not torch.equal(again.values, batch.values)
    assert "ppo/loss" not in metrics and metrics["value/grad_norm"] > 0 and metrics["optim/steps"] == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_r17_what_is_saved_loads_to_the_same_logits(tiny_folder, tmp_path, layout):
    config = settings(layout, policy_lr=1e-2)
    actors = built(tiny_folder, config)
    learn(actors, filled(actors, config), config, range(3))
    actors.save(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    generator = HFGenerator(actors.sampler, 0)
    actors.sync(generator)
    ids = torch.tensor([PROMPTS[0] + ANSWERS[0]])
    with torch.no_grad():
        trained, start = actors.sampler(ids).logits, load_policy(tiny_folder)(ids).logits
        assert (loaded(ids).logits - trained).abs().max() < 1e-5 and (start - trained).abs().max() > 1e-2
        if layout == "lora":
            beside = PeftModel.from_pretrained(load_policy(tiny_folder), str(tmp_path / "adapter"))
            assert (beside(input_ids=ids).logits - trained).abs().max() < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_4_the_sampler_draws_from_the_policy_as_it_is(tiny_folder, layout):
    """After an update whose last forward was the critic's."""
    config = settings(layout, policy_lr=1e-2)
    actors = built(tiny_folder, config)
    learn(actors, filled(actors, config), config, range(3))
    learn(actors, filled(actors, config), settings(layout, critic_warmup=9))
    generator = HFGenerator(actors.sampler, 0)
    actors.sync(generator)
    done = generator.generate([SampleRequest(prompt, (row,)) for row, prompt in enumerate(PROMPTS)], SamplingParams(6))
    batch = RolloutBatch.of(PROMPTS, [one.tokens for one in done], [one.logprobs for one in done], range(4))
    fill(batch, actors, config, 0, CPU)
    assert (batch.rollout_logprobs - batch.old_logprobs).abs().max() < 1e-4
    assert (batch.rollout_logprobs - batch.ref_logprobs).abs().max() > 1e-2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_8_micro_batches_and_row_order_change_no_gradient(tiny_folder, layout):
    found = []
    for size, order in ((4, [0, 1, 2, 3]), (2, [3, 1, 0, 2]), (1, [2, 3, 1, 0])):
        config = settings(layout, micro_batch_size=size, entropy_coef=0.1)
        actors = built(tiny_folder, config, double=True)
        batch, seen = filled(actors, config, double=True), gradients(actors)
        learn(actors, batch.select(order), config)
        found.append(torch.cat([grad.flatten() for part in seen.values() for grad in part.values()]))
    assert found[0].abs().max() > 1e-3 and max((found[0] - other).abs().max() for other in found[1:]) < 1e-10


def test_8_one_trunk_has_the_gradient_of_both_losses(tiny_folder):
    """Every row alone, without padding, through plain transformers and a head written out."""
    config = settings("trunk", value_coef=0.3)
    actors = built(tiny_folder, config, double=True)
    batch, seen, module = filled(actors, config, double=True), gradients(actors), actors.policy.engine.module
    total = 0.0
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        span, width, ones = slice(len(prompt) - 1, len(prompt) + len(answer) - 1), len(answer), torch.ones(len(answer)).double()
        output = module.model(torch.tensor([prompt + answer]), output_hidden_states=True)
        logprobs = torch.log_softmax(output.logits[0, span], -1)[range(width), list(answer)]
        values = output.hidden_states[-1][0, span] @ module.head.weight[0] + module.head.bias
        total = total + policy_loss(logprobs, batch.old_logprobs[row, :width], batch.advantages[row, :width], ones)[0]
        total = total + 0.3 * value_loss(values, batch.values[row, :width], batch.returns[row, :width], ones)[0]
    total = total / sum(map(len, ANSWERS))
    names, weights = zip(*module.named_parameters(), strict=True)
    true = dict(zip(names, torch.autograd.grad(total, weights), strict=True))
    learn(actors, batch, config)
    for name, gradient in seen["policy"].items():
        assert (gradient - true[name]).abs().max() < 1e-9 and true[name].abs().max() > 1e-6, name


@pytest.mark.parametrize("layout", ["lora", "trunk"])
def test_8_gradient_checkpointing_changes_no_gradient(tiny_folder, layout):
    """Layers run again in the backward pass must find the adapter that was on in the forward pass."""
    found = []
    for wanted in (False, True):
        config = settings(layout, gradient_checkpointing=wanted)
        actors = built(tiny_folder, config, double=True)
        learn(actors, filled(actors, config, double=True), config, range(2))  # so that no adapter is at zero any more
        batch, seen = filled(actors, config, double=True), gradients(actors)
        learn(actors, batch, config)
        found.append(torch.cat([grad.flatten() for part in seen.values() for grad in part.values()]))
    assert found[0].abs().max() > 1e-3 and (found[0] - found[1]).abs().max() < 1e-10


@pytest.mark.parametrize("layout", LAYOUTS)
def test_11_bf16_products_leave_weights_and_losses_in_fp32(tiny_folder, layout, monkeypatch):
    seen = []

    def watch(logprobs, old, advantages, mask, **options):
        seen.append(logprobs)
        return policy_loss(logprobs, old, advantages, mask, **options)

    monkeypatch.setattr("rlef.rl.update.policy_loss", watch)
    exact = filled(built(tiny_folder, settings(layout)), settings(layout))
    config = settings(layout, bf16=True)
    actors = built(tiny_folder, config)
    batch, start = filled(actors, config), {name: snapshot(engine.module) for name, engine in actors.engines.items()}
    assert torch.equal(batch.ref_logprobs, batch.old_logprobs)  # the reference in the same precision
    assert 0 < (batch.old_logprobs - exact.old_logprobs).abs().max() < 0.1 and 0 < (batch.values - exact.values).abs().max() < 0.1
    learn(actors, batch, config, range(3))
    assert all(one.dtype == torch.float32 for one in seen)
    for name, engine in actors.engines.items():
        assert moved(engine.module, start[name]) == start[name].keys()
        assert all(value.dtype == torch.float32 for value in engine.module.parameters())


def test_a_shared_trunk_learns_at_one_rate_and_its_value_head_at_another(tiny_folder):
    """Adam's first step is its learning rate, whatever the gradient."""
    config = settings("trunk")
    actors = built(tiny_folder, config)
    module = actors.policy.engine.module
    batch, before = filled(actors, config), snapshot(module)
    learn(actors, batch, config)
    steps = {name: (value - before[name]).abs().max().item() for name, value in module.named_parameters()}
    assert steps.pop("head.weight") == pytest.approx(2e-3, rel=1e-2) and steps.pop("head.bias") == pytest.approx(2e-3, rel=1e-2)
    assert max(steps.values()) == pytest.approx(1e-3, rel=1e-2)
