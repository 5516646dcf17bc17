"""Repeats and leaks: exact and near duplicates among the evolved, and overlap with every held-out problem by text or program shape."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from datasketch import MinHash, MinHashLSH

from rlef.records import Problem

NGRAM = 5  # words; a held-out problem is known by the share of its 5-grams, which words added before or after it leave as it is
NEEDED = 13  # words under the mask of names: of a shorter text ("What is the capital of France?") the mask takes what it asks
RENUMBERED = "held_out_renumbered"
_WORD = re.compile(r"(?:[^\W_]|\.)+")  # letters of every script: without them all texts in Chinese would be one
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+")
_POSSESSIVE = re.compile(r"['’]s\b")  # else James' and Mary's would differ under the mask
_PRONOUNS = frozenset(("he", "she", "him", "her", "his", "hers", "himself", "herself"))  # they change with a name
_NUMBERS = frozenset((
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen",
    "sixteen", "seventeen", "eighteen", "nineteen", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
    "hundred", "thousand", "million", "half", "halves", "third", "thirds", "quarter", "quarters",
    "once", "twice", "thrice", "double", "triple", "dozen",
))  # fmt: skip


def words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def ngrams(tokens: Sequence[str], size: int) -> set[str]:
    return {" ".join(tokens[start : start + size]) for start in range(max(1, len(tokens) - size + 1))}


def plain(text: str) -> list[str]:
    """Its words and numbers in lower case."""
    return [token.lower() for token in _TOKEN.findall(_POSSESSIVE.sub("", text))]


def without_names(text: str) -> list[str]:
    """The same with one placeholder for each run of capitalised words and pronouns. Words that begin a sentence are masked too:
    whether "Grace" or "Will" is a name there no list of words can tell, and both texts lose the same."""
    tokens = _TOKEN.findall(_POSSESSIVE.sub("", text))
    return _merged(tokens, [token[0].isupper() or token in _PRONOUNS for token in tokens], "@")


def without_numbers(tokens: Sequence[str]) -> list[str]:
    """The same with one placeholder for each run of numbers, in figures or words."""
    return _merged(tokens, [token[0].isdigit() or token in _NUMBERS for token in tokens], "#")


def _merged(tokens: Sequence[str], masked: Sequence[bool], placeholder: str) -> list[str]:
    out: list[str] = []
    for token, hidden in zip(tokens, masked, strict=True):
        if not hidden:
            out.append(token.lower())
        elif not out or out[-1] != placeholder:
            out.append(placeholder)
    return out


class Duplicates:
    """Remembers texts; numbers and names count, so the same story with other numbers is another problem."""

    def __init__(self, threshold: float, permutations: int = 64) -> None:
        self._ids: dict[str, str] = {}  # text -> id of its problem
        self._permutations = permutations
        self._near = MinHashLSH(threshold=threshold, num_perm=permutations) if threshold < 1 else None

    def check_and_add(self, problem: Problem) -> tuple[str, str] | None:
        """exact_duplicate or near_duplicate, and the id of the earlier problem; None for a new text, which is remembered."""
        tokens = words(problem.question)
        key = " ".join(tokens)
        if key in self._ids:
            return "exact_duplicate", self._ids[key]
        if self._near is not None:
            sketch = MinHash(num_perm=self._permutations, seed=1)
            sketch.update_batch([gram.encode() for gram in ngrams(tokens, 3)])
            if found := self._near.query(sketch):
                return "near_duplicate", self._ids[min(str(one) for one in found)]
            self._near.insert(key, sketch)
        self._ids[key] = problem.id
        return None


@dataclass(frozen=True)
class Match:
    """A held-out problem that another one repeats."""

    rule: str
    test: Problem
    ratio: float  # share of the test's 5-grams, cosine, or 1 for an equal shape


class _Shares:
    """Texts by their 5-grams."""

    def __init__(self) -> None:
        self._owners: dict[str, list[int]] = {}
        self._sizes: dict[int, int] = {}

    def add(self, index: int, tokens: Sequence[str]) -> None:
        grams = ngrams(tokens, NGRAM)
        self._sizes[index] = len(grams)
        for gram in grams:
            self._owners.setdefault(gram, []).append(index)

    def best(self, tokens: Sequence[str]) -> tuple[int, float]:
        """The text with the largest share of its 5-grams in `tokens`, and that share."""
        hits: dict[int, int] = {}
        for gram in ngrams(tokens, NGRAM):
            for index in self._owners.get(gram, ()):
                hits[index] = hits.get(index, 0) + 1
        return max(((index, count / self._sizes[index]) for index, count in hits.items()), key=lambda pair: pair[1], default=(0, 0.0))


class HeldOut:
    """The problems that nothing may train on."""

    def __init__(self, problems: Iterable[Problem], *, run: int = 13, share: float = 0.7) -> None:
        self._tests = list(problems)
        self._run, self._share = run, share
        self._shapes: dict[str, Problem] = {}
        self._runs: dict[str, Problem] = {}
        self._plain, self._names, self._numbers = _Shares(), _Shares(), _Shares()
        for index, problem in enumerate(self._tests):
            if problem.truth is not None:
                self._shapes.setdefault(problem.truth.shape, problem)
            tokens, named = plain(problem.question), without_names(problem.question)
            self._plain.add(index, tokens)
            if len(tokens) >= run:
                self._runs |= dict.fromkeys(ngrams(tokens, run), problem)
            if len(named) >= NEEDED:
                self._names.add(index, named)
                self._numbers.add(index, without_numbers(named))

    def overlap(self, problem: Problem) -> Match | None:
        """held_out_shape; held_out_text (so many words in a row, or most 5-grams of a held-out problem); held_out_renamed (the same under
        the mask of names); held_out_renumbered (of names and numbers); or None. A known shape settles what names and numbers hide."""
        if problem.truth is not None and problem.truth.shape in self._shapes:
            return Match("held_out_shape", self._shapes[problem.truth.shape], 1.0)
        tokens = plain(problem.question)
        index, ratio = self._plain.best(tokens)
        if ratio >= self._share:
            return Match("held_out_text", self._tests[index], ratio)
        if common := self._runs.keys() & ngrams(tokens, self._run):
            copied = self._runs[min(common)]
            grams = ngrams(plain(copied.question), NGRAM)
            return Match("held_out_text", copied, len(grams & ngrams(tokens, NGRAM)) / len(grams))
        if problem.truth is not None:
            return None
        named = without_names(problem.question)
        for rule, shares, masked in (("held_out_renamed", self._names, named), (RENUMBERED, self._numbers, without_numbers(named))):
            index, ratio = shares.best(masked)
            if ratio >= self._share:
                return Match(rule, self._tests[index], ratio)
        return None
