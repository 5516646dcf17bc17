"""Samples from a vLLM engine in this very process, which is handed the trained weights again and again."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rlef.errors import UserError
from rlef.rollout.base import Completion, SampleRequest, SamplingParams, Weights, seed_of
from rlef.rollout.served import probed
from rlef.rollout.synced import head_names, in_time, plain

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class ColocatedGenerator:
    """One engine a rank, with the memory that its options leave it; other than a server it needs no address and no disk.

    Each sync hands it every weight under its own name, empties its prefix cache and has a probe of `prompt` answered, whose
    log-probabilities may be off by `tolerance` nats on average. With --enable-sleep-mode its memory is the trainer's between rollouts.
    """

    def __init__(
        self, start: str, options: Sequence[str], model: PreTrainedModel, prompt: Sequence[int], *, tolerance: float, timeout_s: float
    ) -> None:
        """`start`: folder of a policy of this shape; `options`: as of `vllm serve`. Raises UserError where the engine does not come up."""
        self.model, self.prompt, self.tolerance, self.timeout_s = model, prompt, tolerance, timeout_s
        self.version, self._asleep = 0, False
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # else the weights would lie in another process
        try:
            import vllm  # pyright: ignore[reportMissingImports]
            from vllm.engine.arg_utils import EngineArgs  # pyright: ignore[reportMissingImports]
            from vllm.utils.argparse_utils import FlexibleArgumentParser  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError(f"rollout.colocated: {error}", fix="pip install vllm beside rlef, or let it serve: rollout.vllm") from error
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                parsed = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(["--model", start, *options])
        except SystemExit:
            raise UserError(f"rollout.options: {said.getvalue().splitlines()[-1]}", fix="see `vllm serve --help=all`") from None
        self._params = vllm.SamplingParams
        self._sleeps = bool(parsed.enable_sleep_mode)
        try:
            self._engine: Any = vllm.LLM.from_engine_args(EngineArgs.from_cli_args(parsed))
        except Exception as error:
            raise self._mistaken(f"did not come up: {error}") from error

    def sync_weights(self, policy: Weights) -> dict[str, float]:
        """Raises UserError where the engine cannot take the weights in time, or does not sample from them. All ranks call it."""
        self.version += 1
        self._wake()
        in_time(lambda: self._load(policy), self.timeout_s, lambda problem: self._mistaken(f"took no weights {problem}"))
        # What the old weights made of a prompt must not be found again.
        if not self._engine.reset_prefix_cache():
            raise self._mistaken("keeps what the old weights made of prompts")
        difference = probed(self._sample, self.model, self.prompt, self.tolerance, self._mistaken)
        return {"rollout/version": float(self.version), "rollout/sync_difference": difference}

    def generate(
        self, requests: Sequence[SampleRequest], params: SamplingParams, progress: Callable[[int], None] | None = None
    ) -> list[Completion]:
        """One completion a request, in their order, all of the weights of the last sync."""
        self._wake()
        done = self._sample(requests, params)
        if self._sleeps:
            self._engine.sleep(level=1)  # keeps the weights in the machine's memory; its cache is gone
            self._asleep = True
        if progress is not None:
            progress(len(done))
        return done

    def close(self) -> None:
        """Give its memory back. It leaves the process group, too: nothing collective may follow."""
        self._engine.llm_engine.engine_core.shutdown()

    def _sample(self, requests: Sequence[SampleRequest], params: SamplingParams) -> list[Completion]:
        room = self._engine.model_config.max_model_len
        longest = max((len(request.prompt_ids) for request in requests), default=0) + params.max_tokens
        if longest > room:  # vLLM would cut answers short without a word
            raise self._mistaken(f"holds {room} tokens, and a prompt with its answer may be {longest}")
        asked = [
            self._params(
                seed=seed_of(request.key),
                max_tokens=params.max_tokens,
                temperature=params.temperature,
                ignore_eos=True,  # an answer ends at stop_ids alone
                stop_token_ids=list(params.stop_ids),
                logprobs=0,
                detokenize=False,
            )
            for request in requests
        ]
        prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request in requests]
        answers = [one.outputs[0] for one in self._engine.generate(prompts, asked, use_tqdm=False)]
        return [
            Completion(
                tuple(one.token_ids),
                tuple(held[token].logprob for token, held in zip(one.token_ids, one.logprobs, strict=True)),
                one.token_ids[-1] in params.stop_ids,
            )
            for one in answers
        ]

    def _load(self, policy: Weights) -> None:
        import torch

        device = next(self.model.parameters()).device
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():  # a thread begins at the first GPU
            self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": self._weights(policy)})

    def _weights(self, policy: Weights) -> Iterator[tuple[str, torch.Tensor]]:
        """Every weight, and a tied head under each of its names: see rlef.rollout.synced.write_tied_head."""
        heads = head_names(self.model)
        for name, value in policy.full_parameters():
            name = plain(name)
            copy = value.detach().clone()  # vLLM keeps it until its layer is whole; under ZeRO-3 the weight itself is gone by then
            yield from ((one, copy) for one in (sorted(heads) if name in heads else [name]))

    def _wake(self) -> None:
        import torch

        if self._asleep:
            torch.cuda.empty_cache()  # what the trainer holds and does not use
            self._engine.wake_up()
            self._asleep = False

    def _mistaken(self, problem: str) -> UserError:
        return UserError(f"the vLLM engine in this process {problem}", fix="change rollout.options, or let vLLM serve: rollout.vllm")
