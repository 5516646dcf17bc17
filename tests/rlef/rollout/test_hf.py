"""The sampler: keyed noise, invariance to batch and padding, exact frequencies, stop ids."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlef.rollout.base import SampleRequest, SamplingParams, keyed_uniforms
from rlef.rollout.hf import CopyGenerator, HFGenerator

PROMPTS = ["Ann has 3 pens.", "Ben has 12 more pens than Ann. How many?", "2+2", "How many pens does Ben have? " * 3]


def requests(tokenizer, samples=3):
    return [
        SampleRequest(tuple(tokenizer.encode(text)), (0, 0, index, sample))
        for index, text in enumerate(PROMPTS)
        for sample in range(samples)
    ]


def generate(model, tokenizer, wanted, batch_size=64, temperature=1.0, max_tokens=24, stops=None):
    params = SamplingParams(max_tokens, temperature, (tokenizer.eos_token_id,) if stops is None else stops)
    return HFGenerator(model, tokenizer.pad_token_id, batch_size).generate(wanted, params)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_5_answers_do_not_depend_on_batch_order_or_padding(tiny, temperature):
    model, tokenizer = tiny
    wanted = requests(tokenizer)
    together = generate(model, tokenizer, wanted, temperature=temperature)
    alone = [generate(model, tokenizer, [one], temperature=temperature)[0] for one in wanted]
    reversed_ = generate(model, tokenizer, wanted[::-1], batch_size=5, temperature=temperature)[::-1]
    for a, b, c in zip(together, alone, reversed_, strict=True):
        assert a.tokens == b.tokens == c.tokens
        assert np.allclose(a.logprobs, b.logprobs, atol=1e-4) and np.allclose(a.logprobs, c.logprobs, atol=1e-4)


def test_5_sampler_and_trainer_agree_at_any_left_padding(tmp_path):
    """Absolute positions: rotary ones forgive a sampler that counts its padding. The trainer pads right, the sampler left."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from rlef.models import load_policy
    from rlef.rl.batch import RolloutBatch, columns
    from rlef.rl.policy import TokenPolicy

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=80, initializer_range=0.3, bos_token_id=1, eos_token_id=1
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path)  # three kinds of dropout, 0.1 each, in its config
    model = load_policy(tmp_path)
    prompts = [tuple(torch.randint(3, 60, (length,)).tolist()) for length in (40, 33, 9)]  # 0, 7 and 31 columns of padding
    wanted = [SampleRequest(prompt, (row, sample)) for row, prompt in enumerate(prompts) for sample in range(3)][:8]
    params = SamplingParams(20, 1.0, (1, *range(3, 8)))
    together = HFGenerator(model, 0).generate(wanted, params)
    alone = [HFGenerator(model, 0).generate([one], params)[0] for one in wanted]
    assert len({len(one.tokens) for one in together}) > 3
    batch = RolloutBatch.of(
        [one.prompt_ids for one in wanted], [one.tokens for one in together], [one.logprobs for one in together], range(8)
    )
    model.train()
    for shared in (False, True):
        trained, _ = TokenPolicy(model)(columns(batch, 0, torch.device("cpu"), shared=shared), batch.mask.shape[1])
        assert ((trained - batch.rollout_logprobs).abs() * batch.mask).max() < 1e-4
    for one, other in zip(together, alone, strict=True):
        assert one.tokens == other.tokens and np.allclose(one.logprobs, other.logprobs, atol=1e-4)


def test_samples_of_one_prompt_differ_and_other_keys_give_other_noise(tiny):
    model, tokenizer = tiny
    first = generate(model, tokenizer, requests(tokenizer))
    assert len({completion.tokens for completion in first[:3]}) > 1
    moved = [SampleRequest(one.prompt_ids, (1, *one.key[1:])) for one in requests(tokenizer)]
    assert [one.tokens for one in generate(model, tokenizer, moved)] != [one.tokens for one in first]


def test_no_global_generator_is_read_or_moved(tiny):
    model, tokenizer = tiny
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = generate(model, tokenizer, requests(tokenizer))
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert generate(model, tokenizer, requests(tokenizer)) == one


def test_greedy_equals_transformers_generate(tiny):
    model, tokenizer = tiny
    ids = tokenizer.encode(PROMPTS[1])
    ours = generate(model, tokenizer, [SampleRequest(tuple(ids))], temperature=0)[0]
    theirs = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=24,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )[0, len(ids) :]
    assert list(ours.tokens) == theirs.tolist()[: len(ours.tokens)]


def test_26_frequencies_match_the_logged_probabilities(tiny):
    model, tokenizer = tiny
    ids = tuple(tokenizer.encode("2+2"))
    drawn = generate(
        model, tokenizer, [SampleRequest(ids, (0, sample)) for sample in range(4000)], max_tokens=1, temperature=0.7, batch_size=4000
    )
    tokens = np.array([one.tokens[0] for one in drawn])
    chance = {one.tokens[0]: np.exp(one.logprobs[0]) for one in drawn}
    frequent = [token for token, p in chance.items() if p * len(tokens) >= 10]
    chi2 = sum(((tokens == token).sum() - len(tokens) * chance[token]) ** 2 / (len(tokens) * chance[token]) for token in frequent)
    assert chi2 < len(frequent) + 5 * np.sqrt(2 * len(frequent))  # five standard deviations
    with torch.no_grad():
        expected = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1] / 0.7, -1)
    assert all(abs(np.log(chance[token]) - expected[token].item()) < 1e-4 for token in chance)


def test_16_any_stop_id_ends_an_answer_and_stays_in_it(tiny):
    model, tokenizer = tiny
    free = generate(model, tokenizer, requests(tokenizer), stops=())
    assert all(not one.finished and len(one.tokens) == 24 for one in free)
    stop = free[0].tokens[3]
    cut = generate(model, tokenizer, requests(tokenizer), stops=(stop,))
    for whole, one in zip(free, cut, strict=True):
        place = whole.tokens.index(stop) + 1 if stop in whole.tokens else 24
        assert one.tokens == whole.tokens[:place] and one.finished == (stop in whole.tokens)


def test_r6_a_stop_token_in_the_prompt_ends_nothing(tiny):
    model, tokenizer = tiny
    eos = tokenizer.eos_token_id
    ids = (eos, *tokenizer.encode("2+2"), eos, 9)
    (one,) = generate(model, tokenizer, [SampleRequest(ids)], temperature=0)
    assert len(one.tokens) == 24 and not one.finished
    long = SampleRequest(tuple(tokenizer.encode("2+2" * 9)))
    padded, _ = HFGenerator(model, eos).generate([SampleRequest(ids), long], SamplingParams(24, 0.0, (eos,)))
    assert padded.tokens == one.tokens  # 15: with pad == EOS no EOS of a prompt is hidden
    plain = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1], -1)
    assert padded.logprobs[0] == pytest.approx(plain[one.tokens[0]].item(), abs=1e-4)


def test_keyed_uniforms_are_uniform_and_prefix_stable():
    draws = np.concatenate([keyed_uniforms((0, 0, prompt, sample), 50) for prompt in range(40) for sample in range(5)])
    assert abs(draws.mean() - 0.5) < 0.01 and abs(draws.var() - 1 / 12) < 0.005
    assert np.array_equal(keyed_uniforms((1, 2), 5), keyed_uniforms((1, 2), 9)[:5])


def test_r12_a_checkpoints_sampling_habits_do_not_leak_in(tiny, tmp_path):
    from transformers import GenerationConfig

    from rlef.models import load_policy, save_policy

    model, tokenizer = tiny
    save_policy(model, tokenizer, tmp_path)
    GenerationConfig(repetition_penalty=5.0, top_k=1, eos_token_id=[tokenizer.eos_token_id, 7], do_sample=True).save_pretrained(tmp_path)
    loaded = load_policy(tmp_path)
    assert loaded.generation_config.repetition_penalty in (None, 1.0) and loaded.generation_config.top_k != 1
    assert generate(loaded, tokenizer, requests(tokenizer)) == generate(model, tokenizer, requests(tokenizer))


def test_a_copy_answers_as_the_policy_of_the_last_sync_and_then_lets_its_weights_go(tiny, tmp_path):
    from rlef.models import load_policy, save_policy
    from rlef.rl.policy import TokenPolicy

    model, tokenizer = tiny
    save_policy(model, tokenizer, tmp_path)
    copy = CopyGenerator(load_policy(tmp_path), tokenizer.pad_token_id)

    class Policy:
        def full_parameters(self):
            return TokenPolicy(model).named_parameters()

    for _ in range(2):
        copy.sync_weights(Policy())
        found = copy.generate(requests(tokenizer), SamplingParams(24, 1.0, (tokenizer.eos_token_id,)))
        assert found == generate(model, tokenizer, requests(tokenizer), stops=(tokenizer.eos_token_id,))
        assert not any(parameter.numel() for parameter in copy.model.parameters())
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(-1)
    assert found != generate(model, tokenizer, requests(tokenizer), stops=(tokenizer.eos_token_id,))
