"""WizardLM's four rules for evolutions that failed (arXiv 2304.12244, section 3.3). They see texts alone, never a problem's truth."""

from __future__ import annotations

import re

from rlef.prompts import LEAKED_WORDS

STOP_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "but",
        "by",
        "for",
        "from",
        "has",
        "have",
        "he",
        "her",
        "his",
        "i",
        "if",
        "in",
        "is",
        "it",
        "its",
        "me",
        "my",
        "no",
        "not",
        "of",
        "on",
        "or",
        "our",
        "she",
        "so",
        "that",
        "the",
        "their",
        "them",
        "they",
        "this",
        "to",
        "was",
        "we",
        "were",
        "what",
        "which",
        "who",
        "will",
        "with",
        "you",
        "your",
    ]
)
REFUSAL_WORDS = 80  # "sorry" in a shorter text is a refusal
_WORD = re.compile(r"(?:[^\W_]|')+")


def eliminated_by(parent: str, child: str, *, judged_same: bool = False) -> str | None:
    """The name of the rule that drops `child`, or None. `judged_same`: a judge found them
    equal in meaning; without one only copies are found.

    no_information_gain, refusal, stop_words, leaked_prompt.
    """
    words = [word.lower() for word in _WORD.findall(child)]
    lowered = child.lower()
    if all(word in STOP_WORDS for word in words):
        return "stop_words"
    if "sorry" in words and len(words) < REFUSAL_WORDS:
        return "refusal"
    if any(leak in lowered and leak not in parent.lower() for leak in LEAKED_WORDS):
        return "leaked_prompt"
    if words == [word.lower() for word in _WORD.findall(parent)] or judged_same:
        return "no_information_gain"
    return None
