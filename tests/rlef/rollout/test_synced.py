"""The sampler whose server follows the trained policy: what arrives, and every way in which it may not."""

from __future__ import annotations

import copy
import inspect
import threading

import pytest
import torch
from safetensors.torch import load_file

from rlef.errors import UserError
from rlef.rollout import served
from rlef.rollout.base import SampleRequest, SamplingParams
from rlef.rollout.served import ServedGenerator
from rlef.rollout.synced import Nccl, Reload, SyncedGenerator, serve_flags
from tests.rlef.rollout.completions import Completions

PARAMS = SamplingParams(6, 1.0)


class Trained:
    """The engine of a policy, as far as a sampler sees it."""

    def __init__(self, model):
        self.model = model

    def full_parameters(self):
        yield from ((f"model.{name}", value) for name, value in self.model.named_parameters())

    def save_model(self, folder):
        self.model.save_pretrained(folder)

    def step(self, factor=1.05):
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(factor)


@pytest.fixture
def synced(tiny, tmp_path, monkeypatch):
    """A sampler of `tiny`, its trained policy, and a server that holds a copy of the weights it began with."""
    monkeypatch.setattr(served, "FIRST_WAIT_S", 0.01)
    servers = []

    def start(send=None, timeout_s=5.0, of="a run", retries=1, **options):
        model, tokenizer = tiny
        server = Completions(copy.deepcopy(model), tokenizer.pad_token_id, **options)
        servers.append(server)
        client = ServedGenerator(server.url, "runs/a/sft/model", retries=retries, start="vllm serve here")
        send = send or Reload(client, model, tmp_path / "served", timeout_s=timeout_s)
        prompt = tokenizer.encode("2+2")
        return SyncedGenerator(client, send, model, prompt, of=of, tolerance=1e-4, timeout_s=timeout_s), Trained(model), server

    yield start
    for one in servers:
        one.http.shutdown()
        one.http.server_close()


def wanted(tiny, count=3):
    return [SampleRequest(tuple(tiny[1].encode("Ann has 3 pens.")), (0, sample)) for sample in range(count)]


def test_every_sync_brings_the_weights_a_version_and_a_probe(synced, tiny, tmp_path):
    generator, policy, server = synced()
    for version in (1, 2):
        policy.step()
        found = generator.sync_weights(policy)
        assert found["rollout/version"] == version and found["rollout/sync_difference"] < 1e-5
        assert server.version == f"{version} of a run"
        for one in generator.generate(wanted(tiny), PARAMS):
            own = served.token_logprobs(policy.model, wanted(tiny)[0].prompt_ids, one.tokens, 1.0)
            assert one.logprobs == pytest.approx(own, abs=1e-4)
    assert [path for path, _ in server.asked[:3]] == ["/collective_rpc", "/reset_prefix_cache", "/update_weight_version"]
    assert [folder.name for folder in (tmp_path / "served").iterdir()] == ["2"]  # no partial one, none of the last


def test_a_tied_head_is_written_under_its_own_name_and_an_untied_one_once(synced, tiny, tmp_path):
    """vLLM on a CPU keeps a packed copy of the head, which the embeddings alone do not renew."""
    generator, policy, _ = synced()
    generator.sync_weights(policy)
    head = load_file(tmp_path / "served" / "1" / "tied.safetensors")
    assert list(head) == ["lm_head.weight"] and torch.equal(head["lm_head.weight"], policy.model.get_input_embeddings().weight)
    policy.model.config.tie_word_embeddings = False
    policy.model.lm_head.weight = torch.nn.Parameter(policy.model.lm_head.weight.detach() * 2)
    generator.send(policy, 2)
    assert [file.name for file in (tmp_path / "served" / "2").glob("*.safetensors")] == ["model.safetensors"]


def test_weights_that_did_not_arrive_are_found_by_the_probe(synced):
    generator, policy, _ = synced(ignored=("/collective_rpc",))
    generator.sync_weights(policy)  # the server happens to hold these
    policy.step()
    with pytest.raises(UserError, match=r"not sample from this policy.*\n.*vllm serve here"):
        generator.sync_weights(policy)


def test_a_sync_has_a_time_limit(synced):
    generator, policy, _ = synced(timeout_s=0.2, slow_s=1.0)
    with pytest.raises(UserError, match=r"no answer at /collective_rpc after 1 tries: timed out\n.*vllm serve here"):
        generator.sync_weights(policy)


def test_answers_of_other_weights_are_refused(synced, tiny):
    generator, policy, server = synced()
    generator.sync_weights(policy)
    assert len(generator.generate(wanted(tiny), PARAMS)) == 3
    server.version = "1 of another run"
    with pytest.raises(UserError, match="'1 of another run' and not '1 of a run': it was restarted, or another run uses it"):
        generator.generate(wanted(tiny), PARAMS)


def test_a_prefix_cache_that_cannot_be_emptied_is_told(synced, monkeypatch):
    generator, policy, server = synced()
    monkeypatch.setattr(server, "changed", lambda path, body: {"success": path != "/reset_prefix_cache"})
    with pytest.raises(UserError, match="somebody else's requests are running"):
        generator.sync_weights(policy)


def test_other_ranks_ask_nothing_of_the_server_but_probe_it(synced, tiny):
    generator, policy, server = synced()
    generator.main = generator.send.main = False
    waits = []
    generator.barrier = lambda: waits.append(len(server.seen))
    server.version = "1 of a run"  # by the main rank
    assert generator.sync_weights(policy)["rollout/version"] == 1 and waits == [0]
    assert server.asked == [] and len(generator.generate(wanted(tiny), PARAMS)) == 3


class Client:
    """trl.generation.vllm_client.VLLMClient, as far as it is called."""

    def __init__(self, server, hangs=False, error=None):
        self.server, self.hangs, self.error, self.device = server, hangs, error, None

    def init_communicator(self, device):
        self.device = device

    def update_named_params(self, metadata, named_params):
        if self.error:
            raise RuntimeError(self.error)
        if self.hangs:
            threading.Event().wait()
        own = dict(self.server.model.named_parameters())
        told = iter(metadata)
        with torch.no_grad():
            for name, value in named_params:
                assert next(told) == (name, "float32", list(value.shape))
                own[name].copy_(value)
        assert next(told, None) is None


def test_nccl_hands_every_parameter_to_trls_client_under_its_own_name(synced):
    generator, policy, server = synced(ignored=("/collective_rpc",))
    client = Client(server)
    generator.send = Nccl(generator.server, client, torch.device("cpu"), timeout_s=5.0)
    policy.step()
    assert generator.sync_weights(policy)["rollout/sync_difference"] < 1e-5 and client.device == torch.device("cpu")
    other = Nccl(generator.server, None, torch.device("cpu"), timeout_s=5.0, main=False)
    other(policy, 1)  # walks the parameters, and asks nobody


@pytest.mark.parametrize(("fault", "told"), [({"hangs": True}, "within 0.2 s"), ({"error": "no route"}, "no route")])
def test_nccl_that_hangs_or_fails_is_told(synced, fault, told):
    generator, policy, server = synced()
    generator.send = Nccl(generator.server, Client(server, **fault), torch.device("cpu"), timeout_s=0.2)
    with pytest.raises(UserError, match=f"took no weights over NCCL.*{told}"):
        generator.sync_weights(policy)


def test_trls_client_has_what_is_called():
    """It imports vllm where there is one; here its signatures are enough."""
    pytest.importorskip("trl")
    from trl.generation.vllm_client import VLLMClient

    assert {"base_url", "connection_timeout"} <= set(inspect.signature(VLLMClient).parameters)
    assert list(inspect.signature(VLLMClient.init_communicator).parameters) == ["self", "device"]
    assert list(inspect.signature(VLLMClient.update_named_params).parameters) == ["self", "metadata", "named_params"]


def test_the_flags_of_the_server():
    assert "--no-enable-chunked-prefill" in serve_flags(sync="reload", on_cpu=True, dtype="float32")
    assert serve_flags(sync="nccl", on_cpu=False, dtype="bfloat16")[-2:] == ["--weight-transfer-config", '{"backend": "nccl"}']
