"""How well Monte Carlo and bisection find the first wrong step, and at what cost, where the truth is known.

    python scripts/label_agreement.py [POLICY] [--count 60] [--depths 1 5] [--trials 2000] [--threshold 0 ..] [--luck 0]

Two parts, each against the exact labels of symbolic problems or scripts. `policy` (only where a model folder is given): its own solutions of
held-out problems, with its own completions; cost in tokens. `simulated`: no model; a solution of K steps with its first error anywhere
(half of them without any), and a completer that goes on rightly with probability p from a right prefix and never from a wrong one (with
probability `luck`, where given: a wrong prefix may yet end in the answer, which bisection assumes away), one token a step. N completions a
prefix; the smaller N use the first of the largest, and both methods the same ones. A step is right where more than the share `t` of its
completions is. Prints a table of each part, and as its last line all rows as JSON.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reward_models.labels import hard_labels
from rlef.config import ModelSection, RandomInit
from rlef.evolution.labels import bisection, monte_carlo
from rlef.models import decode, load_policy, load_tokenizer, model_folder, pick_device, prefix_ids, prompt_ids, stop_ids
from rlef.prompts import split_answer
from rlef.rollout.base import SampleRequest, SamplingParams
from rlef.rollout.hf import HFGenerator
from rlef.symbolic import make_problems
from rlef.symbolic.teacher import judge

SIZES = (2, 4, 8, 16)  # N
Answered = tuple[str | None, int]  # a completion's answer and its tokens


@dataclass(frozen=True)
class Case:
    """A solution of K steps. `error`: index of its first wrong step, K where there is none. `completed`: K - 1 prefixes x max(SIZES)."""

    steps: Sequence[str]
    gold: str
    final: str | None
    error: int
    completed: Sequence[Sequence[Answered]]


def first_error(labels: Sequence[float | None]) -> int:
    """Index of the first 0, or the number of labels."""
    return next((place for place, label in enumerate(labels) if label == 0.0), len(labels))


def measured(case: Case, size: int, threshold: float) -> dict[str, float]:
    """Whether each method finds the first error with `size` completions a prefix (0 or 1), and the tokens that it generates."""
    spent = 0

    def complete(prefixes: Sequence[Sequence[str]]) -> list[list[str | None]]:
        nonlocal spent
        rows = [case.completed[len(prefix) - 1][:size] for prefix in prefixes]
        spent += sum(tokens for row in rows for _, tokens in row)
        return [[answer for answer, _ in row] for row in rows]

    found: dict[str, float] = {}
    methods: dict[str, Callable[[], list[float | None]]] = {
        "monte_carlo": lambda: hard_labels(monte_carlo(case.steps, case.gold, complete, case.final), threshold),
        "bisection": lambda: bisection(case.steps, case.gold, complete, case.final, threshold=threshold)[0],
    }
    for name, method in methods.items():
        spent = 0
        found[name] = float(first_error(method()) == case.error)
        found[f"{name}_tokens"] = spent
    return found


def table(part: str, cases: Sequence[Case], threshold: float, **fixed: float) -> list[dict]:
    """A row for each K (and all, 0) and N, over all solutions and over those with a wrong final answer: right ones cost bisection nothing."""
    groups: dict[tuple[int, str], list[Case]] = defaultdict(list)
    for case in cases:
        for steps in (len(case.steps), 0):
            groups[steps, "all"].append(case)
            if case.final != case.gold:
                groups[steps, "wrong answer"].append(case)
    if len({len(case.steps) for case in cases}) == 1:
        groups = {key: group for key, group in groups.items() if key[0]}
    rows = []
    for (steps, which), group in sorted(groups.items(), key=lambda item: item[0]):
        for size in SIZES:
            results = [measured(case, size, threshold) for case in group]
            means = {key: sum(result[key] for result in results) / len(results) for key in results[0]}
            share = means["bisection_tokens"] / means["monte_carlo_tokens"] if means["monte_carlo_tokens"] else None
            rows.append(
                {
                    "part": part,
                    "t": threshold,
                    **fixed,
                    "K": steps,
                    "solutions": which,
                    "n": len(group),
                    "N": size,
                    **means,
                    "tokens_share": share,
                }
            )
    return rows


def simulated(steps: int, p: float, count: int, rng: random.Random, luck: float = 0.0) -> Iterator[Case]:
    """Every second solution right, the first errors of the others evenly over the steps."""
    for number in range(count):
        error = number // 2 % steps if number % 2 else steps
        yield Case(
            steps=[str(place) for place in range(steps)],
            gold="1",
            final="1" if error == steps else "0",
            error=error,
            completed=[
                [("1" if rng.random() < (p if length <= error else luck) else "0", steps - length) for _ in range(max(SIZES))]
                for length in range(1, steps)
            ],
        )


def of_policy(folder: Path, count: int, depths: tuple[int, int], max_tokens: int, seed: int) -> Iterator[Case]:
    """One solution of each of `count` held-out problems, at temperature 1, and all completions of it. Solutions of one step are left out."""
    model = ModelSection(random=RandomInit())
    tokenizer = load_tokenizer(model_folder(folder))
    policy = load_policy(model_folder(folder), device=pick_device("auto"))
    generator, stops = HFGenerator(policy, int(tokenizer.pad_token_id)), stop_ids(tokenizer, policy)
    params = SamplingParams(max_tokens, 1.0, stops)
    problems = make_problems(count, depths=depths, seed=seed, split="held_out")
    prompts = [tuple(prompt_ids(tokenizer, problem.question, model)) for problem in problems]
    solved = generator.generate([SampleRequest(prompt, (seed, 0, place)) for place, prompt in enumerate(prompts)], params)
    for place, (problem, prompt, solution) in enumerate(zip(problems, prompts, solved, strict=True)):
        steps, final = split_answer(decode(tokenizer, solution.tokens, stops), model)
        if len(steps) < 2:
            continue
        starts = [prefix_ids(tokenizer, prompt, steps[:length], model) for length in range(1, len(steps))]
        asked = [SampleRequest(ids, (seed, 1, place, length, sample)) for length, ids in enumerate(starts) for sample in range(max(SIZES))]
        answers = [
            (split_answer(decode(tokenizer, one.tokens, stops), model)[1], len(one.tokens)) for one in generator.generate(asked, params)
        ]
        yield Case(
            steps=steps,
            gold=str(problem.answer),
            final=final,
            error=first_error([float(right) for right in judge(problem, steps)]),
            completed=[answers[start : start + max(SIZES)] for start in range(0, len(answers), max(SIZES))],
        )


def show(title: str, rows: Sequence[dict]) -> None:
    print(f"\n{title}")
    print(
        f"{'t':>4} {'p':>4} {'K':>3} {'solutions':12} {'n':>5} {'N':>3}  {'Monte Carlo':>11} {'bisection':>9}  {'tokens':>8} {'tokens':>8} {'share':>6}"
    )
    for row in rows:
        share = "" if row["tokens_share"] is None else f"{row['tokens_share']:.0%}"
        print(
            f"{row['t']:4} {row.get('p', ''):>4} {row['K'] or 'all':>3} {row['solutions']:12} {row['n']:5} {row['N']:3}  {row['monte_carlo']:11.1%} "
            f"{row['bisection']:9.1%}  {row['monte_carlo_tokens']:8.1f} {row['bisection_tokens']:8.1f} {share:>6}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path, nargs="?", help="a stage's folder, or its model; without one, only the simulation")
    parser.add_argument("--count", type=int, default=60, help="problems of the policy")
    parser.add_argument("--depths", type=int, nargs=2, default=(1, 5), help="fewest and most steps of a problem")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--trials", type=int, default=2000, help="simulated solutions for each p and K")
    parser.add_argument("--threshold", type=float, nargs="+", default=[0.0], help="shares t above which a step is right")
    parser.add_argument("--luck", type=float, default=0.0, help="simulated: chance of the answer from a wrong prefix")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = []
    if options.policy is not None:
        cases = list(of_policy(options.policy, options.count, tuple(options.depths), options.max_tokens, options.seed))
        rows += [row for threshold in options.threshold for row in table("policy", cases, threshold)]
        show("POLICY: a model's own solutions and completions; first error found, tokens a solution", rows)
    imagined = []
    for p in (0.2, 0.5, 0.8):
        for steps in (4, 8, 16):
            rng = random.Random(f"{options.seed}/{p}/{steps}")
            cases = list(simulated(steps, p, options.trials, rng, options.luck))
            imagined += [row for threshold in options.threshold for row in table("simulated", cases, threshold, p=p)]
    show(
        f"SIMULATED: no model, a completer right with probability p from right prefixes, {options.luck} from wrong ones; a token is a step",
        imagined,
    )
    print(json.dumps(rows + imagined))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
