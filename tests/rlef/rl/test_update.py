"""PPO's update on a real tiny model: invariances, step counts, clipping, what must and must not move."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rlef.config import PpoStage
from rlef.engines import make_engine
from rlef.errors import UserError
from rlef.models import load_policy
from rlef.rl.actors import Actors, CriticNet, PolicyNet
from rlef.rl.advantages import gae, whiten
from rlef.rl.batch import RolloutBatch, by_length, columns, dealt, joined
from rlef.rl.losses import policy_loss
from rlef.rl.policy import TokenCritic, TokenPolicy
from rlef.rl.update import fill, update
from rlef.rollout.base import SampleRequest, SamplingParams
from rlef.rollout.hf import HFGenerator

CPU = torch.device("cpu")


def rollouts(model, tokenizer, rows=8, seed=0):
    prompts = [tuple(tokenizer.encode("Ann has 3 pens. " * (1 + row % 3))) for row in range(rows)]
    requests = [SampleRequest(prompt, (seed, row)) for row, prompt in enumerate(prompts)]
    stops = (tokenizer.eos_token_id, *range(20, 60))  # so many that the answers' lengths differ, without which padding shows nothing
    done = HFGenerator(model, tokenizer.pad_token_id).generate(requests, SamplingParams(12, 1.0, stops))
    assert len({len(one.tokens) for one in done}) > 3
    batch = RolloutBatch.of(prompts, [one.tokens for one in done], [one.logprobs for one in done], range(rows))
    generator = torch.Generator().manual_seed(seed)
    batch.rewards = torch.randn(batch.mask.shape, generator=generator) * batch.mask
    return batch


def engines(folder, *, policy_lr=1e-3, critic_lr=1e-3, max_grad_norm=1e9, double=False, dtype="float32"):
    policy, critic = TokenPolicy(load_policy(folder, dtype=dtype)), TokenCritic.from_folder(folder, dtype=dtype)
    torch.manual_seed(0)
    torch.nn.init.normal_(critic.model.score.weight, std=0.2)
    if double:
        policy, critic = policy.double(), critic.double()
    common = {"max_grad_norm": max_grad_norm, "warmup_steps": 0, "device": CPU, "deepspeed_json": None}
    return make_engine(policy, lr=policy_lr, **common), make_engine(critic, lr=critic_lr, **common)


def apart(policy, critic):
    return Actors(PolicyNet(policy), CriticNet(critic), policy.module)


def test_a_critic_starts_at_zero_whatever_its_family_calls_the_head(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2, n_positions=16)).save_pretrained(tmp_path)
    critic = TokenCritic.from_folder(tmp_path)
    assert not critic.model.classifier.weight.any() and not critic.model(torch.arange(4)[None]).logits.any()


def settings(**changes):
    base = {
        "prompts_per_iteration": 4,
        "samples_per_prompt": 2,
        "minibatches": 2,
        "epochs": 1,
        "micro_batch_size": 8,
        "critic_warmup": 0,
        "target_kl": None,
    }
    return PpoStage(**(base | changes))


def prepared(folder, tokenizer, config, *, double=False, pad=None, **options):
    policy, critic = engines(folder, double=double, **options)
    batch = rollouts(load_policy(folder), tokenizer)
    if double:
        for name in ("old_logprobs", "ref_logprobs", "values", "rewards", "mask"):
            setattr(batch, name, getattr(batch, name).double())
    fill(batch, apart(policy, critic), config, tokenizer.pad_token_id if pad is None else pad, CPU)
    batch.advantages, batch.returns = gae(batch.rewards, batch.values, batch.mask)
    return policy, critic, batch


def weights(engine):
    return torch.cat([parameter.detach().flatten().clone() for parameter in engine.module.parameters()])


def optimizer_gradients(engine):
    """Filled with the whole gradient, as the optimiser sees it, at each of its steps."""
    seen, real = [], engine.optimizer.step
    engine.optimizer.step = lambda: seen.append(torch.cat([p.grad.flatten().clone() for p in engine._masters])) or real()
    return seen


def watched_losses(monkeypatch):
    """Filled with the (log-probabilities, old ones, mask) of each policy loss."""
    seen = []

    def watch(logprobs, old, advantages, mask, **options):
        seen.append((logprobs.detach(), old, mask))
        return policy_loss(logprobs, old, advantages, mask, **options)

    monkeypatch.setattr("rlef.rl.update.policy_loss", watch)
    return seen


def test_4_first_ratio_is_one_with_dropout_in_the_config(tiny, tmp_path):
    from rlef.models import save_policy

    model, tokenizer = tiny
    model.config.attention_dropout = 0.1
    save_policy(model, tokenizer, tmp_path)
    policy, critic, batch = prepared(tmp_path, tokenizer, settings())
    policy.module.train()
    critic.module.train()  # token classifiers come with a dropout of 0.1 on their head
    layout, width = columns(batch, tokenizer.pad_token_id, CPU), batch.mask.shape[1]
    logprobs, _ = policy.forward(layout, width)
    assert torch.equal(logprobs.detach(), policy.forward(layout, width)[0].detach())
    assert ((logprobs - batch.old_logprobs).abs() * batch.mask).max() < 1e-4
    values = critic.forward(layout, width)
    assert values.abs().max() > 0 and ((values - batch.values).abs() * batch.mask).max() < 1e-4


def test_4_first_ratio_is_exactly_one_at_equal_shapes(tiny_folder, tiny, monkeypatch):
    _, tokenizer = tiny
    config = settings(minibatches=1, temperature=0.7)
    policy, critic, batch = prepared(tiny_folder, tokenizer, config)
    seen = watched_losses(monkeypatch)
    metrics = update(apart(policy, critic), batch, config, 0, 0, tokenizer.pad_token_id, CPU)
    ((logprobs, old, mask),) = seen
    assert torch.equal(logprobs * mask, old * mask) and (old * mask).abs().max() > 1
    assert metrics["ppo/ratio"] == 1 and metrics["ppo/approx_kl"] == 0 and metrics["ppo/clip_fraction"] == 0


def test_the_samplers_log_probabilities_save_a_forward_of_the_policy(tiny_folder, tiny, monkeypatch):
    model, tokenizer = load_policy(tiny_folder), tiny[1]
    policy, critic, batch = prepared(tiny_folder, tokenizer, settings())
    nets, again = apart(policy, critic), rollouts(model, tokenizer)
    nets._reference = TokenPolicy(model)
    monkeypatch.setattr(policy, "forward", lambda *_, **__: pytest.fail("a forward of the policy"))
    entropy = fill(again, nets, settings(), tokenizer.pad_token_id, CPU, reuse=True)
    assert torch.equal(again.old_logprobs, again.rollout_logprobs) and torch.equal(entropy, -again.rollout_logprobs)
    for name in ("old_logprobs", "ref_logprobs", "values"):
        assert ((getattr(again, name) - getattr(batch, name)).abs() * batch.mask).max() < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_4_first_ratio_is_near_one_at_other_shapes(tiny_folder, tiny, monkeypatch, dtype):
    """Scored eight rows at a time, trained one at a time: no row may look off-policy before the first step."""
    _, tokenizer = tiny
    policy, critic, batch = prepared(tiny_folder, tokenizer, settings(), dtype=dtype)
    seen = watched_losses(monkeypatch)
    config = settings(minibatches=1, micro_batch_size=1)
    metrics = update(apart(policy, critic), batch, config, 0, 0, tokenizer.pad_token_id, CPU)
    assert len(seen) == 8 and metrics["ppo/clip_fraction"] == 0
    assert all(logprobs.dtype == torch.float32 for logprobs, _, _ in seen)  # the log-softmax of bf16 logits is off by up to 0.08
    gaps = torch.cat([(logprobs - old)[mask.bool()].abs() for logprobs, old, mask in seen])
    if dtype == "float32":
        assert gaps.max() < 1e-4 and metrics["ppo/approx_kl"] < 1e-8
    else:
        assert gaps.mean() < 1e-2 and metrics["ppo/approx_kl"] < 1e-3


def test_4_sampler_and_trainer_agree(tiny_folder, tiny):
    _, tokenizer = tiny
    _, _, batch = prepared(tiny_folder, tokenizer, settings())
    assert ((batch.old_logprobs - batch.rollout_logprobs).abs() * batch.mask).max() < 1e-4


def test_8_micro_batches_row_order_and_padding_change_nothing(tiny_folder, tiny):
    """Gradients of both nets at the optimiser, in fp64: after Adam a wrong scale could not be seen any more."""
    _, tokenizer = tiny
    orders = {8: list(range(8)), 4: [5, 2, 7, 0, 3, 6, 1, 4], 2: [7, 6, 5, 4, 3, 2, 1, 0], 1: [1, 0, 3, 2, 5, 4, 7, 6]}
    found = {}
    for micro, order in orders.items():
        config = settings(micro_batch_size=micro)
        policy, critic, batch = prepared(tiny_folder, tokenizer, config, double=True)
        gradients = [optimizer_gradients(policy), optimizer_gradients(critic)]
        metrics = update(apart(policy, critic), batch.select(order), config, 0, 0, tokenizer.pad_token_id, CPU)
        found[micro] = [seen[0] for seen in gradients], metrics
    for micro in (4, 2, 1):
        for gradient, whole in zip(found[micro][0], found[8][0], strict=True):
            assert whole.abs().max() > 1e-3 and (gradient - whole).abs().max() < 1e-10
        assert {name: found[micro][1][name] for name in found[8][1]} == pytest.approx(found[8][1], rel=1e-4, abs=1e-6)


def test_8_the_gradient_is_the_mean_over_the_tokens_of_the_whole_step(tiny_folder, tiny):
    """Brute force: every row alone, without padding, through plain transformers."""
    from rlef.rl.losses import value_loss

    _, tokenizer = tiny
    config = settings(minibatches=1, micro_batch_size=2)
    policy, critic, batch = prepared(tiny_folder, tokenizer, config, double=True)
    expected = []
    for net in (policy, critic):
        total = 0.0
        for row, (prompt, answer) in enumerate(zip(batch.prompts, batch.answers, strict=True)):
            span = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
            logits = net.module.model(torch.tensor([prompt + answer])).logits[0, span]
            width, ones = len(answer), torch.ones(len(answer))
            if net is policy:
                logprobs = torch.log_softmax(logits, -1)[range(width), list(answer)]
                total = total + policy_loss(logprobs, batch.old_logprobs[row, :width], batch.advantages[row, :width], ones)[0]
            else:
                total = total + value_loss(logits[:, 0], batch.values[row, :width], batch.returns[row, :width], ones)[0]
        (total / sum(map(len, batch.answers))).backward()
        expected.append(torch.cat([p.grad.flatten().clone() for p in net.module.parameters()]))
        net.discard()
    gradients = [optimizer_gradients(policy), optimizer_gradients(critic)]
    update(apart(policy, critic), batch, config, 0, 0, tokenizer.pad_token_id, CPU)
    for (gradient,), true in zip(gradients, expected, strict=True):
        assert true.abs().max() > 1e-3 and (gradient - true).abs().max() < 1e-6


def test_a_shared_prompt_needs_an_attention_that_takes_a_mask(tiny_folder, tiny):
    _, tokenizer = tiny
    policy, _, batch = prepared(tiny_folder, tokenizer, settings())
    policy.module.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match="share_prompts"):
        policy.forward(columns(batch, tokenizer.pad_token_id, CPU, shared=True), batch.mask.shape[1])


def test_8_gradient_is_invariant_to_1e_10(tiny_folder, tiny):
    _, tokenizer = tiny
    config = settings()
    policy, _, batch = prepared(tiny_folder, tokenizer, config, double=True)
    gradients = []
    for size, shared, attention in ((8, False, "sdpa"), (4, False, "sdpa"), (1, False, "sdpa"), (8, True, "sdpa"), (3, True, "eager")):
        policy.module.zero_grad()
        policy.module.model.set_attn_implementation(attention)
        for index in by_length(batch, range(8), size, shared=shared):
            part = batch.select(index)
            layout = columns(part, tokenizer.pad_token_id, CPU, shared=shared)
            assert len(layout.input_ids) == (len(set(part.prompts)) if shared else len(part))
            logprobs, _ = policy.forward(layout, part.mask.shape[1])
            loss, _ = policy_loss(logprobs, part.old_logprobs, part.advantages, part.mask)
            (loss / batch.mask.sum()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.module.parameters()]))
    distances = [(gradients[0] - other).abs().max().item() for other in gradients[1:]]
    assert max(distances[:2]) < 1e-10
    assert max(distances[2:]) < 1e-5 * gradients[0].abs().max()  # attention with a mask has fp32 inside


@pytest.mark.parametrize("how", ["token", "sequence", "constant"])
def test_8_each_mean_is_over_the_whole_step_whatever_the_micro_batches(tiny_folder, tiny, how):
    """The optimiser's gradient, entropy bonus included, against that of the mean written out row by row; 27: each token by its weight."""
    _, tokenizer = tiny
    found = []
    trust = torch.rand(8, 12, generator=torch.Generator().manual_seed(1)) + 0.5
    for size in (8, 1):
        config = settings(minibatches=1, micro_batch_size=size, loss_mean=how, entropy_coef=0.3, max_tokens=12)
        policy, critic, batch = prepared(tiny_folder, tokenizer, config)
        batch.weights = trust[:, : batch.mask.shape[1]]
        seen = optimizer_gradients(policy)
        update(apart(policy, critic), batch, config, 0, 0, tokenizer.pad_token_id, CPU)
        found.append(seen[0])
    assert (found[0] - found[1]).abs().max() < 1e-5 * found[0].abs().max()

    policy, _, batch = prepared(tiny_folder, tokenizer, config)
    layout = columns(batch, tokenizer.pad_token_id, CPU)
    logprobs, entropy = policy.forward(layout, batch.mask.shape[1], entropy=True)
    rows = []
    for row, answer in enumerate(batch.answers):
        tokens = slice(0, len(answer))
        weighted = batch.advantages[row, tokens] * trust[row, tokens]
        each = -weighted * (logprobs[row, tokens] - batch.old_logprobs[row, tokens]).exp() - 0.3 * entropy[row, tokens]
        rows.append({"token": each.sum(), "sequence": each.mean(), "constant": each.sum() / 12}[how])
    (sum(rows) / (batch.mask.sum() if how == "token" else 8)).backward()
    true = torch.cat([p.grad.flatten() for p in policy.module.parameters()])
    assert (found[0] - true).abs().max() < 1e-4 * true.abs().max()


def test_8_gradient_checkpointing_changes_no_gradient_and_is_off_when_sampling(tiny_folder, tiny):
    _, tokenizer = tiny
    found, forwards = [], []
    for wanted in (False, True):
        config = settings(minibatches=1, gradient_checkpointing=wanted)
        policy, critic, batch = prepared(tiny_folder, tokenizer, config)
        seen = [optimizer_gradients(engine) for engine in (policy, critic)]
        if wanted:
            for engine in (policy, critic):
                engine.module.model.activation_checkpointing_enable({"use_reentrant": False})
            policy.module.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: forwards.append(torch.is_grad_enabled()))
        update(apart(policy, critic), batch, config, 0, 0, tokenizer.pad_token_id, CPU)
        found.append([gradients[0] for gradients in seen])
    assert len(forwards) == 2 and all(forwards)  # once more in the backward
    for plain, kept in zip(*found, strict=True):
        assert (plain - kept).abs().max() <= 1e-6 * plain.abs().max()
    again = rollouts(policy.module.model, tokenizer)  # with its cache: the same as without any checkpointing
    torch.manual_seed(0)
    assert len(again.answers) == 8 and not policy.module.model.training


@pytest.mark.parametrize("how", ["token", "sequence", "constant"])
def test_8_a_masked_row_is_as_if_it_had_never_been_sampled(tiny_folder, tiny, how):
    """Gradients of both nets and the log, in fp64, whatever the micro-batches; 3: NaN stands there and behind each answer's end."""
    _, tokenizer = tiny
    found = []
    for size, absent in ((8, False), (1, False), (8, True)):
        config = settings(minibatches=1, micro_batch_size=size, loss_mean=how, max_tokens=12)
        policy, critic, batch = prepared(tiny_folder, tokenizer, config, double=True)
        kept = [0, 1, 3, 4, 5, 7]
        if absent:
            batch = batch.select(kept)
        else:
            batch.mask[[2, 6]] = 0.0
            batch.rewards[[2, 6]], batch.values[[2, 6]] = 1e3, float("nan")
        batch.advantages, batch.returns = gae(batch.rewards, batch.values, batch.mask)
        batch.advantages = whiten(batch.advantages, batch.mask, lambda tensor: tensor)
        for name in ("old_logprobs", "values", "advantages", "returns", "weights"):
            setattr(batch, name, getattr(batch, name).masked_fill(batch.mask == 0, float("nan")))
        gradients = [optimizer_gradients(engine) for engine in (policy, critic)]
        metrics = update(apart(policy, critic), batch, config, 0, 0, tokenizer.pad_token_id, CPU)
        del metrics["optim/tokens"]  # which a masked row is among
        found.append(([seen[0] for seen in gradients], metrics))
    for gradients, metrics in found[:2]:
        for gradient, expected in zip(gradients, found[2][0], strict=True):
            assert expected.abs().max() > 1e-3 and (gradient - expected).abs().max() < 1e-10
        assert metrics == pytest.approx(found[2][1], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("rows", "steps"), [(slice(0, 2), 3), (slice(0, 8), 0)])
def test_9_a_mini_batch_that_is_masked_as_a_whole_takes_no_step(tiny_folder, tiny, rows, steps):
    _, tokenizer = tiny
    config = settings(minibatches=4)
    policy, critic, batch = prepared(tiny_folder, tokenizer, config)
    before = weights(policy), weights(critic)
    batch.mask[rows] = 0.0
    metrics = update(apart(policy, critic), batch, config, 0, 0, tokenizer.pad_token_id, CPU)
    assert metrics["optim/steps"] == steps and metrics["optim/skipped_steps"] == 0
    moved = not torch.equal(before[0], weights(policy)), not torch.equal(before[1], weights(critic))
    assert moved == (steps > 0, steps > 0) and all(weights(engine).isfinite().all() for engine in (policy, critic))


@pytest.mark.parametrize("epochs,minibatches", [(1, 1), (2, 3), (3, 4)])
def test_9_optimizer_steps_are_epochs_times_minibatches(tiny_folder, tiny, epochs, minibatches):
    """R1, R2: on every batch, the last one included; uneven mini-batches too."""
    _, tokenizer = tiny
    config = settings(epochs=epochs, minibatches=minibatches, micro_batch_size=2)
    policy, critic, batch = prepared(tiny_folder, tokenizer, config)
    calls = []
    for engine in (policy, critic):
        real = engine.optimizer.step
        engine.optimizer.step = lambda real=real: calls.append(1) or real()
    for iteration in range(2):
        calls.clear()
        metrics = update(apart(policy, critic), batch, config, iteration, 0, tokenizer.pad_token_id, CPU)
        assert metrics["optim/steps"] == epochs * minibatches and len(calls) == 2 * epochs * minibatches


def test_10_lr_zero_moves_nothing_and_the_ratio_stays_one(tiny_folder, tiny):
    _, tokenizer = tiny
    config = settings(epochs=3)
    policy, critic, batch = prepared(tiny_folder, tokenizer, config, policy_lr=0.0, critic_lr=0.0)
    before = weights(policy), weights(critic)
    metrics = update(apart(policy, critic), batch, config, 0, 0, tokenizer.pad_token_id, CPU)
    assert torch.equal(before[0], weights(policy)) and torch.equal(before[1], weights(critic))
    assert metrics["ppo/ratio"] == pytest.approx(1, abs=1e-5) and metrics["ppo/clip_fraction"] == 0 and abs(metrics["ppo/approx_kl"]) < 1e-6


def test_11_both_nets_move_and_warm_up_holds_the_policy_still(tiny_folder, tiny):
    _, tokenizer = tiny
    config = settings(critic_warmup=1)
    policy, critic, batch = prepared(tiny_folder, tokenizer, config)
    before = weights(policy), weights(critic)
    update(apart(policy, critic), batch, config, 0, 0, tokenizer.pad_token_id, CPU)
    assert torch.equal(before[0], weights(policy)) and not torch.equal(before[1], weights(critic))
    start = {name: parameter.detach().clone() for name, parameter in policy.module.named_parameters()}
    for iteration in (1, 2, 3):
        update(apart(policy, critic), batch, config, iteration, 0, tokenizer.pad_token_id, CPU)
    still = [name for name, parameter in policy.module.named_parameters() if torch.equal(parameter, start[name])]
    assert still == []


def test_11_bf16_policy_and_critic_move_through_fp32_masters(tiny_folder, tiny):
    """At an lr of 1e-6 a bf16 weight of 0.02 never moves by itself."""
    _, tokenizer = tiny
    config = settings(minibatches=1)
    policy, critic, batch = prepared(tiny_folder, tokenizer, config, dtype="bfloat16", policy_lr=1e-6, critic_lr=1e-6)
    start = [[master.detach().clone() for master in engine._masters] for engine in (policy, critic)]
    for iteration in range(3):
        update(apart(policy, critic), batch, config, iteration, 0, tokenizer.pad_token_id, CPU)
    for engine, before in zip((policy, critic), start, strict=True):
        assert all(
            master.dtype == torch.float32 and not torch.equal(master, old) for master, old in zip(engine._masters, before, strict=True)
        )
        for parameter, master in zip(engine.module.parameters(), engine._masters, strict=True):
            assert parameter.dtype == torch.bfloat16 and torch.equal(parameter, master.bfloat16())


def test_31_early_stop_drops_the_step_that_is_too_far_and_all_that_follow(tiny_folder, tiny, monkeypatch):
    """Both nets: the first of six steps is taken, the second's gradients are forgotten before an optimiser sees them, no third is looked at."""
    _, tokenizer = tiny
    found, losses = [], watched_losses(monkeypatch)
    for target in (1e-4, None):
        config = settings(epochs=2, minibatches=3, target_kl=target)
        policy, critic, batch = prepared(tiny_folder, tokenizer, config, policy_lr=1e-2)
        seen = [optimizer_gradients(engine) for engine in (policy, critic)]
        metrics = update(apart(policy, critic), batch, config, 0, 0, tokenizer.pad_token_id, CPU)
        found.append((seen, metrics["optim/steps"], len(losses)))
        losses.clear()
        left = [p.grad for engine in (policy, critic) for p in engine.module.parameters() if p.grad is not None]
        assert left == []
        assert metrics["ppo/early_stop"] == (target is not None)
    (stopped, *counts), (whole, *all_counts) = found
    assert (counts, all_counts) == ([1, 2], [6, 6])
    for one, other in zip(stopped, whole, strict=True):
        assert len(one) == 1 and len(other) == 6 and torch.equal(one[0], other[0])


def test_15_pad_equal_to_eos_changes_nothing(tiny_folder, tiny):
    _, tokenizer = tiny
    eos = tokenizer.eos_token_id
    moved = []
    for pad in (tokenizer.pad_token_id, eos):
        config = settings(micro_batch_size=8)
        policy, critic, batch = prepared(tiny_folder, tokenizer, config, double=True, pad=pad)
        update(apart(policy, critic), batch, config, 0, 0, pad, CPU)
        moved.append(weights(policy))
    assert (moved[0] - moved[1]).abs().max() < 1e-8


def test_15_eos_in_a_prompt_is_attended_and_learns_where_the_checkpoint_pads_with_it(tiny, tmp_path):
    """nn.Embedding zeroes the gradient of its padding row, and a mask made from ids would hide every EOS of a chat."""
    from rlef.models import save_policy

    model, tokenizer = tiny
    eos, ids = tokenizer.eos_token_id, tokenizer.encode("Ann has 3 pens.")
    prompts, answers = [(*ids[:3], eos, *ids[3:]), tuple(ids[:4])], [(5, 6, eos), (eos,)]
    batch = RolloutBatch.of(prompts, answers, [(0.0,) * 3, (0.0,)], [0, 1])
    gradients = []
    for pad in (tokenizer.pad_token_id, eos):
        model.config.pad_token_id = pad
        save_policy(model, tokenizer, tmp_path / str(pad))
        policy, critic = engines(tmp_path / str(pad))
        layout = columns(batch, pad, CPU)
        logprobs, values = policy.forward(layout, 3)[0], critic.forward(layout, 3)
        plain = torch.log_softmax(policy.module.model(torch.tensor([prompts[0] + answers[0]])).logits[0], -1)
        assert torch.allclose(logprobs[0], plain[range(len(prompts[0]) - 1, len(prompts[0]) + 2), list(answers[0])], atol=1e-5)
        logprobs.sum().backward()
        values.sum().backward()
        rows = [engine.module.model.get_input_embeddings().weight.grad for engine in (policy, critic)]
        assert rows[1][eos].abs().sum() > 0  # the critic has no head that would give this row a gradient by another way
        gradients.append(torch.cat(rows))
        layout.input_ids[0, 3] = 7
        assert (policy.forward(layout, 3)[0][0] - logprobs[0]).abs().min() > 1e-4
    assert torch.allclose(*gradients, atol=1e-6)


def test_16_the_mask_counts_lengths_never_ids(tiny_folder, tiny):
    """An empty answer has no token, EOS alone has one, and a sampled pad token is a token."""
    _, tokenizer = tiny
    policy, critic = engines(tiny_folder)
    prompt, pad, eos = tuple(tokenizer.encode("Ann has 3")), tokenizer.pad_token_id, tokenizer.eos_token_id
    answers = [(), (eos,), (pad, 5, pad)]
    batch = RolloutBatch.of([prompt] * 3, answers, [(0.0,) * len(answer) for answer in answers], range(3))
    assert batch.mask.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 1]]
    for shared in (False, True):
        layout = columns(batch, pad, CPU, shared=shared)
        for numbers in (policy.forward(layout, 3)[0], critic.forward(layout, 3)):
            assert torch.equal(numbers != 0, batch.mask.bool())


def test_15_eos_has_a_gradient(tiny_folder, tiny):
    _, tokenizer = tiny
    policy, _, _ = prepared(tiny_folder, tokenizer, settings())
    ids = tuple(tokenizer.encode("Ann has 3 pens."))
    batch = RolloutBatch.of([ids], [(tokenizer.eos_token_id,)], [(0.0,)], [0])  # an answer that is EOS alone: one token
    assert batch.mask.sum() == 1
    logprobs, _ = policy.forward(columns(batch, tokenizer.eos_token_id, CPU), 1)
    logprobs.sum().backward()
    gradient = policy.module.model.get_output_embeddings().weight.grad[tokenizer.eos_token_id]
    assert gradient.abs().sum() > 0


def test_values_belong_to_the_state_before_the_token(tiny_folder, tiny):
    """Changing token t must not change value t or log-probability t's condition, only later ones."""
    _, tokenizer = tiny
    _, critic = engines(tiny_folder)
    prompt, answer = tuple(tokenizer.encode("Ann has 3")), [5, 6, 7, 8]
    other = [5, 6, 99, 8]
    values = []
    for tokens in (answer, other):
        batch = RolloutBatch.of([prompt], [tuple(tokens)], [(0.0,) * 4], [0])
        values.append(critic.forward(columns(batch, 0, CPU), 4)[0].detach())
    assert torch.allclose(values[0][:3], values[1][:3], atol=1e-6) and not torch.allclose(values[0][3], values[1][3], atol=1e-4)


def test_temperature_is_applied_to_what_is_scored(tiny_folder, tiny):
    _, tokenizer = tiny
    policy, _ = engines(tiny_folder)
    prompt, answer = tuple(tokenizer.encode("Ann has 3")), (5, 6)
    batch = RolloutBatch.of([prompt], [answer], [(0.0, 0.0)], [0])
    got, entropy = policy.forward(columns(batch, 0, CPU), 2, 0.7, entropy=True)
    logits = policy.module.model(torch.tensor([list(prompt + answer)])).logits[0, len(prompt) - 1 : -1] / 0.7
    expected = torch.log_softmax(logits, -1)
    assert torch.allclose(got[0], expected[[0, 1], list(answer)], atol=1e-5)
    assert torch.allclose(entropy[0], -(expected.exp() * expected).sum(-1), atol=1e-4)


def test_a_large_micro_batch_is_cut_where_much_of_it_would_be_padding():
    lengths = [600] * 8 + [620] * 4 + [1200] * 4
    batch = RolloutBatch.of([(5,)] * 16, [(6,) * length for length in lengths], [[0.0] * length for length in lengths], range(16))
    assert list(by_length(batch, range(16), 16)) == [list(range(12)), list(range(12, 16))]
    assert list(by_length(batch, range(16), 10)) == [list(range(10)), [10, 11, 12], [13, 14, 15]]
    small = [0, 1, 12]  # as much padding, but too few tokens to be worth a forward of their own
    assert list(by_length(batch, small, 16)) == [small]
    assert list(by_length(batch, [*range(6), 13], 16)) == [list(range(6)), [13]]


def test_rows_are_dealt_to_ranks_by_their_tokens_or_in_whole_micro_batches():
    lengths = [9, 3, 5, 1, 1, 1]
    prompts = [(5,), (5,), (6,), (6,), (7,), (7,)]
    batch = RolloutBatch.of(prompts, [(8,) * length for length in lengths], [[0.0] * length for length in lengths], range(6))
    # With their prompts 10 + 2 + 2 and 6 + 4 + 2 tokens: 4 + 10 and 8 + 6 slots. Whole micro-batches would be 2 x 10 and 2 x 2 + 2 x 4.
    assert dealt(batch, range(6), 2, 2) == [[[3, 5], [0]], [[4, 1], [2]]]
    # The same rows would be 3 x 10 and 3 x 6 slots; whole micro-batches are 2 x 10 and 4 x 4.
    assert dealt(batch, range(6), 4, 2) == [[[2, 0]], [[3, 4, 5, 1]]]
    assert dealt(batch, range(6), 6, 2) == [[[3, 5, 0]], [[4, 1, 2]]]  # a single one would leave a rank without
    assert dealt(batch, range(6), 6, 2, shared=True) == [[[0, 1]], [[4, 5, 2, 3]]]
    assert dealt(batch, [4], 2, 3) == [[[4]], [[]], [[]]] and dealt(batch, [], 2, 2) == [[], []]
    assert dealt(batch, range(6), 2, 1) == [list(by_length(batch, range(6), 2))]


def test_all_rows_are_dealt_in_equally_many_micro_batches():
    generator = torch.Generator().manual_seed(0)
    for case in range(200):
        count, size, ranks = (int(torch.randint(1, most, (), generator=generator)) for most in (30, 9, 5))
        lengths = torch.randint(1, 40, (count,), generator=generator).tolist()
        prompts = [(5,) * (1 + row // 3) for row in range(count)]
        batch = RolloutBatch.of(prompts, [(8,) * length for length in lengths], [[0.0] * length for length in lengths], range(count))
        hands = dealt(batch, range(count), size, ranks, shared=bool(case % 2))
        assert sorted(row for hand in hands for part in hand for row in part) == list(range(count))
        assert len({len(hand) for hand in hands}) == 1 and any(hand[-1] for hand in hands)


def test_batches_of_ranks_are_joined_with_all_that_they_hold():
    first, second = (RolloutBatch.of([(1,), (2,)], [(8,) * n, (9,)], [[-0.5] * n, [-1.0]], rows) for n, rows in ((2, (0, 3)), (4, (1, 2))))
    first.values, second.advantages = first.mask * 2, second.mask * 3
    both = joined([first, second])
    assert both.rows.tolist() == [0, 3, 1, 2] and len(both) == 4 and both.mask.shape == (4, 4)
    for part, index in ((first, [0, 1]), (second, [2, 3])):
        for field in dataclasses.fields(RolloutBatch):
            got, expected = getattr(both.select(index), field.name), getattr(part, field.name)
            assert got.tolist() == expected.tolist() if isinstance(got, torch.Tensor) else got == expected, field.name
