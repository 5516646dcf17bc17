"""Instruction data: Alpaca, ShareGPT, chat messages, and our own problems and solutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from reward_models.formats.base import Format, Row, difference_of, has, patched, take, text_at, validated, with_extra, without
from rlef.records import Problem, Solution
from rlef.sources import as_problem

MARKER = "####"
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant"}
CALLED = {"user": "human", "assistant": "gpt"}


@dataclass(frozen=True)
class Turn:
    """One message. `text` is None where it holds no plain text (parts, tool calls); `extra` then has its content as it stands."""

    role: str  # "system", "user", "assistant", or any other
    text: str | None
    extra: Row = field(default_factory=dict)
    speaker: str | None = field(default=None, compare=False)  # layout: ShareGPT's name for the role


@dataclass(frozen=True)
class Conversation:
    """A conversation of any length, with the columns that stood beside it."""

    turns: tuple[Turn, ...]
    extra: Row = field(default_factory=dict)
    bare: bool = field(default=False, compare=False)  # layout: Alpaca without the column `input`


def from_messages(messages: Any, where: str) -> tuple[Turn, ...]:
    """Chat messages as turns. Raises ValueError, which names `where` and the message."""
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where} is no list of messages")
    turns = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"{where}: message {number} has no role")
        content = message.get("content")
        if isinstance(content, str):
            turns.append(Turn(message["role"], content, without(message, "role", "content")))
        else:
            turns.append(Turn(message["role"], None, without(message, "role")))
    return tuple(turns)


def to_messages(turns: Sequence[Turn]) -> list[Row]:
    return [with_extra({"role": turn.role} | ({} if turn.text is None else {"content": turn.text}), turn.extra) for turn in turns]


def read_messages(row: Row) -> list[Conversation]:
    return [Conversation(from_messages(take(row, "messages", list, "list"), "messages"), without(row, "messages"))]


def write_messages(talk: Conversation) -> Row:
    return with_extra({"messages": to_messages(talk.turns)}, talk.extra)


def read_sharegpt(row: Row) -> list[Conversation]:
    """ShareGPT's `conversations`; a speaker that is not known keeps its name as its role."""
    turns = []
    for number, said in enumerate(take(row, "conversations", list, "list"), 1):
        speaker, value = (said.get("from"), said.get("value")) if isinstance(said, dict) else (None, None)
        if not isinstance(speaker, str) or not isinstance(value, str):
            raise ValueError(f"conversations: turn {number} has no from and value")
        turns.append(Turn(SPEAKERS.get(speaker, speaker), value, without(said, "from", "value"), speaker))
    if not turns:
        raise ValueError("conversations is empty")
    return [Conversation(tuple(turns), without(row, "conversations"))]


def write_sharegpt(talk: Conversation) -> Row:
    """Raises ValueError where a turn has no plain text, or a speaker that would be read back as another role."""
    said = []
    for number, turn in enumerate(talk.turns, 1):
        name = turn.speaker or CALLED.get(turn.role, turn.role)
        if turn.text is None:
            raise ValueError(f"turn {number} holds no plain text")
        if SPEAKERS.get(name, name) != turn.role:
            raise ValueError(f"turn {number}: the role {turn.role!r} would be read back as {SPEAKERS[name]!r}")
        said.append(with_extra({"from": name, "value": turn.text}, turn.extra))
    return with_extra({"conversations": said}, talk.extra)


def _exchange(talk: Conversation, *, may_be_open: bool = False) -> tuple[str, str | None]:
    """Question and answer of what is no more than that. `may_be_open`: an answer may be missing (None)."""
    roles = [turn.role for turn in talk.turns]
    if roles != ["user", "assistant"] and not (may_be_open and roles == ["user"]):
        what = "a system prompt" if "system" in roles else f"{len(roles)} turns" if len(roles) != 2 else f"turns of {' and '.join(roles)}"
        raise ValueError(f"{what}: the format holds one question{'' if may_be_open else ' and its answer'} alone")
    for number, turn in enumerate(talk.turns, 1):
        beside = [key for key, value in turn.extra.items() if value is not None]
        if turn.text is None or beside:
            raise ValueError(f"turn {number} has {beside[0] if beside else 'no text'}, which the format cannot hold")
    texts = [turn.text for turn in talk.turns]
    return str(texts[0]), texts[1] if len(texts) == 2 else None


def _talk(question: str, answer: str | None, extra: Row, *, bare: bool = False) -> Conversation:
    return Conversation((Turn("user", question), *([] if answer is None else [Turn("assistant", answer)])), extra, bare)


def read_alpaca(row: Row) -> list[Conversation]:
    """`instruction` and `input` are one question, a line break between; `input` may be empty or missing, as in WizardLM's files."""
    question, given = text_at(row, "instruction"), row.get("input")
    if given is not None and not isinstance(given, str):
        raise ValueError("input is no text")
    if given and given.strip():
        question = f"{question}\n{given}"
    extra = without(row, "instruction", "output", *(["input"] if given == "" else []))
    return [_talk(question, text_at(row, "output"), extra, bare="input" not in row)]


def write_alpaca(talk: Conversation) -> Row:
    """Raises ValueError for more than one question with one answer."""
    question, answer = _exchange(talk)
    given = talk.extra.get("input", "")
    if isinstance(given, str) and given.strip():
        if not question.endswith(f"\n{given}"):
            raise ValueError("its column input is not the end of the question")
        question = question.removesuffix(f"\n{given}")
    elif given is not None and not isinstance(given, str):
        raise ValueError("its column input is no text")
    own = {"instruction": question, **({} if talk.bare else {"input": given}), "output": answer}
    return with_extra(own, without(talk.extra, "input"))


def read_problems(row: Row) -> list[Conversation]:
    """Our seeds.jsonl, evolved.jsonl and prompts.jsonl."""
    problem = validated(Problem, row)
    extra = dict(problem.extra or {})
    kept = extra.pop("text", None) if isinstance(extra.get("text"), str) else None
    talk = _talk(problem.question, _solution_text(problem) if kept is None else kept, extra)
    return [_with_column(talk, "rlef_problem", difference_of(without(row, "extra"), _problem_row(talk)))]


def write_problems(talk: Conversation) -> Row:
    """A text that its steps and answer do not give again is kept as `extra.text`."""
    own, extra = _problem_row(talk), dict(talk.extra)
    if "rlef_problem" in extra:
        own = patched(own, extra.pop("rlef_problem"), "rlef_problem", ("question",))
    problem, text = validated(Problem, own), _exchange(talk, may_be_open=True)[1]
    if text is not None and _solution_text(problem) != text:
        extra = with_extra({"text": text}, extra)
    elif isinstance(extra.get("text"), str):
        raise ValueError("its column text would be read back as the answer")
    return own | ({"extra": extra} if extra else {})


def _problem_row(talk: Conversation) -> Row:
    """What a question and its answer say of a Problem by themselves. Prose without a final answer is one step, as it was written."""
    question, text = _exchange(talk, may_be_open=True)
    problem = as_problem({"instruction": question} | ({} if text is None else {"output": text}), "")
    if problem.answer is None and text:
        problem = problem.model_copy(update={"solution": (text,)})
    return problem.model_dump(mode="json", exclude_none=True) | {"question": question}


def _solution_text(problem: Problem) -> str | None:
    if problem.solution is None and problem.answer is None:
        return None
    return "\n".join([*(problem.solution or ()), *([] if problem.answer is None else [f"{MARKER} {problem.answer}"])])


def read_solved(row: Row) -> list[Conversation]:
    """Our solved.jsonl."""
    solution = validated(Solution, row)
    talk = _talk(solution.question, solution.text, dict(solution.extra or {}))
    return [_with_column(talk, "rlef_solution", difference_of(without(row, "extra"), _solution_row(talk)))]


def write_solved(talk: Conversation) -> Row:
    own, extra = _solution_row(talk), dict(talk.extra)
    if "rlef_solution" in extra:
        own = patched(own, extra.pop("rlef_solution"), "rlef_solution", ("question", "text"))
    validated(Solution, own)
    return own | ({"extra": extra} if extra else {})


def _solution_row(talk: Conversation) -> Row:
    question, text = _exchange(talk)
    read = _problem_row(talk)
    own = {"version": 1, "problem_id": read["id"], "question": question, "steps": read.get("solution", [])}
    return own | {"answer": read.get("answer"), "text": text, "writer": "imported", "sample": 0}


def _with_column(talk: Conversation, column: str, difference: Row) -> Conversation:
    return Conversation(talk.turns, with_extra({column: difference} if difference else {}, talk.extra))


FORMATS = (
    Format("problems", "conversations", lambda row: has(row, version=int, id=str, question=str), read_problems, write_problems),
    Format("solved", "conversations", lambda row: has(row, problem_id=str, text=str, writer=str), read_solved, write_solved),
    Format("alpaca", "conversations", lambda row: has(row, instruction=str, output=str), read_alpaca, write_alpaca),
    Format("sharegpt", "conversations", lambda row: has(row, conversations=list), read_sharegpt, write_sharegpt),
    Format("messages", "conversations", lambda row: has(row, messages=list) and "chosen" not in row, read_messages, write_messages),
)
