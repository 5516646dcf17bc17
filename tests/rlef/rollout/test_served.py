"""The sampler behind a server, against a small one that samples from a real model."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from rlef.errors import UserError
from rlef.models import load_policy, save_policy, stop_ids
from rlef.rollout import served
from rlef.rollout.base import SampleRequest, SamplingParams
from rlef.rollout.hf import HFGenerator
from rlef.rollout.served import TOLERANCE, ServedGenerator, seed_of
from tests.rlef.rollout.completions import Completions


@pytest.fixture
def serve(tiny, monkeypatch):
    monkeypatch.setattr(served, "FIRST_WAIT_S", 0.01)
    servers = []

    def start(model=None, **options):
        servers.append(Completions(model or tiny[0], tiny[1].pad_token_id, **options))
        return servers[-1]

    yield start
    for one in servers:
        one.http.shutdown()
        one.http.server_close()


def requests(tokenizer, count=6):
    return [SampleRequest(tuple(tokenizer.encode("Ann has 3 pens.")), (0, 0, 7, sample)) for sample in range(count)]


def test_ids_logprobs_and_ends_come_back_in_order_with_the_noise_of_the_key(tiny, serve):
    model, tokenizer = tiny
    server = serve()
    wanted = requests(tokenizer)
    twins = [SampleRequest(one.prompt_ids, (seed_of(one.key),)) for one in wanted]
    here = HFGenerator(model, tokenizer.pad_token_id)
    rows = [set(one.tokens) for one in here.generate(twins, SamplingParams(12, 0.7))]
    stop = min(set.union(*rows) - set.intersection(*rows))  # ends some answers, not all
    params = SamplingParams(12, 0.7, (stop,))
    done: list[int] = []
    found = ServedGenerator(server.url, "runs/a/sft/model", concurrency=3).generate(wanted, params, done.append)
    expected = here.generate(twins, params)
    assert [one.tokens for one in found] == [one.tokens for one in expected] and len({one.tokens for one in found}) > 1
    assert [one.finished for one in found] == [one.finished for one in expected] and {one.finished for one in found} == {True, False}
    assert all(one.logprobs == pytest.approx(other.logprobs, abs=1e-4) for one, other in zip(found, expected, strict=True))
    assert sum(done) == len(wanted) and 2 <= server.most <= 3
    assert {body["model"] for body in server.seen} == {"the policy"} and len({body["seed"] for body in server.seen}) == len(wanted)
    # Whatever a generation_config may set is set here, and the server's own EOS ends nothing.
    plain = {"n": 1, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    assert all(body | plain | {"ignore_eos": True, "return_token_ids": True} == body for body in server.seen)


def test_seeds_hang_on_the_key_alone_and_fit_63_bits():
    keys = [(0, 0, number, sample) for number in range(50) for sample in range(50)]
    seeds = {seed_of(key) for key in keys}
    assert len(seeds) == len(keys) and min(seeds) >= 0 and 2**62 < max(seeds) < 2**63 and seed_of([0, 0, 1, 2]) == seed_of((0, 0, 1, 2))


def test_the_same_weights_pass_the_probe_and_others_do_not(tiny, serve):
    model, tokenizer = tiny
    prompt = tokenizer.encode("Ann has 3 pens.")
    assert ServedGenerator(serve().url, "here").check(model, prompt) < 1e-4
    other = type(model)(model.config)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.05)
    with pytest.raises(UserError, match=r"not sample from this policy.*\n.*vllm serve runs/a/sft/model --generation-config vllm"):
        ServedGenerator(serve(other).url, "runs/a/sft/model").check(model, prompt)


def test_the_probe_finds_untempered_logprobs_and_a_cut_off_tail(tiny, serve):
    model, tokenizer = tiny
    prompt = tokenizer.encode("Ann has 3 pens.")

    def renormalised(choice):  # as where a nucleus of 0.9 is sampled from
        choice["logprobs"]["token_logprobs"] = [value + 0.105 for value in choice["logprobs"]["token_logprobs"]]

    def lost(choice):
        choice["logprobs"]["token_logprobs"][3] = float("nan")

    for server in (serve(raw=True), serve(change=renormalised), serve(change=lost)):
        with pytest.raises(UserError, match="--logprobs-mode processed_logprobs"):
            ServedGenerator(server.url, "here").check(model, prompt)
    assert TOLERANCE < 0.105


def test_passing_faults_are_tried_again_and_lasting_ones_named(tiny, serve):
    params = SamplingParams(3, 1.0)
    wanted = requests(tiny[1], count=1)
    server = serve(faults=[503, 429])
    assert len(ServedGenerator(server.url, "here").generate(wanted, params)) == 1 and len(server.seen) == 3
    server = serve(faults=[500] * 9)
    with pytest.raises(UserError, match="no answer at .* after 3 tries: 500"):
        ServedGenerator(server.url, "here", retries=2).generate(wanted, params)
    server = serve(faults=[400] * 9)
    with pytest.raises(UserError, match="rejects what it is asked"):
        ServedGenerator(server.url, "here", concurrency=1).generate(requests(tiny[1]), params)
    assert len(server.seen) <= 2  # the others are not even sent
    with pytest.raises(UserError, match="127.0.0.1:9"):
        ServedGenerator("http://127.0.0.1:9/v1", "here", retries=1)


def test_a_server_without_token_ids_is_refused(tiny, serve):
    for change in (
        lambda choice: choice.pop("token_ids"),
        lambda choice: choice.update(logprobs=None),
        lambda choice: choice["token_ids"].pop(),
    ):
        with pytest.raises(UserError, match="token"):
            ServedGenerator(serve(change=change).url, "here").generate(requests(tiny[1], 1), SamplingParams(3, 1.0))


def test_the_policy_of_a_label_server_is_a_fixed_one(tiny, serve):
    with pytest.raises(UserError, match="fixed one"):
        ServedGenerator(serve().url, "here").sync_weights(None)


def test_r12_a_checkpoints_sampling_habits_do_not_reach_the_server(tiny, serve, tmp_path):
    """It has them set one by one with every request; what ends an answer are the policy's own stop ids."""
    model, tokenizer = tiny
    save_policy(model, tokenizer, tmp_path)
    GenerationConfig(repetition_penalty=5.0, top_k=1, top_p=0.5, eos_token_id=[tokenizer.eos_token_id, 7], do_sample=True).save_pretrained(
        tmp_path
    )
    stops = stop_ids(tokenizer, load_policy(tmp_path))
    assert stops == tuple(sorted({tokenizer.eos_token_id, 7}))
    server = serve(load_policy(tmp_path))
    ServedGenerator(server.url, str(tmp_path)).generate(requests(tokenizer, 1), SamplingParams(3, 0.7, stops))
    (body,) = server.seen
    told = {"temperature": 0.7, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": True}
    assert body | told | {"stop_token_ids": list(stops), "max_tokens": 3} == body
