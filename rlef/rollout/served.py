"""Samples from a policy that a vLLM server holds: token ids in, token ids out, after a probe that it holds the same weights."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlef.errors import UserError
from rlef.rollout.base import Completion, Generator, SampleRequest, SamplingParams, Weights, seed_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBE_TOKENS = 32
# Other than 1: a server that reports log-probabilities before the temperature is found out. Above 1: one that cuts off the tail is, too.
PROBE_TEMPERATURE = 1.5
TOLERANCE = 0.05  # nats, mean over the probe's tokens; bfloat16 against float32 stays below it
# The sampler is the policy: nothing of the checkpoint's sampling habits, and log-probabilities after the temperature.
SAMPLING_FLAGS = "--generation-config vllm --logprobs-mode processed_logprobs"
FIRST_WAIT_S = 0.5  # twice as long before each further try


class ServedGenerator:
    """Samples from `url`, an OpenAI-compatible /v1 of vLLM. The noise of a sample hangs on its key, and on the server's arithmetic.

    Every setting that a checkpoint's generation_config could change is sent along, and the server's own EOS is ignored: an answer ends at
    `stop_ids` alone. `timeout_s` is for one answer, `retries` for its further tries. Raises UserError where the server cannot be used.
    """

    def __init__(
        self, url: str, folder: str, *, concurrency: int = 64, timeout_s: float = 600.0, retries: int = 4, start: str | None = None
    ) -> None:
        """`folder`: of the policy that it should hold; `start`: how to start the server. Both for messages alone."""
        self.url, self.concurrency, self.timeout_s, self.retries = url.rstrip("/"), concurrency, timeout_s, retries
        self.start = start or f"vllm serve {folder} {SAMPLING_FLAGS}"
        try:
            self.model = str(self.call("/v1/models")["data"][0]["id"])
        except (LookupError, TypeError):
            raise self.mistaken("does not say what it serves") from None

    def check(self, model: PreTrainedModel, prompt: Sequence[int], tolerance: float = TOLERANCE) -> float:
        """Mean difference in nats between the server's log-probabilities of a sampled answer and those of `model`.

        Raises UserError where it is above `tolerance`: other weights, a cut-off tail, or log-probabilities before the temperature.
        """
        return probed(self.generate, model, prompt, tolerance, self.mistaken)

    def generate(
        self, requests: Sequence[SampleRequest], params: SamplingParams, progress: Callable[[int], None] | None = None
    ) -> list[Completion]:
        """One completion a request, in the order of the requests; `concurrency` are under way at once."""
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            jobs = [pool.submit(self._sample, request, params) for request in requests]
            for job in as_completed(jobs):
                job.result()  # the first failure ends it
                if progress is not None:
                    progress(1)
            return [job.result() for job in jobs]
        finally:
            pool.shutdown(cancel_futures=True)

    def sync_weights(self, policy: Weights) -> dict[str, float]:
        raise UserError(f"{self.url}: this server's policy is a fixed one", fix="sample in this process")

    def close(self) -> None:
        """Nothing to release: the server belongs to whoever started it."""

    def _sample(self, request: SampleRequest, params: SamplingParams) -> Completion:
        body = {
            "model": self.model,
            "prompt": list(request.prompt_ids),
            "seed": seed_of(request.key),
            "n": 1,
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "ignore_eos": True,
            "stop_token_ids": list(params.stop_ids),
            "logprobs": 0,
            "return_token_ids": True,
        }
        answer = self.call("/v1/completions", body)
        try:
            choice = answer["choices"][0]
            tokens = tuple(int(token) for token in choice["token_ids"])
            logprobs = tuple(float(value) for value in choice["logprobs"]["token_logprobs"])
        except (LookupError, TypeError, ValueError):
            raise self.mistaken("returns no token ids with log-probabilities") from None
        if len(tokens) != len(logprobs) or not tokens:
            raise self.mistaken(f"returned {len(tokens)} tokens and {len(logprobs)} log-probabilities")
        return Completion(tokens, logprobs, tokens[-1] in params.stop_ids)

    def call(self, path: str, body: dict[str, Any] | None = None, *, timeout_s: float | None = None, retries: int | None = None) -> Any:
        """The server's JSON answer at `path`, None where it is empty. Raises UserError where there is none."""
        data = json.dumps(body).encode() if body is not None else None
        retries = self.retries if retries is None else retries
        address = self.url.removesuffix("/v1") + path
        problem = ""
        for number in range(retries + 1):
            try:
                asked = urllib.request.Request(address, data, {"Content-Type": "application/json"})
                with urllib.request.urlopen(asked, timeout=timeout_s or self.timeout_s) as response:
                    return json.loads(response.read() or "null")
            except urllib.error.HTTPError as error:
                problem = f"{error.code} {error.read(500).decode(errors='replace')}"
                if error.code < 500 and error.code != 429:
                    raise self.mistaken(f"rejects what it is asked at {path} ({problem})") from None
            except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
                problem = str(error) or type(error).__name__
            if number < retries:
                time.sleep(FIRST_WAIT_S * 2**number)
        raise self.mistaken(f"gave no answer at {path} after {retries + 1} tries: {problem}")

    def mistaken(self, problem: str) -> UserError:
        return UserError(f"the policy's server at {self.url} {problem}", fix=f"look at its log; start it with: {self.start}")


def sampler(
    model: PreTrainedModel, pad_id: int, batch_size: int, *, server: str | None, folder: str | Path, prompt: Sequence[int]
) -> Generator:
    """Of a policy that stays as it is: in this process, or from the server that holds it, once a probe at `prompt` says that it does."""
    from rlef.rollout.hf import HFGenerator

    if server is None:
        return HFGenerator(model, pad_id, batch_size)
    served = ServedGenerator(server, str(folder), concurrency=batch_size)
    served.check(model, prompt)
    return served


def probed(
    generate: Callable[[list[SampleRequest], SamplingParams], list[Completion]],
    model: PreTrainedModel,
    prompt: Sequence[int],
    tolerance: float,
    mistaken: Callable[[str], UserError],
) -> float:
    """Mean difference in nats between a sampler's log-probabilities of its answer to `prompt` and those of `model`; mistaken where it is
    above `tolerance`."""
    (probe,) = generate([SampleRequest(tuple(prompt))], SamplingParams(PROBE_TOKENS, PROBE_TEMPERATURE))
    own = token_logprobs(model, prompt, probe.tokens, PROBE_TEMPERATURE)
    difference = sum(abs(one - other) for one, other in zip(probe.logprobs, own, strict=True)) / len(own)
    if not difference <= tolerance:  # nor if it is not a number
        raise mistaken(f"does not sample from this policy: its log-probabilities are off by {difference:.2g} on average")
    return difference


def token_logprobs(model: PreTrainedModel, prompt: Sequence[int], tokens: Sequence[int], temperature: float) -> list[float]:
    """The log-probability of each of `tokens` after `prompt` and those before it, of the tempered distribution, in fp32."""
    import torch

    ids = torch.tensor([[*prompt, *tokens]], device=next(model.parameters()).device)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float() / temperature
    return torch.log_softmax(logits, -1).gather(-1, ids[0, len(prompt) :, None]).squeeze(-1).tolist()
