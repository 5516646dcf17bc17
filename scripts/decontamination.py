"""Does decontamination find what it must, and nothing else? Test problems planted in four disguises, and a training set that should pass.

    python scripts/decontamination.py TRAIN.jsonl TEST.jsonl [--count 200] [--seed 0]

Prints a table of how many each rule took, and as its last line the same as JSON with the seconds it took.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence

from rlef.evolution.decontamination import HeldOut
from rlef.records import Problem, problem_id
from rlef.sources import read_problems

RULES = ("held_out_text", "held_out_renamed", "held_out_renumbered")
NAMES = (
    "Priya", "Omar", "Yuki", "Lars", "Chidi", "Ingrid", "Mateo", "Noor", "Svetlana", "Tariq", "Aroha", "Bogdan", "Esperanza", "Kwame", "Linnea", "Rajesh",
)  # fmt: skip
# Capital letters that begin no name, where they stand inside a sentence.
NO_NAMES = frozenset((
    "I", "A", "Mr", "Mrs", "Ms", "Dr", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "AM", "PM",
))  # fmt: skip


def renamed(text: str, rng: random.Random, names: Sequence[str]) -> str:
    """Each of `names` replaced by another, wherever it stands."""
    swap = dict(zip(names, rng.sample(NAMES, len(names)), strict=True))
    return re.sub(r"\b[A-Z][a-z]+\b", lambda word: swap.get(word[0], word[0]), text)


def names_of(text: str) -> list[str]:
    """Capitalised words that stand at least once inside a sentence."""
    inside = re.findall(r"(?<![.!?:\"”])(?<![.!?][\"”])\s+([A-Z][a-z]+)\b", text)
    return sorted(set(inside) - NO_NAMES)[: len(NAMES)]


def renumbered(text: str, rng: random.Random) -> str:
    return re.sub(r"\d+", lambda number: str(int(number[0]) + rng.randint(1, 9)), text)


def surrounded(text: str, rng: random.Random, filler: Sequence[str]) -> str:
    """5 to 30 words before and after."""
    before, after = (" ".join(rng.choices(filler, k=rng.randint(5, 30))) for _ in range(2))
    return f"{before} {text} {after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--count", type=int, default=200, help="planted problems of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    train, tests = [read_problems(file)[0] for file in (options.train, options.test)]
    filler = [word for problem in train[:200] for word in problem.question.split()]
    ways: dict[str, tuple[list[Problem], Callable[[str], str]]] = {
        "verbatim": (tests, lambda text: text),
        "5-30 words added": (tests, lambda text: surrounded(text, rng, filler)),
        "other names": ([one for one in tests if names_of(one.question)], lambda text: renamed(text, rng, names_of(text))),
        "other numbers": ([one for one in tests if re.search(r"\d", one.question)], lambda text: renumbered(text, rng)),
        "other names and numbers": (
            [one for one in tests if names_of(one.question) and re.search(r"\d", one.question)],
            lambda text: renumbered(renamed(text, rng, names_of(text)), rng),
        ),
    }
    held_out = HeldOut(tests)
    result: dict[str, dict[str, float]] = {}
    for way, (fitting, change) in ways.items():
        planted = [change(one.question) for one in rng.sample(fitting, min(options.count, len(fitting)))]
        result[way] = measured(held_out, planted)
    result["training set"] = measured(held_out, [one.question for one in train])
    print(f"{'':24} {'texts':>6} " + " ".join(f"{rule:>20}" for rule in RULES) + f" {'CPU s':>6}")
    for way, row in result.items():
        print(f"{way:24} {row['texts']:6} " + " ".join(f"{row[rule]:20.2%}" for rule in RULES) + f" {row['cpu_s']:6.1f}")
    print(json.dumps(result))
    return 0


def measured(held_out: HeldOut, texts: Sequence[str]) -> dict[str, float]:
    """The share of the texts that each rule takes."""
    start = time.process_time()
    matches = [held_out.overlap(Problem(id=problem_id(text), question=text)) for text in texts]
    rules = Counter(match.rule for match in matches if match is not None)
    return {"texts": len(texts), "cpu_s": time.process_time() - start} | {rule: rules[rule] / len(texts) for rule in RULES}


if __name__ == "__main__":
    raise SystemExit(main())
