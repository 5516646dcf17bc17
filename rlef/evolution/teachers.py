"""Makes the teacher that the config asks for, keeps it busy and says what it cost."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from rlef.config import Config
from rlef.evolution.chat import ChatTeacher
from rlef.evolution.operations import read_operations
from rlef.rollout.journal import Journal
from rlef.rollout.remote import HFChat, OpenAIChat
from rlef.symbolic import SymbolicTeacher

T = TypeVar("T")
Teacher = SymbolicTeacher | ChatTeacher


@contextlib.contextmanager
def teaching(config: Config, journal: Path | None, operations_file: str | None = None) -> Iterator[Teacher]:
    """The teacher, for a stage's length. `journal`: where an endpoint's answers are kept; None: in memory."""
    teacher = make_teacher(config, journal, operations_file)
    try:
        yield teacher
    finally:
        if (chat := _endpoint(teacher)) is not None:
            chat.close()


def overlapped(teacher: Teacher, calls: Iterable[Callable[[], T]], rows: int) -> Iterator[T]:
    """The results of calls to the teacher, in order; each asks for about `rows` answers.

    With an endpoint several calls are under way at once, so that it does not idle while the slowest answer of one call is on its way.
    How many does not change what is asked. Any other teacher gets them one by one, each when its result is wanted.
    """
    chat = _endpoint(teacher)
    if chat is None:
        yield from (call() for call in calls)
        return
    ahead = 2 + math.ceil(3 * chat.concurrency / rows)  # a call often waits for its last answers alone
    pool = ThreadPoolExecutor(ahead)
    waiting: deque[Future[T]] = deque()
    try:
        for call in calls:
            waiting.append(pool.submit(call))
            if len(waiting) == ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def in_process(teacher: Teacher) -> bool:
    """Whether it is a model in this process: costly to ask again, and several processes may each ask their own."""
    return isinstance(teacher, ChatTeacher) and isinstance(teacher.chat, HFChat)


def is_endpoint(teacher: Teacher) -> bool:
    return _endpoint(teacher) is not None


def account(teacher: Teacher) -> dict[str, Any]:
    """The part of a stage's result that says what an endpoint was asked and cost; empty for other teachers."""
    chat = _endpoint(teacher)
    return {"teacher": chat.account()} if chat is not None else {}


def _endpoint(teacher: Teacher) -> OpenAIChat | None:
    return teacher.chat if isinstance(teacher, ChatTeacher) and isinstance(teacher.chat, OpenAIChat) else None


def make_teacher(config: Config, journal: Path | None = None, operations_file: str | None = None) -> Teacher:
    """symbolic: no model; hf: a model in this process; openai: any OpenAI-compatible endpoint; `operations_file`: for both."""
    teacher = config.teacher
    if teacher.kind == "symbolic":
        depths = [stage.max_depth for stage in config.stages.values() if stage.kind == "evolve"]
        numbers = [stage.max_number for stage in config.stages.values() if stage.kind == "problems"]
        rates = {"flaw_rate": teacher.flaw_rate, "misread_rate": teacher.misread_rate}
        return SymbolicTeacher(**rates, max_depth=max(depths, default=5), max_number=max(numbers, default=12))
    templates = read_operations(operations_file)
    if teacher.kind == "openai":
        assert teacher.model is not None and teacher.base_url is not None  # the schema sees to it
        chat = OpenAIChat(
            model=teacher.model,
            base_url=teacher.base_url,
            api_key_env=teacher.api_key_env,
            concurrency=teacher.concurrency,
            timeout_s=teacher.timeout_s,
            retries=teacher.retries,
            journal=Journal(journal),
            prices=teacher.prices,
            cap_usd=teacher.max_cost_usd,
        )
        return ChatTeacher(chat, config.model, temperature=teacher.temperature, max_tokens=teacher.max_tokens, templates=templates)
    from rlef.models import load_policy, load_tokenizer, pick_device, resolve_path, stop_ids
    from rlef.rollout.hf import HFGenerator

    own = teacher.model is not None
    path = resolve_path(teacher.model or str(config.model.path))
    gguf = teacher.gguf_file if own else config.model.gguf_file
    tokenizer = load_tokenizer(path, gguf_file=gguf)
    model = load_policy(path, gguf_file=gguf, dtype=config.model.dtype, device=pick_device(config.launch.device))
    stops = stop_ids(tokenizer, model)
    return ChatTeacher(
        HFChat(
            str(teacher.model or config.model.path), HFGenerator(model, int(tokenizer.pad_token_id), teacher.batch_size), tokenizer, stops
        ),
        config.model,
        temperature=teacher.temperature,
        max_tokens=teacher.max_tokens,
        templates=templates,
    )
