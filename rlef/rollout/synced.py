"""Samples from a vLLM server that is given the trained weights again and again: a time limit, a version and a probe each time."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rlef.errors import UserError
from rlef.rollout.base import Completion, SampleRequest, SamplingParams, Weights
from rlef.rollout.own_server import OwnServer
from rlef.rollout.served import ServedGenerator

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

T = TypeVar("T")
Send = Callable[[Weights, int], None]  # (policy, version) -> the server holds these weights; all ranks call it


class SyncedGenerator:
    """Samples from `server`, whose weights follow the policy's.

    The main rank gives the weights versions 1, 2, ... `of` this run, and the server says which it holds: answers of any other are refused.
    After each sync every rank has a probe of `prompt` answered, whose log-probabilities may be off by `tolerance` nats on average.
    """

    def __init__(
        self,
        server: ServedGenerator,
        send: Send,
        model: PreTrainedModel,
        prompt: Sequence[int],
        *,
        of: str,
        tolerance: float,
        timeout_s: float,
        main: bool = True,
        barrier: Callable[[], None] = lambda: None,
        own: OwnServer | None = None,
    ) -> None:
        """`timeout_s`: for each thing that a sync asks of the server. `own`: the server, where this run started it."""
        self.server, self.send, self.model, self.prompt, self.of = server, send, model, prompt, of
        self.tolerance, self.timeout_s, self.main, self.barrier, self.own = tolerance, timeout_s, main, barrier, own
        self.version = 0

    def sync_weights(self, policy: Weights) -> dict[str, float]:
        """Raises UserError where the server cannot take the weights in time, or does not sample from them."""
        self.version += 1
        self.send(policy, self.version)
        if self.main:
            # What the old weights made of a prompt must not be found again.
            if not (self._ask("/reset_prefix_cache", {}) or {}).get("success", True):
                raise self.server.mistaken("keeps what the old weights made of prompts: somebody else's requests are running")
            self._ask("/update_weight_version", {"new_version": self._name})
        self.barrier()
        difference = self.server.check(self.model, self.prompt, self.tolerance)
        return {"rollout/version": float(self.version), "rollout/sync_difference": difference}

    def generate(
        self, requests: Sequence[SampleRequest], params: SamplingParams, progress: Callable[[int], None] | None = None
    ) -> list[Completion]:
        """One completion a request, in their order, all of the version of the last sync."""
        done = self.server.generate(requests, params, progress)
        found = self._ask("/weight_info", None)["weight_version"]
        if found != self._name:
            raise self.server.mistaken(f"holds weights {found!r} and not {self._name!r}: it was restarted, or another run uses it")
        return done

    def close(self) -> None:
        """End the server, where this run started it."""
        if self.own is not None:
            self.own.close()

    @property
    def _name(self) -> str:
        return f"{self.version} of {self.of}"

    def _ask(self, path: str, body: dict[str, Any] | None) -> Any:
        return self.server.call(path, body, timeout_s=self.timeout_s, retries=0)


class Reload:
    """Through the disk: the weights are saved in `folder`/VERSION, where the server reads them. For any device, and across machines."""

    def __init__(self, server: ServedGenerator, model: PreTrainedModel, folder: Path, *, timeout_s: float, main: bool = True) -> None:
        self.server, self.model, self.folder, self.timeout_s, self.main = server, model, folder.resolve(), timeout_s, main

    def __call__(self, policy: Weights, version: int) -> None:
        partial, whole = self.folder / "partial", self.folder / str(version)
        if self.main:
            shutil.rmtree(self.folder, ignore_errors=True)
        policy.save_model(partial)
        if not self.main:
            return
        write_tied_head(self.model, partial)
        partial.rename(whole)
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(whole)}, "timeout": self.timeout_s}
        self.server.call("/collective_rpc", body, timeout_s=self.timeout_s, retries=0)


class Nccl:
    """From GPU to GPU, by TRL's client. Not yet run on a GPU by the authors of this file."""

    def __init__(self, server: ServedGenerator, client: Any, device: torch.device, *, timeout_s: float, main: bool = True) -> None:
        """`client`: a trl.generation.vllm_client.VLLMClient; None on other ranks than the main one."""
        self.server, self.client, self.timeout_s, self.main = server, client, timeout_s, main
        if main:
            self._send(lambda: client.init_communicator(device))

    def __call__(self, policy: Weights, version: int) -> None:
        # The server is told first what will come: under ZeRO-3 every rank walks the weights twice.
        told = [(plain(name), str(value.dtype).removeprefix("torch."), list(value.shape)) for name, value in policy.full_parameters()]
        weights = ((plain(name), value.detach()) for name, value in policy.full_parameters())
        if self.main:
            self._send(lambda: self.client.update_named_params(told, weights))
        else:
            for _ in weights:
                pass

    def _send(self, work: Callable[[], None]) -> None:
        in_time(work, self.timeout_s, lambda problem: self.server.mistaken(f"took no weights over NCCL {problem}; look at the network"))


def in_time(work: Callable[[], T], timeout_s: float, mistaken: Callable[[str], UserError]) -> T:
    """What `work` gives; mistaken where it fails or takes longer. What hangs can be left, not stopped: the thread ends with the process."""
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if errors:
        raise mistaken(f"({errors[0]})") from errors[0]
    if not results:
        raise mistaken(f"within {timeout_s:g} s")
    return results[0]


def plain(name: str) -> str:
    """The engine trains a module that holds the model as `model`."""
    return name.removeprefix("model.")


def write_tied_head(model: PreTrainedModel, folder: Path) -> None:
    """A tied head once more under its own name, beside the saved weights.

    vLLM on a CPU computes with a packed copy of it, made anew only when the head itself is loaded: with the embeddings alone 0.32 goes on
    with the old one, without a word.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    tied = head_names(model)
    if len(tied) < 2:
        return
    with safe_open(folder / "model.safetensors", "pt") as file:
        (kept,) = tied & set(file.keys())
        weight: Any = file.get_tensor(kept)
    save_file({name: weight for name in tied - {kept}}, folder / "tied.safetensors")


def head_names(model: PreTrainedModel) -> set[str]:
    """The parameters that are the LM head: more than one where it is tied."""
    head: Any = model.get_output_embeddings()
    return {name for name, value in model.named_parameters(remove_duplicate=False) if value is head.weight}


def serve_flags(*, sync: str, on_cpu: bool, dtype: str) -> list[str]:
    """What vLLM needs for this; `vllm serve` also VLLM_SERVER_DEV_MODE=1 in its environment."""
    flags = ["--generation-config", "vllm", "--logprobs-mode", "processed_logprobs", "--dtype", dtype]
    if sync == "nccl":
        flags += ["--weight-transfer-config", '{"backend": "nccl"}']
    if on_cpu:  # there 0.32 dies of a seeded request whose prompt it splits over two steps
        flags += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096"]
    return flags
