"""Served reward models with the interface of those in this process: rows go to all servers in pieces, scores come back in order.

A failure is an error with a message, never a score. No torch is needed to ask who serves what.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from reward_models.errors import UserError

if TYPE_CHECKING:
    from reward_models.process import StepScores

TOKEN_ENV = "REWARD_MODELS_TOKEN"
NAMES = {"irm": "instruction", "prm": "process"}
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0  # of the exponential backoff
REST_S = 30.0  # so long a server that failed is asked last
PIECE_ROWS, PIECE_BYTES = 64, 2**20  # of a request, at most
PIECES_A_SERVER = 4  # under way at once
HEALTH_TIMEOUT_S = 5.0


class _Passing(Exception):
    """A failure that another try, or another server, may mend. `wait_s`: what the server asked to wait."""

    def __init__(self, problem: str, wait_s: float = 0.0, *, busy: bool = False) -> None:
        super().__init__(problem)
        self.wait_s, self.busy = wait_s, busy


class RewardServers:
    """Servers of one and the same model of `kind` ("irm" or "prm"). The token, where they want one, comes from the environment.

    `timeout_s` is for one try of a piece, `retries` for further rounds over all servers. Raises UserError where none answers, where they
    hold different models, or none of this kind.
    """

    def __init__(self, urls: Sequence[str], kind: str, *, token_env: str = TOKEN_ENV, timeout_s: float = 300.0, retries: int = 8) -> None:
        self.urls, self.kind, self.timeout_s, self.retries, self.token_env = list(urls), kind, timeout_s, retries, token_env
        self._token = read_token(token_env)
        self._resting: dict[str, float] = {}  # server -> when it is asked in its turn again
        self._lock = threading.Lock()
        self.digest, limits, silent = _one_model(self.urls, kind)
        self._most_rows = min(PIECE_ROWS, *(one["rows"] for one in limits))
        self._most_bytes = min(PIECE_BYTES, *(one["body_bytes"] // 2 for one in limits))
        for url, problem in silent.items():
            print(f"{url} does not answer ({problem}); the others take its share", file=sys.stderr, flush=True)

    def scores(self, path: str, key: str, rows: Sequence[Any], read: Callable[[dict[str, Any], int], list[Any]]) -> list[Any]:
        """One score a row, in order. `read` takes a piece's scores from its answer, given how many rows were asked."""
        share = max(1, math.ceil(len(rows) / len(self.urls)))
        texts = [json.dumps(row, ensure_ascii=False) for row in rows]
        pieces = pieces_of(texts, min(share, self._most_rows), self._most_bytes)
        ended = threading.Event()

        def ask(number: int) -> list[Any]:
            body = f'{{"{key}": [{", ".join(pieces[number])}]}}'.encode(errors="surrogatepass")
            return self._ask(number, path, body, lambda answer: read(answer, len(pieces[number])), ended)

        pool = ThreadPoolExecutor(PIECES_A_SERVER * len(self.urls))
        try:
            return [score for piece in pool.map(ask, range(len(pieces))) for score in piece]
        finally:
            ended.set()  # the first failure, or a signal, ends it
            pool.shutdown(cancel_futures=True)

    def _ask(self, number: int, path: str, body: bytes, read: Callable[[dict[str, Any]], list[Any]], ended: threading.Event) -> list[Any]:
        """Piece `number` begins with its own server, so that all have their share; what one fails to do the next one does."""
        problems: dict[str, str] = {}
        for tried in range(self.retries + 1):
            wait = min(FIRST_WAIT_S * 2**tried, LONGEST_WAIT_S)
            for url in self._order(number):
                try:
                    return self._post(url, path, body, read)
                except _Passing as failure:
                    problems[url] = str(failure)
                    wait = max(wait, min(failure.wait_s, LONGEST_WAIT_S))
                    if not failure.busy:
                        with self._lock:
                            self._resting[url] = time.monotonic() + REST_S
            if tried == self.retries or ended.wait(wait):
                break
        told = "; ".join(f"{url}: {problem}" for url, problem in problems.items())
        raise UserError(
            f"the {NAMES[self.kind]} reward model gave no scores after {self.retries + 1} tries ({told})",
            fix="look after the servers, then run again",
        )

    def _order(self, number: int) -> list[str]:
        first = number % len(self.urls)
        turn = self.urls[first:] + self.urls[:first]
        now = time.monotonic()
        with self._lock:
            return sorted(turn, key=lambda url: self._resting.get(url, 0.0) > now)  # stable

    def _post(self, url: str, path: str, body: bytes, read: Callable[[dict[str, Any]], list[Any]]) -> list[Any]:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._token}"} if self._token else {})
        code, retry_after, data = _request(url, "POST", path, self.timeout_s, body, headers)
        if code == 401:
            raise UserError(f"{url} wants a token, or another one", fix=f"set the environment variable {self.token_env} to the server's")
        if code != 200:
            told = f"{code} {data[:500].decode(errors='replace')}"
            if code in (408, 429) or code >= 500:
                raise _Passing(told, retry_after, busy=code in (429, 503))
            raise UserError(f"{url}{path} rejects what it is asked ({told})", fix="is it a server of this version of reward_models?")
        try:
            answer = json.loads(data)
            model, scores = answer["model"], read(answer)
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"{url}{path} answers with something else than scores ({type(error).__name__}: {error})",
                fix="is it a server of this version of reward_models?",
            ) from None
        if model != self.digest:
            raise UserError(
                f"{url} now serves another {NAMES[self.kind]} reward model ({model[:12]}) than at the start ({self.digest[:12]})",
                fix="serve the first one again, or start anew",
            )
        return scores


class ServedInstructionModel:
    """As InstructionRewardModel: r_I of instructions."""

    def __init__(self, urls: Sequence[str], **options: Any) -> None:
        self.servers = RewardServers(urls, "irm", **options)

    def score(self, instructions: Sequence[str], batch_size: int = 64) -> list[float]:
        """r_I of each instruction. `batch_size` is the server's business."""

        def read(answer: dict[str, Any], count: int) -> list[float]:
            return _probabilities(answer["scores"], count)

        return self.servers.scores("/v1/instructions", "instructions", instructions, read)


class ServedProcessModel:
    """As ProcessRewardModel: the score of every step."""

    def __init__(self, urls: Sequence[str], **options: Any) -> None:
        self.servers = RewardServers(urls, "prm", **options)

    def score(self, questions: Sequence[str], steps: Sequence[Sequence[str]], batch_size: int = 64) -> list[StepScores]:
        """One StepScores a solution, in order. `batch_size` is the server's business."""
        from reward_models.process import StepScores  # torch stands behind it

        rows = [{"question": question, "steps": list(parts)} for question, parts in zip(questions, steps, strict=True)]

        def read(answer: dict[str, Any], count: int) -> list[StepScores]:
            results = [StepScores(tuple(_probabilities(one["step_scores"])), bool(one["truncated"])) for one in answer["results"]]
            if len(results) != count:
                raise ValueError(f"{len(results)} results for {count} solutions")
            return results

        scored = self.servers.scores("/v1/solutions", "solutions", rows, read)
        for row, result in zip(rows, scored, strict=True):
            count = len(row["steps"])
            if len(result.scores) not in ((0,) if result.truncated else (count, min(1, count))):  # of an outcome model one in all
                raise UserError(f"a server gave {len(result.scores)} scores for {count} steps", fix="look after the servers")
        return scored


def read_token(name: str) -> str:
    """What the environment variable holds, empty where it is not set. Raises UserError for what no HTTP header can carry."""
    token = os.environ.get(name, "").strip()
    if not (token.isascii() and token.isprintable()):
        raise UserError(f"the environment variable {name} holds no token: HTTP headers are printable ASCII", fix="choose another token")
    return token


def served_digest(urls: Sequence[str], kind: str) -> str:
    """What names the model that these servers hold. Raises UserError as RewardServers does."""
    return _one_model(urls, kind)[0]


def _one_model(urls: Sequence[str], kind: str) -> tuple[str, list[dict[str, int]], dict[str, str]]:
    """The digest that all servers which answer agree on, what a request to each may bring, and what is wrong with the others."""
    found: dict[str, str] = {}
    limits: list[dict[str, int]] = []
    silent: dict[str, str] = {}
    for url in urls:
        try:
            code, _, data = _request(url, "GET", "/health", HEALTH_TIMEOUT_S)
            told = json.loads(data)
            if code != 200:
                silent[url] = str(told.get("status", code))
            elif kind not in told["models"]:
                raise UserError(f"{url} serves no {NAMES[kind]} reward model", fix=f"start it with --{kind} DIR")
            else:
                found[url] = str(told["models"][kind]["digest"])
                limits.append({name: int(told["limits"][name]) for name in ("rows", "body_bytes")})
        except _Passing as failure:
            silent[url] = str(failure)
        except (ValueError, LookupError, TypeError, AttributeError):
            silent[url] = "something else answers there"
    if not found:
        told = "; ".join(f"{url}: {problem}" for url, problem in silent.items())
        raise UserError(
            f"no server of the {NAMES[kind]} reward model answers ({told})", fix=f"start one: python -m reward_models serve --{kind} DIR"
        )
    if len(set(found.values())) > 1:
        told = ", ".join(f"{url} {digest[:12]}" for url, digest in found.items())
        raise UserError(f"these servers hold different {NAMES[kind]} reward models ({told})", fix="serve the same folder everywhere")
    return next(iter(found.values())), limits, silent


def _request(
    url: str, method: str, path: str, timeout_s: float, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, float, bytes]:
    """Status, seconds of Retry-After, body. Raises _Passing where there is no whole answer. Neither proxies nor redirects are followed."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        with contextlib.closing(kind(parts.netloc, timeout=timeout_s)) as connection:  # an address that is none is told here, too
            connection.request(method, parts.path.rstrip("/") + path, body, headers or {})
            response = connection.getresponse()
            wait = response.headers.get("Retry-After", "")
            return response.status, float(wait) if wait.isdecimal() else 0.0, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise _Passing(str(error) or type(error).__name__) from None


def pieces_of(rows: Sequence[str], most_rows: int, most_bytes: int) -> list[list[str]]:
    """Rows as JSON in consecutive pieces of at most so many rows and, but for a single row, so many bytes."""
    pieces: list[list[str]] = []
    size = 0
    for row in rows:
        length = len(row.encode(errors="surrogatepass"))
        if not pieces or len(pieces[-1]) == most_rows or size + length > most_bytes:
            pieces.append([])
            size = 0
        pieces[-1].append(row)
        size += length
    return pieces


def _probabilities(values: Any, count: int | None = None) -> list[float]:
    """Numbers in 0..1. Raises ValueError where they are none, or not `count`."""
    numbers = [float(value) for value in values]
    if count is not None and len(numbers) != count:
        raise ValueError(f"{len(numbers)} scores for {count} rows")
    if not all(0 <= number <= 1 for number in numbers):  # nor NaN
        raise ValueError("a score is not in 0..1")
    return numbers
