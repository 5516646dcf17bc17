"""WizardLM's four rules for evolutions that failed (arXiv 2304.12244, section 3.3), and one for math. They see texts alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from rlef.prompts import LEAKED_WORDS

STOP_WORDS = frozenset((
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "from", "has", "have", "he", "her", "his", "i", "if", "in",
    "is", "it", "its", "me", "my", "no", "not", "of", "on", "or", "our", "she", "so", "that", "the", "their", "them", "they",
    "this", "to", "was", "we", "were", "what", "which", "who", "will", "with", "you", "your",
))  # fmt: skip
REFUSAL_WORDS = 80  # "sorry" in a shorter text is a refusal
LEAKED_RUN = 6  # words in a row that a child can only have from the prompt that asked for it
_WORD = re.compile(r"(?:[^\W_]|')+")
# A question mark, or a request at the start of a sentence or clause.
_ASKS = re.compile(
    r"[?？]|(?:^|[.!:;,\n]\s{0,9}|\b(?:and|then|please)\s{1,9})"
    r"(?:how (?:many|much|long|far|old|big|tall|fast|often)|what|which|who|whose|when|where|why|find|calculate|compute|determine|evaluate"
    r"|solve|prove|show|simplify|estimate|express|factor|write|give|name|list|state|tell|work out)\b",
    re.IGNORECASE,
)


def eliminated_by(parent: str, child: str, *, judged_same: bool = False, require_question: bool = False, template: str = "") -> str | None:
    """The name of the rule that drops `child`, or None. `judged_same`: a judge found them
    equal in meaning; without one only copies are found. `template`: the prompt that asked for the child.

    no_information_gain, refusal, stop_words, leaked_prompt, no_question.
    """
    words = _words(child)
    if all(word in STOP_WORDS for word in words):
        return "stop_words"
    if "sorry" in words and len(words) < REFUSAL_WORDS:
        return "refusal"
    if any(leak in child.lower() and leak not in parent.lower() for leak in LEAKED_WORDS):
        return "leaked_prompt"
    if template and _runs(words) & (_template_runs(template) - _runs(_words(parent))):
        return "leaked_prompt"
    if words == _words(parent) or judged_same:
        return "no_information_gain"
    if require_question and not _ASKS.search(child):
        return "no_question"
    return None


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _runs(words: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + LEAKED_RUN]) for start in range(len(words) - LEAKED_RUN + 1)}


@cache
def _template_runs(template: str) -> set[tuple[str, ...]]:
    return set().union(*(_runs(_words(part)) for part in template.split("{question}")))
