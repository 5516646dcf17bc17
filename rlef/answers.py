"""The one grader: finds the final answer in a text, brings it to a canonical form, and says whether two answers are the same.

Numbers are compared as exact rationals; 17.6 is not 18. Everything else goes to math-verify in a worker process that is killed when it
takes too long. Text is cut off before any work, so hostile answers cost nothing.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from fractions import Fraction

LONGEST = 200  # characters of an answer; longer ones are no answers
TIME_LIMIT_S = 5.0
START_LIMIT_S = 120.0  # the worker imports sympy: seconds on a slow disk
GRACE_S = 5.0  # beyond TIME_LIMIT_S, for a worker that does not answer at all
MEMORY_LIMIT = 2 * 1024**3

_SAID = re.compile(r"(?:the )?(?:final )?answer is:?\s*([^\n]{1,200})", re.IGNORECASE)
# "dollars per hour", "km/h", "°". A lone letter may be an unknown, and pi is a number: neither is a unit.
_UNITS = re.compile(r"^([-+]?[\d.,/ ]*\d)\s*(?:°|((?!pi\b)[a-zA-Z]{2,20}(?: [a-zA-Z]{2,20}){0,2})?(?:/[a-zA-Z]{1,20})?)\.?$")
_MAGNITUDES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_MINUS = re.compile(r"^[-−–]\s*[$€£]?\s*")
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|\\,|\\!|[\u00a0\u202f ])(?=\d{3}(?!\d|/))")  # as LaTeX and SI set them apart
_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d{1,60})\}\{(\d{1,60})\}")
_ASKS_PERCENT = re.compile(r"\b(?:what|which|how many|find the|as an?|in)\s+(?:\w+\s+){0,2}percent", re.IGNORECASE)
_POWER = re.compile(r"^([-+]?\d{1,60}(?:\.\d{1,60})?)[eE]([-+]?\d{1,2})$")  # two digits: 1e999999999 is no answer
_NUMBER = re.compile(r"^([-+]?)(?:(\d{1,60}) )?(\d{1,60}(?:,\d{3})*|)(\.\d{0,60})?(?:/(\d{1,60}))?(%?)$")


def extract_answer(text: str, marker: str = "####") -> str | None:
    """The final answer of a solution: after the last marker, in the last \\boxed{}, or after "the answer is"; None where there is none."""
    tail = text[-4000:]
    if marker in tail:
        found = tail.rsplit(marker, 1)[1].split("\n", 1)[0]
    elif (boxed := _last_boxed(tail)) is not None:
        found = boxed
    elif said := _SAID.findall(tail):
        found = said[-1]
    else:
        return None
    found = (_last_boxed(found) or found).strip().strip("*").rstrip(".").strip()
    # Chat models go on talking: "18. I hope that helps".
    first = found.split(". ", 1)[0].strip("*")
    found = first if as_number(first) is not None else found
    return found if found and len(found) <= LONGEST else None


def _last_boxed(text: str) -> str | None:
    """What the last \\boxed{...} holds, its braces matched to any depth; None where it is never closed."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for place in range(start, min(len(text), start + LONGEST + 1)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start:place]
    return None


@functools.lru_cache(maxsize=65536)
def as_number(answer: str) -> Fraction | None:
    """The exact value of "1,000", "$18", "3/4", "2 1/2", "-0.75", "50%" (one half), "1e3", "18 dollars", "1.5 million"; else None.

    A percentage equals its fraction: "50%" is 1/2. "50 percent" said without a sign is the number 50, as people answer "what percent".
    """
    if len(answer) > LONGEST:
        return None
    text = answer.strip().strip("$€£ ").replace("\\$", "").replace("\\%", "%").replace(" %", "%")
    text = _MINUS.sub("-", _FRACTION.sub(r" \1/\2", text).strip())
    if power := _POWER.match(text):
        return Fraction(power[1]) * Fraction(10) ** int(power[2])
    text, magnitude = _THOUSANDS.sub("", text), 1
    if unit := _UNITS.match(text):
        text = unit[1].strip()
        for word in (unit[2] or "").lower().split():
            magnitude *= _MAGNITUDES.get(word, 1)
    match = _NUMBER.match(text)
    if not match or not (match[3] or (match[4] or "").strip(".")):
        return None
    sign, whole, integer, decimals, denominator, percent = match.groups()
    if whole and not denominator:
        return None
    value = Fraction((integer.replace(",", "") or "0") + (decimals or "").removesuffix("."))
    if denominator:
        if int(denominator) == 0:
            return None
        value /= int(denominator)
    value += int(whole or 0)
    value = value * magnitude / (100 if percent else 1)
    return -value if sign == "-" else value


def canonical(answer: str, question: str = "") -> str:
    """Equal numbers have equal canonical texts; other answers lose spaces at the ends and runs of spaces inside.

    Where the question asks for a percentage, "25%" and "25" are one answer.
    """
    number = as_number(answer)
    if number is not None and "%" in answer and _ASKS_PERCENT.search(question):
        number *= 100
    return str(number) if number is not None else " ".join(answer.split())[:LONGEST]


def same_answer(first: str, second: str, question: str = "") -> bool:
    """Whether two answers agree: exactly for numbers, by math-verify for the rest. `question`: see canonical."""
    if max(len(first), len(second)) > LONGEST:  # before canonical, which would cut two long answers to one
        return False
    a, b = as_number(first), as_number(second)
    if a is not None and b is not None:
        return a == b or canonical(first, question) == canonical(second, question)
    if canonical(first) == canonical(second):
        return True
    if (a is None) != (b is None) and not any(character in first + second for character in "\\^*+(="):
        return False
    return _worker.verify(first, second)


class _Worker:
    """math-verify in one process of limited memory, killed and started anew when an answer takes too long."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def verify(self, first: str, second: str) -> bool:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "rlef.answers"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
                atexit.register(self._process.kill)
                # Its imports are over when it has answered this: the next answer's time is its own.
                if self._ask(self._process, "1", "1", START_LIMIT_S, START_LIMIT_S) != "true":
                    raise RuntimeError("the math-verify process does not start; check `python -c 'import math_verify'`")
            return self._ask(self._process, first, second, TIME_LIMIT_S, TIME_LIMIT_S + GRACE_S) == "true"

    def _ask(self, process: subprocess.Popen[str], first: str, second: str, limit: float, patience: float) -> str:
        """Its reply within `limit`; "" where it died or, after `patience`, had to be killed."""
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(patience, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps([first, second, limit]) + "\n")
            process.stdin.flush()
            reply = process.stdout.readline().strip()
        except (BrokenPipeError, OSError):
            reply = ""
        finally:
            timer.cancel()
        if not reply:
            # A killed process takes a moment to die: until it has, poll() calls it alive and the next answer would be lost with it.
            process.kill()
            process.wait()
            atexit.unregister(process.kill)
            self._process = None
        return reply


_worker = _Worker()


def _serve() -> None:
    """Worker's side: one JSON row a line in (two answers, seconds), true or false out. A child does the work and dies at its time limit;
    the next one is a fork, and pays for no import."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    _equal("\\frac{1}{2}+x", "x+0.5")  # imports, and the parser's tables
    while True:
        child = os.fork()
        if not child:
            _judge_lines()
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return  # nobody asks any more
        print("false", flush=True)  # for what it died of


def _judge_lines() -> None:
    while line := sys.stdin.readline():
        first, second, limit = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, limit)  # the system ends this process then, whatever it is at
        verdict = _equal(first, second)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print("true" if verdict else "false", flush=True)


def _equal(first: str, second: str) -> bool:
    from math_verify import parse, verify

    try:
        return bool(verify(parse(f"${first}$", parsing_timeout=0), parse(f"${second}$", parsing_timeout=0), timeout_seconds=0))
    except Exception:  # whatever hostile text provokes, it is not the same answer
        return False


if __name__ == "__main__":
    _serve()
