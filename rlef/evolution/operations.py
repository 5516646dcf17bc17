"""Which operation each parent gets: a line (up, down, breadth) by weight, then one of the teacher's operations of that line."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from rlef.errors import UserError


def choose_operations(count: int, operations: Sequence[str], weights: Mapping[str, float], *, seed: str) -> list[str]:
    """`count` operations. Raises UserError where a weighted line has no operation or all weights are 0."""
    lines = {line: [name for name in operations if name.split(".")[0] == line] for line in weights}
    empty = [line for line, names in lines.items() if not names and weights[line] > 0]
    if empty or not any(weights.values()):
        known = sorted({name.split(".")[0] for name in operations})
        raise UserError(
            f"evolve.weights: {', '.join(empty) or 'all are 0'}",
            fix=f"the teacher's lines are {', '.join(known)}; give one a positive weight",
        )
    rng = random.Random(seed)
    drawn = rng.choices(list(weights), weights=list(weights.values()), k=count)
    return [rng.choice(lines[line]) for line in drawn]
