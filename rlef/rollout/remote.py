"""Chat models that a teacher speaks through: a transformers model in this process, or any OpenAI-compatible endpoint."""

from __future__ import annotations

import email.utils
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from reward_models.terminal import inert
from rlef.config import Prices
from rlef.errors import UserError
from rlef.prompts import Message
from rlef.rollout.base import SampleRequest, SamplingParams
from rlef.rollout.journal import Account, Answer, Calls, Journal
from rlef.run_dir import digest

if TYPE_CHECKING:
    from rlef.rollout.hf import HFGenerator

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0  # of the exponential backoff
LONGEST_ASKED_S = 600.0  # of a Retry-After: a rate limit of a minute is obeyed, one of a day is not waited for
MOST_TOKENS = 10**9  # of one call, that are believed
TEMPLATE_TOKENS = 128  # at most, of what a server's chat template puts around a prompt
MISTAKEN_ROWS = 20  # rejected from the first on: it is not the rows, it is the settings
ROW_REJECTED = (400, 413, 422)
PASSING = (408, 409, 425, 429)  # of the 4xx: worth another try
NOT_REACHED = ("ConnectError", "ConnectTimeout", "PoolTimeout")  # by name: openai 2 stands on httpx, openai 3 on httpx2


class ChatModel(Protocol):
    """Answers in the order of the conversations; None where one failed for good."""

    name: str

    def complete(
        self,
        conversations: Sequence[list[Message]],
        *,
        temperature: float,
        max_tokens: int,
        seed: int,
        schema: Mapping[str, Any] | None = None,
    ) -> list[str | None]:
        """`schema`: the JSON Schema an answer should follow. A wish: not every model can be held to it, so parse tolerantly."""
        ...

    def answers(self, conversations: Sequence[list[Message]], *, temperature: float, max_tokens: int, seed: int) -> list[Answer]:
        """The same texts, each with how it ended; `finish` is "length" where it was cut off at `max_tokens`."""
        texts = self.complete(conversations, temperature=temperature, max_tokens=max_tokens, seed=seed)
        return [Answer(text, "unknown") for text in texts]

    def expected_digit(self, conversations: Sequence[list[Message]], opening: str) -> list[float] | None:
        """The mean digit, 0..9, with which the model would go on after the `opening` of its answer; None where it cannot be asked."""
        ...


class HFChat:
    """A model in this process. The noise of an answer belongs to (seed, its place)."""

    def __init__(self, name: str, generator: HFGenerator, tokenizer: Any, stops: Sequence[int]) -> None:
        self.name, self.generator, self.tokenizer, self.stops = name, generator, tokenizer, tuple(stops)

    def complete(
        self,
        conversations: Sequence[list[Message]],
        *,
        temperature: float,
        max_tokens: int,
        seed: int,
        schema: Mapping[str, Any] | None = None,
    ) -> list[str | None]:
        return [answer.text for answer in self.answers(conversations, temperature=temperature, max_tokens=max_tokens, seed=seed)]

    def answers(self, conversations: Sequence[list[Message]], *, temperature: float, max_tokens: int, seed: int) -> list[Answer]:
        requests = []
        for place, messages in enumerate(conversations):
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            requests.append(SampleRequest(tuple(self.tokenizer.encode(text, add_special_tokens=False)), (seed, place)))
        done = self.generator.generate(requests, SamplingParams(max_tokens, temperature, self.stops))
        texts = [str(self.tokenizer.decode(list(one.tokens), skip_special_tokens=True)).strip() for one in done]
        return [Answer(text, "stop" if one.finished else "length") for text, one in zip(texts, done, strict=True)]

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
    """An endpoint. The key comes from the environment and goes nowhere else. For any number of threads at once; close it at the end.

    `timeout_s` is for a whole call, `retries` for a call's further tries, `cap_usd` for everything the journal knows of, what is only
    possibly paid included. Every answer is in the journal before it is used.
    """

    def __init__(
        self,
        *,
        model: str,
        base_url: str,
        api_key_env: str,
        concurrency: int,
        timeout_s: float,
        retries: int,
        journal: Journal | None = None,
        prices: Prices | None = None,
        cap_usd: float | None = None,
    ) -> None:
        import openai

        self.name, self.base_url, self.retries, self.concurrency, self.timeout_s = model, base_url, retries, concurrency, timeout_s
        self.journal = journal or Journal(None)
        self.prices, self.cap_usd = prices, cap_usd
        self._errors = openai
        self._key = os.environ.get(api_key_env)
        # Retries are ours: the library's own give up after two and do not tell.
        self._client = openai.OpenAI(base_url=base_url, api_key=self._key or "none", timeout=timeout_s, max_retries=0)
        # One pool for the object's life: batches that are asked for side by side share it, first come, first served.
        self._pool = ThreadPoolExecutor(concurrency)
        self._lock = threading.Lock()
        self._running: dict[str, Future[Answer | None]] = {}
        self._done: Counter[str] = Counter()
        self._used = Calls()
        self._takes_schemas: bool | None = None  # not known yet
        self._finding_out = threading.Lock()
        self._stop = threading.Event()
        self._mistake: UserError | None = None

    def complete(
        self,
        conversations: Sequence[list[Message]],
        *,
        temperature: float,
        max_tokens: int,
        seed: int,
        schema: Mapping[str, Any] | None = None,
    ) -> list[str | None]:
        """None for what the server rejects, refuses or never answers usably. Raises UserError where no call can succeed, or at the cap."""
        found = self._answers(conversations, temperature, max_tokens, seed, schema)
        return [answer.text for answer in found]

    def answers(self, conversations: Sequence[list[Message]], *, temperature: float, max_tokens: int, seed: int) -> list[Answer]:
        return self._answers(conversations, temperature, max_tokens, seed, None)

    def _answers(
        self, conversations: Sequence[list[Message]], temperature: float, max_tokens: int, seed: int, schema: Mapping[str, Any] | None
    ) -> list[Answer]:
        jobs = [
            self._submit(
                {
                    "model": self.name,
                    "messages": messages,
                    "temperature": temperature,
                    "max_tokens": max_tokens,
                    "seed": seed + (place if temperature else 0),  # without sampling its place must not make a question another one
                },
                schema,
            )
            for place, messages in enumerate(conversations)
        ]
        return [job.result() or Answer(None, "rejected") for job in jobs]

    def expected_digit(self, conversations: Sequence[list[Message]], opening: str) -> list[float] | None:
        return None  # chat endpoints do not continue an answer that was begun for them

    def account(self) -> dict[str, Any]:
        """Calls sent, answers found in the journal, tokens and USD of this object; then of the whole journal. No prices: USD is None."""
        run = self.journal.account()
        return {
            "calls": self._done["calls"],
            "journal_hits": self._done["hits"],
            "rejected": self._done["rejected"],
            "prompt_tokens": self._used.prompt_tokens,
            "completion_tokens": self._used.completion_tokens,
            "cost_usd": self._cost(self._used),
            "run_paid_calls": run.paid.calls,
            "run_paid_usd": self._cost(run.paid),
            "run_possibly_paid_calls": run.possibly_paid.calls,
            "run_possibly_paid_usd": self._cost(run.possibly_paid),
        }

    def close(self) -> None:
        """Nothing more is sent; what is in flight is waited for, since it is paid."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)
        self._client.close()
        self.journal.close()

    def _submit(self, request: dict[str, Any], schema: Mapping[str, Any] | None) -> Future[Answer | None]:
        asked = request
        if schema is not None:
            form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
            asked = request | {"response_format": form}
        key = self._key_of(asked)
        with self._lock:
            running = self._running.get(key)
            if running is not None:
                self._done["hits"] += 1
            else:
                running = self._running[key] = self._pool.submit(self._one, key, asked, request)
        return running

    def _key_of(self, request: dict[str, Any]) -> str:
        return digest([self.base_url, request])

    def _one(self, key: str, asked: dict[str, Any], plain: dict[str, Any]) -> Answer | None:
        try:
            keys = [key] if asked is plain else [key, self._key_of(plain)]
            answer = next((found for one in keys if (found := self.journal.answer(one)) is not None), None)
            if answer is not None:
                self._count("hits")
                return answer
            return self._ask(asked) if asked is plain else self._ask_structured(asked, plain)
        except UserError as error:
            self._mistake = self._mistake or error
            self._stop.set()
            raise
        finally:
            with self._lock:
                self._running.pop(key, None)

    def _ask_structured(self, asked: dict[str, Any], plain: dict[str, Any]) -> Answer | None:
        """With the schema; without it where the server takes none. The first one finds that out while the others wait."""
        if self._takes_schemas is None:
            with self._finding_out:
                if self._takes_schemas is None:
                    answer = self._ask(asked)
                    if answer is not None:
                        self._takes_schemas = True
                    elif (answer := self._ask(plain)) is not None:
                        self._takes_schemas = False
                    return answer
        return self._ask(plain if self._takes_schemas is False else asked)

    def _ask(self, request: dict[str, Any]) -> Answer | None:
        """An answer, stored. None for a request that the server rejects, which is asked again in another run: that costs nothing."""
        errors, key, problem = self._errors, self._key_of(request), ""
        for number in range(self.retries + 1):
            if self._stop.is_set():
                raise self._mistake or UserError("the teacher was closed")
            attempt = self.journal.intend(key, _most(request), self._afford)
            self._count("calls")
            wait = _wait({}, number)
            try:
                body = self._send(request, attempt)
            except errors.APIStatusError as error:
                status, problem = error.status_code, self._words(error)
                if status < 500 or status in (500, 501, 503):  # what lies behind a gateway that gave up may have worked, and be billed
                    self.journal.reject(attempt, problem[:500])
                if status in ROW_REJECTED:
                    return self._rejected(problem)
                if (status < 500 and status not in PASSING) or error.code == "insufficient_quota":
                    raise self._wrong(problem) from None
                wait = _wait(error.response.headers, number)
            except errors.APIConnectionError as error:
                cause = error.__cause__
                problem = f"{self._words(error)} ({type(cause).__name__})"
                if type(cause).__name__ in NOT_REACHED:
                    self.journal.reject(attempt, problem[:500])
            except _Lost as error:
                problem = self._words(error)
            else:
                answer, used = read_body(body)
                if answer is not None or used is not None:
                    self._count("answered", used)
                    kept = self.journal.settle(attempt, used, answer)
                    if kept is not None:
                        return kept
                problem = ""
            if number < self.retries:
                if problem:
                    self._tell(problem, number, wait)
                self._stop.wait(wait)
        if not problem:  # it answers, but never usably: this row's fault, not the server's
            return self.journal.keep(key, Answer(None, "unusable"))
        raise UserError(
            f"teacher at {self.base_url} gave no answer after {self.retries + 1} tries: {problem}",
            fix="start the server or check teacher.base_url; the same command goes on",
        )

    def _send(self, request: dict[str, Any], attempt: str) -> Any:
        """The decoded body. The attempt's id goes along, so that a bill can be held against the journal."""
        end = time.monotonic() + self.timeout_s
        created = self._client.chat.completions.with_streaming_response.create(**request, extra_headers={"X-Client-Request-Id": attempt})
        with created as response:
            try:
                parts = []
                # The library's time limit is for one read: a server that sends a byte now and then would never meet it.
                for part in response.iter_bytes():
                    parts.append(part)
                    if time.monotonic() > end:
                        raise TimeoutError(f"no whole answer within {self.timeout_s:g} s")
                return json.loads(b"".join(parts))
            except Exception as error:  # whatever stops an answer on its way; each HTTP library has names of its own for it
                raise _Lost(f"answer cut off: {error}") from None

    def _afford(self, account: Account) -> None:
        """The cap holds even if everything in flight comes back at its longest."""
        if self.cap_usd is None or self.prices is None:
            return
        paid, possibly = self._cost(account.paid) or 0.0, self._cost(account.possibly_paid) or 0.0
        if paid + possibly > self.cap_usd:
            raise UserError(
                f"teacher.max_cost_usd: the next call could exceed {self.cap_usd:g} USD: {paid:.4f} USD are paid, and with it up to "
                f"{possibly:.4f} USD more are in flight or were sent without an answer",
                fix="raise teacher.max_cost_usd; what was paid for is in the run's journal and is not asked again",
            )

    def _tell(self, problem: str, number: int, wait: float) -> None:
        """The first trouble of a stage is said at once: a server that is down would be a minute of silence."""
        with self._lock:
            self._done["troubles"] += 1
            first = self._done["troubles"] == 1
        if first:
            again = f"try {number + 2} of {self.retries + 1} in {wait:.1f} s"
            print(inert(f"teacher at {self.base_url}: {problem}; {again}"), file=sys.stderr, flush=True)

    def _rejected(self, problem: str) -> None:
        self._count("rejected")
        if self._done["rejected"] >= MISTAKEN_ROWS and not self._done["answered"] and not self._done["hits"]:
            raise self._wrong(f"the first {self._done['rejected']} requests were rejected: {problem}")

    def _wrong(self, problem: str) -> UserError:
        fix = f"check teacher.model, teacher.base_url and the key's environment variable ({'set' if self._key else 'not set'})"
        return UserError(f"teacher at {self.base_url}: {problem}", fix=fix)

    def _words(self, error: Exception) -> str:
        """What went wrong; a server may repeat the key that it was sent. One like `x`, for a local server, is no secret."""
        return str(error).replace(self._key, "***") if self._key and len(self._key) >= 8 else str(error)

    def _count(self, what: str, used: Calls | None = None) -> None:
        with self._lock:
            self._done[what] += 1
            self._used += used or Calls()

    def _cost(self, calls: Calls) -> float | None:
        return self.prices.usd(calls.prompt_tokens, calls.completion_tokens) if self.prices else None


class _Lost(Exception):
    """It was sent, and what came back is not whole: nobody knows whether it is paid."""


def read_body(body: Any) -> tuple[Answer | None, Calls | None]:
    """The answer and the tokens of a chat completion's JSON; None for what is not there, whatever stands in its place."""
    body = body if isinstance(body, dict) else {}
    usage, choices = body.get("usage"), body.get("choices")
    counts: list[Any] = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else [None]
    used = Calls(1, *counts) if all(isinstance(count, int) and 0 <= count <= MOST_TOKENS for count in counts) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return None, used
    text, finish = message.get("content"), str(choice.get("finish_reason"))
    if message.get("refusal") or finish == "content_filter":
        return Answer(None, "refusal"), used
    # Half of a surrogate pair, which JSON can say, is no text: no file would take it.
    whole = text.encode("utf-8", "replace").decode() if isinstance(text, str) else ""
    return Answer(whole.strip(), finish.encode("utf-8", "replace").decode()), used


def _most(request: dict[str, Any]) -> Calls:
    """The most tokens that a request can cost: no token is shorter than a byte."""
    prompt = len(json.dumps([request["messages"], request.get("response_format")], ensure_ascii=False).encode()) + TEMPLATE_TOKENS
    return Calls(1, prompt, request["max_tokens"])


def _wait(headers: Mapping[str, str], number: int) -> float:
    """Seconds before try `number` + 2: exponential with jitter, and never less than the server asked for."""
    wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**number) * random.uniform(0.5, 1.0)
    asked = headers.get("retry-after")
    if not asked:
        return wait
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(asked).timestamp() - time.time()
        except ValueError:
            return wait
    # A little more than asked, each its own: they must not all come back in the same instant.
    return max(wait, min(LONGEST_ASKED_S, seconds) * (1 + 0.1 * random.random()))
