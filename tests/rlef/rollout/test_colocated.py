"""The sampler whose vLLM engine lives in the trainer's process: what the engine is handed and asked, and every way in which it may fail."""

from __future__ import annotations

import os
import sys
import time

import pytest
import torch

from rlef.errors import UserError
from rlef.models import pick_device
from rlef.rollout import served
from rlef.rollout.base import SampleRequest, SamplingParams, seed_of
from rlef.rollout.colocated import ColocatedGenerator
from rlef.rollout.hf import HFGenerator
from rlef.rollout.synced import serve_flags
from tests.rlef.rollout.engine import Engine, modules

PARAMS = SamplingParams(6, 1.0)


class Trained:
    """The engine of a policy, as far as a sampler sees it. What it hands out is gone when the next is asked for, as under ZeRO-3."""

    def __init__(self, model, without=()):
        self.model, self.without = model, without

    def full_parameters(self):
        for name, value in self.model.named_parameters():
            if name not in self.without:
                gathered = value.detach().clone()
                yield f"model.{name}", gathered
                gathered.fill_(torch.nan)

    def step(self, factor=1.05):
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(factor)


@pytest.fixture
def colocated(tiny, tiny_folder, monkeypatch):
    """A sampler of `tiny`, its trained policy, and an engine with the shape of that, from a folder with other weights."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")

    def start(*options, timeout_s=5.0, **faults):
        for name, module in modules(**faults).items():
            monkeypatch.setitem(sys.modules, name, module)
        model, tokenizer = tiny
        prompt = tokenizer.encode("2+2")
        generator = ColocatedGenerator(str(tiny_folder), options, model, prompt, tolerance=1e-4, timeout_s=timeout_s)
        return generator, Trained(model), Engine.made[-1]

    return start


def wanted(tiny, count=3):
    return [SampleRequest(tuple(tiny[1].encode("Ann has 3 pens.")), (0, sample)) for sample in range(count)]


def test_every_sync_brings_the_weights_a_version_and_a_probe(colocated, tiny):
    generator, policy, engine = colocated()
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    for version in (1, 2):
        policy.step()
        found = generator.sync_weights(policy)
        assert found["rollout/version"] == version and found["rollout/sync_difference"] < 1e-5
        for one in generator.generate(wanted(tiny), PARAMS):
            own = served.token_logprobs(policy.model, wanted(tiny)[0].prompt_ids, one.tokens, 1.0)
            assert one.logprobs == pytest.approx(own, abs=1e-4)
    assert engine.did == ["reload_weights", "reset_prefix_cache", "generate", "generate"] * 2


def test_greedy_answers_are_those_of_the_trained_model_in_their_order(colocated, tiny):
    generator, policy, _ = colocated()
    generator.sync_weights(policy)
    requests = [SampleRequest(tuple(tiny[1].encode(text))) for text in ("2+2", "Ann has 3 pens.", "Ben")]
    finished = []
    found = generator.generate(requests, SamplingParams(12, 0.0, tuple(range(3, 90))), finished.append)
    own = HFGenerator(policy.model, tiny[1].pad_token_id).generate(requests, SamplingParams(12, 0.0, tuple(range(3, 90))))
    assert [one.tokens for one in found] == [one.tokens for one in own] and sum(finished) == 3
    assert [one.finished for one in found] == [one.finished for one in own] and {one.finished for one in own} == {True}


def test_a_tied_head_is_handed_over_under_each_of_its_names_and_an_untied_one_once(colocated, tiny):
    generator, policy, engine = colocated()
    generator.sync_weights(policy)
    assert sorted(engine.loaded[:2]) == ["lm_head.weight", "model.embed_tokens.weight"] and len(engine.loaded) == len(set(engine.loaded))
    policy.model.config.tie_word_embeddings = False
    policy.model.lm_head.weight = torch.nn.Parameter(policy.model.lm_head.weight.detach() * 2)
    assert [name for name, _ in generator._weights(policy)].count("lm_head.weight") == 1


def test_weights_that_did_not_arrive_are_found_by_the_probe(colocated):
    generator, policy, _ = colocated()
    generator.sync_weights(policy)
    policy.step()
    with pytest.raises(UserError, match=r"does not sample from this policy.*\n  fix: .*rollout.options"):
        generator.sync_weights(Trained(policy.model, without=("model.layers.1.mlp.down_proj.weight",)))


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"load": lambda: time.sleep(1)}, r"took no weights within 0.2 s"),
        ({"load": lambda: 1 / 0}, r"took no weights \(division by zero\)"),
        ({"resets": False}, "keeps what the old weights made of prompts"),
    ],
)
def test_a_sync_that_hangs_or_fails_is_told(colocated, fault, told):
    generator, policy, _ = colocated(timeout_s=0.2, **fault)
    with pytest.raises(UserError, match=told):
        generator.sync_weights(policy)


def test_an_answer_hangs_on_its_key_and_ends_at_its_stop_ids_alone(colocated, tiny):
    generator, policy, engine = colocated()
    generator.sync_weights(policy)
    one, two = (generator.generate(wanted(tiny)[:count], PARAMS)[0] for count in (1, 3))
    assert one == two
    generator.generate(wanted(tiny)[:1], SamplingParams(6, 0.7, (5, 9)))
    (asked,) = engine.asked[-1]
    assert asked.pop("seed") == seed_of((0, 0)) and asked.pop("temperature") == 0.7 and asked.pop("max_tokens") == 6
    assert asked == {"ignore_eos": True, "stop_token_ids": [5, 9], "logprobs": 0, "detokenize": False}


def test_an_engine_that_sleeps_is_woken_for_each_sync_and_each_rollout(colocated, tiny):
    generator, policy, engine = colocated("--enable-sleep-mode")
    generator.sync_weights(policy)
    generator.generate(wanted(tiny), PARAMS)
    generator.generate(wanted(tiny), PARAMS)
    generator.sync_weights(policy)
    rollout, sync = ["generate", "sleep 1"], ["reload_weights", "reset_prefix_cache", "generate"]
    assert engine.did == [*sync, *rollout, "wake_up", *rollout, "wake_up", *sync]


def test_an_answer_that_would_be_cut_off_for_want_of_room_is_refused(colocated, tiny):
    generator, policy, _ = colocated("--max-model-len", "40")
    generator.sync_weights(policy)
    with pytest.raises(UserError, match="holds 40 tokens, and a prompt with its answer may be 4"):
        generator.generate(wanted(tiny), SamplingParams(39, 1.0))


def test_what_keeps_an_engine_from_coming_up_is_told(colocated, monkeypatch):
    with pytest.raises(UserError, match=r"rollout.options: .*unrecognized arguments: --max-mode-len"):
        colocated("--max-mode-len=40")
    with pytest.raises(UserError, match=r"did not come up: out of memory\n  fix: change rollout.options"):
        colocated(fails="out of memory")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"rollout.colocated: .*vllm.*\n  fix: pip install vllm"):
        ColocatedGenerator("", (), None, (), tolerance=1.0, timeout_s=1.0)


def test_closed_it_gives_its_memory_back(colocated):
    generator, _, engine = colocated()
    generator.close()
    assert engine.did == ["shutdown"]


@pytest.mark.slow
def test_vllm_itself_says_what_the_model_says_before_and_after_an_update(tiny, tiny_folder, monkeypatch):
    """Where vllm is installed beside rlef, on a CPU too."""
    pytest.importorskip("vllm")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    monkeypatch.setattr(torch, "set_num_threads", torch.set_num_threads)  # vLLM on a CPU replaces it
    (model, tokenizer), device = tiny, pick_device("auto")
    model.to(device)
    flags = serve_flags(sync="reload", on_cpu=device.type == "cpu", dtype="float32")
    flags += ["--enforce-eager", "--gpu-memory-utilization", "0.1"]
    requests = [SampleRequest(tuple(tokenizer.encode(text)), (0, 1)) for text in ("2+2", "Ann has 3 pens.", "Ben")]
    generator = ColocatedGenerator(str(tiny_folder), flags, model, tokenizer.encode("2+2"), tolerance=1e-4, timeout_s=300)
    policy, stops = Trained(model), tuple(range(3, 30))
    for version in (1, 2):
        policy.step(1.1)
        assert generator.sync_weights(policy)["rollout/version"] == version
        own, found = (
            one.generate(requests, SamplingParams(24, 0.0, stops)) for one in (HFGenerator(model, tokenizer.pad_token_id), generator)
        )
        assert [(one.tokens, one.finished) for one in found] == [(one.tokens, one.finished) for one in own]
        assert all(one.logprobs == pytest.approx(other.logprobs, abs=1e-4) for one, other in zip(found, own, strict=True))
        sampled = generator.generate(requests, SamplingParams(24, 1.3, stops))
        assert [one.tokens for one in sampled] == [one.tokens for one in generator.generate(requests, SamplingParams(24, 1.3, stops))]
        for request, one in zip(requests, sampled, strict=True):
            assert one.logprobs == pytest.approx(served.token_logprobs(model, request.prompt_ids, one.tokens, 1.3), abs=1e-4)
    for left_out in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"):
        policy.step(1.3)
        with pytest.raises(UserError, match="does not sample from this policy"):
            generator.sync_weights(Trained(model, without=(left_out,)))
    generator.close()
    assert not torch.distributed.is_initialized()
