"""The one grader: finds the final answer in a text, brings it to a canonical form, and says whether two answers are the same.

Numbers are compared as exact rationals; 17.6 is not 18. Everything else goes to math-verify in a worker process that is killed when it
takes too long. Text is cut off before any work, so hostile answers cost nothing.
"""

from __future__ import annotations

import atexit
import functools
import json
import re
import subprocess
import sys
import threading
from fractions import Fraction

LONGEST = 200  # characters of an answer; longer ones are no answers
TIME_LIMIT_S = 5.0
MEMORY_LIMIT = 2 * 1024**3

_SAID = re.compile(r"(?:the )?(?:final )?answer is:?\s*([^\n]{1,200})", re.IGNORECASE)
_UNITS = re.compile(r"^([-+]?[\d.,/ ]*\d)\s*(?:[a-zA-Z]{2,20}(?: [a-zA-Z]{2,20}){0,2})\.?$")
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
    found = found.strip().rstrip(".").strip()
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
    """The exact value of "1,000", "$18", "3/4", "2 1/2", "-0.75", "50%" (one half), "1e3", "18 dollars"; None for anything else.

    A percentage equals its fraction: "50%" is 1/2. "50 percent" said without a sign is the number 50, as people answer "what percent".
    """
    if len(answer) > LONGEST:
        return None
    text = answer.strip().strip("$€£ ").replace("\\$", "").replace("\\%", "%").replace("−", "-")
    text = re.sub(r"^-\s*\$", "-", text)
    text = re.sub(r"\\d?frac\{(\d{1,60})\}\{(\d{1,60})\}", r"\1/\2", text)
    if power := _POWER.match(text):
        return Fraction(power[1]) * Fraction(10) ** int(power[2])
    if unit := _UNITS.match(text):
        text = unit[1].strip()
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
    value = value / 100 if percent else value
    return -value if sign == "-" else value


def canonical(answer: str) -> str:
    """Equal numbers have equal canonical texts; other answers lose spaces at the ends and runs of spaces inside."""
    number = as_number(answer)
    return str(number) if number is not None else " ".join(answer.split())[:LONGEST]


def same_answer(first: str, second: str) -> bool:
    """Whether two answers agree: exactly for numbers, by math-verify for the rest."""
    if max(len(first), len(second)) > LONGEST:  # before canonical, which would cut two long answers to one
        return False
    a, b = as_number(first), as_number(second)
    if a is not None and b is not None:
        return a == b
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
            process = self._process
            if process is None or process.poll() is not None:
                process = self._process = subprocess.Popen(
                    [sys.executable, "-m", "rlef.answers"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
                atexit.register(process.kill)
                # Importing sympy takes seconds on a slow disk: that is not the answer's fault.
                limit = TIME_LIMIT_S + 30
            else:
                limit = TIME_LIMIT_S
            assert process.stdin is not None and process.stdout is not None
            timer = threading.Timer(limit, process.kill)
            timer.start()
            try:
                process.stdin.write(json.dumps([first, second]) + "\n")
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
            return reply == "true"


_worker = _Worker()


def _serve() -> None:
    """Worker's side: one JSON pair a line in, true or false out."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    from math_verify import parse, verify

    for line in sys.stdin:
        first, second = json.loads(line)
        try:
            verdict = bool(verify(parse(f"${first}$", parsing_timeout=0), parse(f"${second}$", parsing_timeout=0), timeout_seconds=0))
        except Exception:  # whatever hostile text provokes, it is not the same answer
            verdict = False
        print("true" if verdict else "false", flush=True)


if __name__ == "__main__":
    _serve()
