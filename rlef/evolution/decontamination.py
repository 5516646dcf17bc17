"""Repeats and leaks: exact and near duplicates among the evolved, and overlap with every held-out problem by text or program shape."""

from __future__ import annotations

import re
from collections.abc import Iterable

from datasketch import MinHash, MinHashLSH

from rlef.records import Problem

NGRAM = 13  # words; the usual test of contamination (GPT-3, arXiv 2005.14165, appendix C)
CONTAINMENT = 0.8  # share of a short held-out text's 5-grams that marks a leak
_WORD = re.compile(r"(?:[^\W_]|\.)+")  # letters of every script: without them all texts in Chinese would be one


def words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def ngrams(text: str, size: int) -> set[str]:
    tokens = words(text)
    return {" ".join(tokens[start : start + size]) for start in range(max(1, len(tokens) - size + 1))}


class Duplicates:
    """Remembers texts; numbers and names count, so the same story with other numbers is another problem."""

    def __init__(self, threshold: float, permutations: int = 64) -> None:
        self._exact: set[str] = set()
        self._permutations = permutations
        self._near = MinHashLSH(threshold=threshold, num_perm=permutations) if threshold < 1 else None

    def check_and_add(self, text: str) -> str | None:
        """exact_duplicate, near_duplicate, or None for a new text, which is remembered."""
        key = " ".join(words(text))
        if key in self._exact:
            return "exact_duplicate"
        if self._near is not None:
            sketch = MinHash(num_perm=self._permutations, seed=1)
            sketch.update_batch([gram.encode() for gram in ngrams(text, 3)])
            if self._near.query(sketch):
                return "near_duplicate"
            self._near.insert(key, sketch)
        self._exact.add(key)
        return None


class HeldOut:
    """The problems that nothing may train on."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self._texts: set[str] = set()
        self._shapes: set[str] = set()
        self._long: set[str] = set()
        self._short: dict[str, list[int]] = {}
        self._sizes: list[int] = []
        for problem in problems:
            self._texts.add(" ".join(words(problem.question)))
            if problem.truth is not None:
                self._shapes.add(problem.truth.shape)
            self._long |= ngrams(problem.question, NGRAM) if len(words(problem.question)) >= NGRAM else set()
            grams = ngrams(problem.question, 5)
            for gram in grams:
                self._short.setdefault(gram, []).append(len(self._sizes))
            self._sizes.append(len(grams))

    def overlap(self, problem: Problem) -> str | None:
        """held_out_text (13 words in a row, or most 5-grams of a held-out problem), held_out_shape, or None."""
        if problem.truth is not None and problem.truth.shape in self._shapes:
            return "held_out_shape"
        text = " ".join(words(problem.question))
        if text in self._texts or self._long & ngrams(problem.question, NGRAM):
            return "held_out_text"
        hits: dict[int, int] = {}
        for gram in ngrams(problem.question, 5):
            for index in self._short.get(gram, ()):
                hits[index] = hits.get(index, 0) + 1
        return "held_out_text" if any(count >= CONTAINMENT * self._sizes[index] for index, count in hits.items()) else None
