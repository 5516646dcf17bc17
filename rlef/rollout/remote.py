"""Chat models that a teacher speaks through: a transformers model in this process, or any OpenAI-compatible endpoint."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from rlef.errors import UserError
from rlef.prompts import Message
from rlef.rollout.base import SampleRequest, SamplingParams

if TYPE_CHECKING:
    from rlef.rollout.hf import HFGenerator

LONGEST_WAIT_S = 30.0


class ChatModel(Protocol):
    """Answers in the order of the conversations; None where one failed for good."""

    name: str

    def complete(self, conversations: Sequence[list[Message]], *, temperature: float, max_tokens: int, seed: int) -> list[str | None]: ...

    def expected_digit(self, conversations: Sequence[list[Message]], opening: str) -> list[float] | None:
        """The mean digit, 0..9, with which the model would go on after the `opening` of its answer; None where it cannot be asked."""
        ...


class HFChat:
    """A model in this process. The noise of an answer belongs to (seed, its place)."""

    def __init__(self, name: str, generator: HFGenerator, tokenizer: Any, stops: Sequence[int]) -> None:
        self.name, self.generator, self.tokenizer, self.stops = name, generator, tokenizer, tuple(stops)

    def complete(self, conversations: Sequence[list[Message]], *, temperature: float, max_tokens: int, seed: int) -> list[str | None]:
        requests = []
        for place, messages in enumerate(conversations):
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            requests.append(SampleRequest(tuple(self.tokenizer.encode(text, add_special_tokens=False)), (seed, place)))
        done = self.generator.generate(requests, SamplingParams(max_tokens, temperature, self.stops))
        return [str(self.tokenizer.decode(list(one.tokens), skip_special_tokens=True)).strip() for one in done]

    def expected_digit(self, conversations: Sequence[list[Message]], opening: str) -> list[float] | None:
        digits = [self.tokenizer.encode(str(digit), add_special_tokens=False)[-1] for digit in range(10)]
        prompts = []
        for messages in conversations:
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) + opening
            prompts.append(self.tokenizer.encode(text, add_special_tokens=False))
        return [
            sum(digit * share for digit, share in enumerate(row)) / sum(row) for row in self.generator.next_probabilities(prompts, digits)
        ]


class OpenAIChat:
    """An endpoint. The key comes from the environment and goes nowhere else."""

    def __init__(self, *, model: str, base_url: str, api_key_env: str, concurrency: int, timeout_s: float, retries: int) -> None:
        import openai

        self.name, self.base_url, self.retries, self.concurrency = model, base_url, retries, concurrency
        self._errors = openai
        # Retries are ours: the library's own give up after two and do not tell.
        self._client = openai.OpenAI(base_url=base_url, api_key=os.environ.get(api_key_env) or "none", timeout=timeout_s, max_retries=0)
        self.prompt_tokens = self.completion_tokens = 0

    def complete(self, conversations: Sequence[list[Message]], *, temperature: float, max_tokens: int, seed: int) -> list[str | None]:
        with ThreadPoolExecutor(self.concurrency) as pool:
            jobs = [pool.submit(self._one, messages, temperature, max_tokens, seed + place) for place, messages in enumerate(conversations)]
            try:
                return [job.result() for job in jobs]
            except UserError:
                pool.shutdown(cancel_futures=True)
                raise

    def expected_digit(self, conversations: Sequence[list[Message]], opening: str) -> list[float] | None:
        return None  # chat endpoints do not continue an answer that was begun for them

    def _one(self, messages: Any, temperature: float, max_tokens: int, seed: int) -> str | None:
        """One answer, retried with exponential backoff and jitter; Retry-After is obeyed. None for a request that the server rejects."""
        errors = self._errors
        for attempt in range(self.retries + 1):
            try:
                answer = self._client.chat.completions.create(
                    model=self.name, messages=messages, temperature=temperature, max_tokens=max_tokens, seed=seed
                )  # type: ignore[call-overload]
                if answer.usage is not None:
                    self.prompt_tokens += answer.usage.prompt_tokens
                    self.completion_tokens += answer.usage.completion_tokens
                return (answer.choices[0].message.content or "").strip() if answer.choices else None
            except (errors.AuthenticationError, errors.PermissionDeniedError, errors.NotFoundError) as error:
                raise UserError(
                    f"teacher at {self.base_url}: {error}", fix="check teacher.model, teacher.base_url and the key's environment variable"
                ) from None
            except (errors.BadRequestError, errors.UnprocessableEntityError):
                return None
            except errors.APIError as error:
                if attempt == self.retries:
                    raise UserError(
                        f"teacher at {self.base_url} gave no answer after {attempt + 1} tries: {error}",
                        fix="start the server or check teacher.base_url",
                    ) from None
                time.sleep(_wait(error, attempt))
        return None


def _wait(error: Any, attempt: int) -> float:
    response = getattr(error, "response", None)
    asked = response.headers.get("retry-after") if response is not None else None
    try:
        return min(LONGEST_WAIT_S, float(asked)) if asked else min(LONGEST_WAIT_S, 0.5 * 2**attempt) * random.uniform(0.5, 1.0)
    except ValueError:
        return 1.0
