"""The server's endpoints: what may be asked, in which shape, and what is answered.

    GET  /health            200 once the models are loaded, with their digests and the limits; else 503
    GET  /metrics           Prometheus text
    POST /v1/instructions   {"instructions": [text]} -> {"scores": [r_I], "model": digest}
    POST /v1/solutions      {"solutions": [{"question", "steps" or "text"}], "aggregate": "min", "delimiter": "\\n"}
                            -> {"results": [{"step_scores", "truncated", "score"}], "model": digest}; truncated: "score" is null
    POST /get_reward        OpenRLHF's {"query", "prompts", "labels"} -> {"rewards", "scores", "extra_logs"}

Mistakes are {"error": text}: 401 token, 404 path or model, 408 and 413 body, 422 shape, 503 not loaded or queue full (with Retry-After).
"""

# No `from __future__ import annotations`: FastAPI reads the handlers' types, and its package is imported where the app is made.

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from reward_models import __version__
from reward_models.client import NAMES
from reward_models.process import StepScores, aggregate
from reward_models.serving.batching import Batcher, NotReady, QueueFull
from reward_models.serving.door import GONE, Door
from reward_models.serving.metrics import Metrics
from reward_models.serving.models import Undivided
from reward_models.serving.openrlhf import PromptReader

RETRY_AFTER_S = 1


@dataclass(frozen=True)
class RequestLimits:
    """What one request may bring."""

    rows: int = 1024
    characters: int = 100_000  # of a row: far above what a model reads, low enough that tokenising it holds nobody up
    body_bytes: int = 8 * 2**20
    body_timeout_s: float = 30.0  # for the body to arrive


def _encodable(text: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair, which is no text") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class InstructionsRequest(_Shape):
    """Body of POST /v1/instructions."""

    instructions: list[Text]


class Solution(_Shape):
    """One solution: its steps, or a text that is split where the model's steps end."""

    question: Text
    steps: list[Text] | None = None
    text: Text | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "Solution":
        if (self.steps is None) == (self.text is None):
            raise ValueError("give either steps or text")
        return self


class SolutionsRequest(_Shape):
    """Body of POST /v1/solutions."""

    solutions: list[Solution]
    aggregate: Literal["min", "product", "mean", "last"] = "min"
    delimiter: str = Field(default="\n", min_length=1, description="what ends a step in `text`")


class OpenRlhfRequest(BaseModel):
    """Body of POST /get_reward, as OpenRLHF sends it."""

    query: list[Text]
    prompts: list[Text]
    labels: list[Any] | None = Field(default=None, description="accepted and not read: no gold answer enters a reward")


class Mistake(Exception):
    """Becomes {"error": problem} under `code`."""

    def __init__(self, code: int, problem: str) -> None:
        self.code, self.problem = code, problem


def create_app(batcher: Batcher, metrics: Metrics, limits: RequestLimits, token: str | None = None) -> Any:
    """The FastAPI app. `token`: what clients must send as a bearer token; None: anybody may ask."""
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response
    from starlette.exceptions import HTTPException

    app = FastAPI(title="reward models", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    metrics.watch_queue(lambda: batcher.waiting)

    @app.get("/health")
    async def health() -> JSONResponse:
        if not batcher.models:
            return JSONResponse({"status": "loading"}, 503)
        models = {kind: {"digest": model.digest, "max_length": model.max_length} for kind, model in _models(batcher).items()}
        return JSONResponse(
            {"status": "ready", "version": __version__, "models": models, "limits": {"rows": limits.rows, "body_bytes": limits.body_bytes}}
        )

    @app.get("/metrics")
    async def text() -> Response:
        return Response(metrics.text(), media_type=metrics.content_type)

    @app.post("/v1/instructions")
    async def instructions(asked: InstructionsRequest, request: Request) -> JSONResponse:
        scores = await score(request, "irm", asked.instructions)
        return JSONResponse({"scores": scores, "model": _models(batcher)["irm"].digest})

    @app.post("/v1/solutions")
    async def solutions(asked: SolutionsRequest, request: Request) -> JSONResponse:
        rows = [
            (one.question, one.steps if one.steps is not None else Undivided(one.text or "", asked.delimiter)) for one in asked.solutions
        ]
        results: list[StepScores] = await score(request, "prm", rows)
        return JSONResponse(
            {
                "results": [
                    {
                        "step_scores": result.scores,
                        "truncated": result.truncated,
                        "score": None if result.truncated else aggregate(result.scores, asked.aggregate),
                    }
                    for result in results
                ],
                "model": _models(batcher)["prm"].digest,
            }
        )

    @app.post("/get_reward")
    async def get_reward(asked: OpenRlhfRequest, request: Request) -> JSONResponse:
        """r_I of the prompt times the least step score of the answer, or the one of them that is served."""
        if len(asked.query) != len(asked.prompts):
            raise Mistake(422, f"{len(asked.query)} in query, but {len(asked.prompts)} in prompts")
        models = _models(batcher)
        if not models:
            raise _not_ready()
        reader: PromptReader = (models.get("prm") or models["irm"]).prompts
        questions = [reader.question(prompt) for prompt in asked.prompts]
        parts: dict[str, list[float]] = {}
        if "irm" in models:
            parts["r_I"] = await score(request, "irm", questions)
        if "prm" in models:
            answers = [reader.answer(query, prompt) for query, prompt in zip(asked.query, asked.prompts, strict=True)]
            if None in answers:
                raise Mistake(422, f"query.{answers.index(None)}: does not begin with its prompt, so its answer is not known")
            rows = [(question, Undivided(answer or "", "\n")) for question, answer in zip(questions, answers, strict=True)]
            results: list[StepScores] = await score(request, "prm", rows)
            for place, result in enumerate(results):
                if result.truncated:
                    longest = models["prm"].max_length
                    raise Mistake(422, f"query.{place}: longer than the {longest} tokens that the process model reads: it has no score")
            parts["r_A"] = [aggregate(result.scores) for result in results]
            parts["steps"] = [float(len(result.scores)) for result in results]
        factors = [parts[name] for name in ("r_I", "r_A") if name in parts]
        rewards = [factors[0][row] * (factors[1][row] if len(factors) > 1 else 1.0) for row in range(len(questions))]
        return JSONResponse({"rewards": rewards, "scores": factors[-1], "extra_logs": parts})

    async def score(request: Request, kind: str, rows: list[Any]) -> list[Any]:
        """Results of the rows once the scoring thread has them. Raises Mistake; where the client leaves first, its rows leave the queue."""
        if len(rows) > limits.rows:
            raise Mistake(422, f"{len(rows)} rows; at most {limits.rows} in a request")
        for place, row in enumerate(rows):
            if _characters(row) > limits.characters:
                raise Mistake(422, f"row {place}: more than {limits.characters} characters")
        if batcher.models and kind not in batcher.models:
            raise Mistake(404, f"no {NAMES[kind]} reward model is served here")
        try:
            asked = batcher.submit(kind, rows)
        except NotReady:
            raise _not_ready() from None
        except QueueFull:
            raise Mistake(503, "too many rows wait; try again later") from None
        answer = asyncio.wrap_future(asked)
        gone = asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise Mistake(GONE, "the client is gone")
            return answer.result()
        finally:  # also where this handler is cancelled, as at a stop that took too long
            gone.cancel()
            asked.cancel()  # at once: asyncio's own future would tell it in the loop's next round, after the count of this request

    @app.exception_handler(Mistake)
    async def mistake(request: Request, error: Mistake) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_AFTER_S)} if error.code == 503 else None
        return JSONResponse({"error": error.problem}, error.code, headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        # Not FastAPI's own answer: it repeats the whole input, which may be megabytes, and not even text.
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:8])
        return JSONResponse({"error": f"{where}: {first['msg']}".encode(errors="replace").decode()}, 422)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": f"the models failed on this request ({type(error).__name__})"}, 500)

    paths = {"/health", "/metrics", "/v1/instructions", "/v1/solutions", "/get_reward", "/openapi.json"}
    return Door(app, token=token, max_body=limits.body_bytes, body_timeout_s=limits.body_timeout_s, metrics=metrics, paths=paths)


def _models(batcher: Batcher) -> dict[str, Any]:
    return dict(batcher.models)


def _not_ready() -> Mistake:
    return Mistake(503, "the models are not loaded yet, or the server is about to stop")


def _characters(row: Any) -> int:
    if isinstance(row, str):
        return len(row)
    question, steps = row
    return len(question) + (len(steps.text) if isinstance(steps, Undivided) else sum(len(step) + 1 for step in steps))
