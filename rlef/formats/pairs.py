"""Preference pairs: TRL's, UltraFeedback (arXiv 2310.01377) as it is and as pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

from reward_models.formats.base import Format, Row, has, take, text_at, with_extra, without
from rlef.formats.conversations import Turn, from_messages, to_messages


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, the preferred one first. An empty prompt: both answers are whole conversations."""

    prompt: tuple[Turn, ...]
    chosen: tuple[Turn, ...]
    rejected: tuple[Turn, ...]
    extra: Row = field(default_factory=dict)
    plain: bool = field(default=False, compare=False)  # layout: texts, not lists of messages


def _scored(row: Row) -> None:
    for key in ("score_chosen", "score_rejected"):
        if isinstance(row.get(key, 0), bool) or not isinstance(row.get(key, 0), int | float | None):
            raise ValueError(f"{key} is no number")


def read_preference(row: Row) -> list[Pair]:
    """TRL's preference type: texts or lists of messages, the prompt of the same sort or left out."""
    _scored(row)
    sort = str if isinstance(row.get("chosen"), str) else list
    chosen, rejected = (take(row, key, sort, "text" if sort is str else "list of messages") for key in ("chosen", "rejected"))
    prompt = take(row, "prompt", sort, "text, as chosen is" if sort is str else "list, as chosen is") if "prompt" in row else None
    extra = without(row, "prompt", "chosen", "rejected")
    if sort is str:
        start = () if prompt is None else (Turn("user", prompt),)
        return [Pair(start, (Turn("assistant", chosen),), (Turn("assistant", rejected),), extra, plain=True)]
    start = () if prompt is None else from_messages(prompt, "prompt")
    return [Pair(start, from_messages(chosen, "chosen"), from_messages(rejected, "rejected"), extra)]


def write_preference(pair: Pair) -> Row:
    parts = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    own = {key: turns[0].text if pair.plain else to_messages(turns) for key, turns in parts.items() if turns}
    return with_extra(own, pair.extra)


def read_ultrafeedback_pairs(row: Row) -> list[Pair]:
    """As HuggingFaceH4/ultrafeedback_binarized: `prompt` is a text, `chosen` and `rejected` are whole conversations that begin with it."""
    _scored(row)
    prompt, (chosen, rejected) = text_at(row, "prompt"), (from_messages(row.get(key), key) for key in ("chosen", "rejected"))
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if _first_question(chosen[:shared]) != prompt:
        raise ValueError("prompt is not what both chosen and rejected begin with")
    return [Pair(chosen[:shared], chosen[shared:], rejected[shared:], without(row, "prompt", "chosen", "rejected"))]


def write_ultrafeedback_pairs(pair: Pair) -> Row:
    prompt = _first_question(pair.prompt)
    if prompt is None:
        raise ValueError("no prompt of its own, which the format needs")
    answers = {"chosen": to_messages([*pair.prompt, *pair.chosen]), "rejected": to_messages([*pair.prompt, *pair.rejected])}
    return with_extra({"prompt": prompt, **answers}, pair.extra)


def _first_question(turns: Sequence[Turn]) -> str | None:
    return next((turn.text for turn in turns if turn.role == "user"), None)


def read_ultrafeedback(row: Row) -> list[Pair]:
    """As openbmb/UltraFeedback: every two completions whose overall scores differ make a pair."""
    question, scored = text_at(row, "instruction"), []
    for number, completion in enumerate(take(row, "completions", list, "list"), 1):
        score = completion.get("overall_score") if isinstance(completion, dict) else None
        if isinstance(score, bool) or not isinstance(score, int | float) or not isinstance(completion.get("response"), str):
            raise ValueError(f"completion {number} has no response with an overall_score")
        scored.append((score, completion))
    pairs = []
    for pair in combinations(scored, 2):
        (high, better), (low, worse) = sorted(pair, key=lambda one: -one[0])
        if high > low:
            beside = {key: without(one, "response", "overall_score") for key, one in (("chosen", better), ("rejected", worse))}
            extra = with_extra(
                {"score_chosen": high, "score_rejected": low, "ultrafeedback": beside}, without(row, "instruction", "completions")
            )
            answers = (Turn("assistant", better["response"]),), (Turn("assistant", worse["response"]),)
            pairs.append(Pair((Turn("user", question),), *answers, extra))
    if not pairs:
        raise ValueError("no two completions with different overall scores")
    return pairs


FORMATS = (
    Format(
        "preference", "preference pairs",
        lambda row: "chosen" in row and "rejected" in row and not has(row, prompt=str, chosen=list), read_preference, write_preference,
    ),
    Format(
        "ultrafeedback_pairs", "preference pairs",
        lambda row: has(row, prompt=str, chosen=list, rejected=list), read_ultrafeedback_pairs, write_ultrafeedback_pairs,
    ),
    Format("ultrafeedback", "preference pairs", lambda row: has(row, instruction=str, completions=list), read_ultrafeedback, None),
)  # fmt: skip
