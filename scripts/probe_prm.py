"""Does a PRM read the steps? Right steps of held-out solutions against the same steps with one number, sign or name changed.

    python scripts/probe_prm.py RUN [--labels STAGE] [--prm STAGE] [--count 600]

Prints, and as its last line as JSON, the share of pairs in which the right step has the higher score; 0.5 is chance. Changes that happen
to be right as well (2+2 for 2*2) are counted like the others, so 1.0 is out of reach.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import defaultdict
from pathlib import Path

from reward_models.errors import UserError
from reward_models.process import ProcessRewardModel
from reward_models.records import SteppedSolution, is_held_out, read_records
from rlef.evolution.labels import perturbed
from rlef.models import model_folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--labels", default="label", help="the stage with the judged solutions")
    parser.add_argument("--prm", default="prm", help="the stage with the model")
    parser.add_argument("--count", type=int, default=600, help="solutions")
    options = parser.parse_args()
    try:
        prm = ProcessRewardModel.load(model_folder(options.run / options.prm))
        rows = [row for row in read_records(options.run / options.labels / "steps.jsonl", SteppedSolution) if is_held_out(row)]
    except UserError as error:
        parser.error(f"{error}; --prm and --labels name the run's stages")
    rng = random.Random(0)
    wanted: list[tuple[str, SteppedSolution, int, tuple[str, ...]]] = []  # kind of change, solution, its step, steps with the change
    for row in [row for row in rows if set(row.labels) == {1.0}][: options.count]:
        place = rng.randrange(max(1, len(row.steps) - 1))  # not the answer line
        changed = perturbed(row.steps[place], " ".join((row.question, *row.steps[:place])), rng)
        if changed is not None:
            wanted.append((kind_of(row.steps[place], changed), row, place, (*row.steps[:place], changed)))
    whole = prm.score([row.question for _, row, _, _ in wanted], [row.steps for _, row, _, _ in wanted])
    other = prm.score([row.question for _, row, _, _ in wanted], [steps for _, _, _, steps in wanted])
    order: dict[str, list[float]] = defaultdict(list)
    for (kind, _, place, _), right, wrong in zip(wanted, whole, other, strict=True):
        if not right.truncated and not wrong.truncated:
            high, low = right.scores[place], wrong.scores[place]
            order[kind].append(float(high > low) + 0.5 * (high == low))
    result = {kind: {"pairs": len(found), "in_order": sum(found) / len(found)} for kind, found in sorted(order.items())}
    for kind, found in result.items():
        print(f"{kind:8} {found['in_order']:.3f} of {found['pairs']} pairs in order")
    print(json.dumps(result))
    return 0


def kind_of(step: str, changed: str) -> str:
    """Which part of the step differs: a number after "=" is the result."""
    pattern = r"\d+|[A-Za-z]+|[-+*/=]"
    before, after = re.findall(pattern, step), re.findall(pattern, changed)
    place = next(index for index, (a, b) in enumerate(zip(before, after, strict=True)) if a != b)
    if before[place].isdecimal():
        return "result" if "=" in before[:place] else "operand"
    return "name" if before[place].isalpha() else "sign"


if __name__ == "__main__":
    raise SystemExit(main())
