"""What `rlef evolve` and `rlef label` show at their end, a table of what was made, kept and set aside, and one example of each; and the
table of `rlef plan`."""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from reward_models.records import RankedList, SteppedSolution, read_records
from reward_models.terminal import inert
from rlef.planning.memory import GB, PARTS
from rlef.planning.needs import Machines
from rlef.planning.plan import Setting, StagePlan, together
from rlef.records import Eliminated, Problem, read_jsonl

WIDTH = 100
DUPLICATES = ("exact_duplicate", "near_duplicate")
LEAK = "held_out"  # how the rules of decontamination begin
Row = tuple[str, Any]


def evolve_table(result: Mapping[str, Any], folder: Path, parents: Sequence[Path]) -> str:
    """`result`: the stage's; `parents`: the folders of what it evolved, seeds and an earlier pool."""
    rules: dict[str, int] = result["eliminated"]
    duplicates = {rule: count for rule, count in rules.items() if rule in DUPLICATES}
    leaks = {rule: count for rule, count in rules.items() if rule.startswith(LEAK)}
    failed = {rule: count for rule, count in rules.items() if rule not in duplicates and rule not in leaks}
    rows: list[Row] = [("made", result["made"]), ("kept", result["kept"])]
    for name, group in (("eliminated", failed), ("duplicates", duplicates), ("contaminated", leaks)):
        rows.append((name, sum(group.values())))
        rows += [(f"  {rule}", group[rule]) for rule in sorted(group, key=lambda rule: -group[rule])]
    rows.append(("renumbered tests, reported", result["renumbered"]))
    for number, found in result.get("rounds", {}).items():  # by feedback alone
        rows += [(f"round {number}: {name.replace('_', ' ')}", value) for name, value in found.items()]
    return inert("\n".join([*_aligned([*rows, *_teacher(result)]), *_evolved_examples(folder, parents)]))


def label_table(result: Mapping[str, Any], folder: Path) -> str:
    rows: list[Row] = []
    for name, value in result.items():
        parts = value.items() if name == "ranking" else [(name, value)]
        rows += [(part.replace("_", " "), one) for part, one in parts if isinstance(one, int | float | str)]
    return inert("\n".join([*_aligned([*rows, *_teacher(result)]), *_label_examples(folder)]))


def plan_table(plans: Sequence[StagePlan], machines: Machines) -> None:
    """Print a row for each stage and DeepSpeed file, in GB of one GPU at the stage's largest moment, then the fastest settings."""
    title = f"GB of each of {machines.gpus} GPUs of {machines.memory / GB:.0f} GB; seconds are estimates for H100s"
    shown = Table(title=title, title_justify="left")
    heads = ("weights", "gradients", "optimiser", "buffers", "frozen", "activations", "if checkpointed", "logits", "KV", "vLLM", "most")
    for head in ("stage", "launch.deepspeed", "moment"):
        shown.add_column(head)
    for head in (*heads, "host", "~s/step"):
        shown.add_column(head, justify="right")
    shown.add_column("fits")
    for one in plans:
        for setting in one.table:
            peak = setting.need.peak
            parts = [peak.parts.get(part, 0.0) for part in PARTS]
            parts.insert(PARTS.index("activations") + 1, checkpointed_activations(setting))
            mine = one.now is not None and setting.file == one.now.file
            file = Path(setting.file).stem if setting.file else "none"
            cells = [_gb(value) for value in (*parts, peak.total, setting.need.host)]
            time = f"{setting.seconds:.1f}" if setting.seconds is not None else ""
            fits = "yes" if peak.total <= machines.memory else "no"
            shown.add_row(one.name, file + (" *" if mine else ""), peak.name, *cells, time, fits, style="bold" if mine else None)
        shown.add_section()
    Console(width=190 if not sys.stdout.isatty() else None).print(shown)
    print("* as the config is set. A step of ppo and grpo is an iteration; host: GB of the machine's own memory for each GPU")
    for one in plans:
        if not one.fits:
            print(f"{one.name} does not fit as it is set; what does: {one.advice}")
    if (words := together(plans)) is None:
        print("no one DeepSpeed file fits all stages; it may differ from stage to stage: rlef STAGE CONFIG launch.deepspeed=FILE")
    elif words:
        print(f"all together, fastest: {words}")
    else:
        print("all fits as it is set, and nothing that fits is faster")


def checkpointed_activations(setting: Setting) -> float:
    """Bytes of activations if the first net that is trained recomputed them; 0 where none is trained."""
    need = setting.need
    return need.nets[0].activations(need.tokens, checkpointing=True) if need.nets else 0.0


def _gb(value: float) -> str:
    return "" if value == 0 else f"{value / GB:.2f}" if value < 10 * GB else f"{value / GB:.1f}"


def _teacher(result: Mapping[str, Any]) -> list[Row]:
    """What an endpoint was asked and cost."""
    return [(name.replace("_", " "), value) for name, value in result.get("teacher", {}).items() if value is not None]


def _aligned(rows: Iterable[Row]) -> list[str]:
    shown = [(name, f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in rows]
    names, values = (max(len(row[place]) for row in shown) for place in (0, 1))
    return [f"  {name:{names}}  {value:>{values}}" for name, value in shown]


def _evolved_examples(folder: Path, parents: Sequence[Path]) -> list[str]:
    evolved = read_jsonl(folder / "evolved.jsonl", Problem, may_be_empty=True)
    files = [found for one in parents for name in ("seeds.jsonl", "evolved.jsonl") if (found := one / name).is_file()]
    texts = {row.id: row.question for file in files for row in read_jsonl(file, Problem, may_be_empty=True)}
    texts |= {problem.id: problem.question for problem in evolved}
    kept = next((one for one in evolved if one.lineage and one.lineage.parent in texts), None)
    lines = []
    if kept is not None and kept.lineage is not None:
        lines += [f"kept, {kept.lineage.operation}, round {kept.lineage.round}"]
        lines += [*_text("from", texts[kept.lineage.parent]), *_text("to", kept.question)]
    aside = read_jsonl(folder / "eliminated.jsonl", Eliminated, may_be_empty=True)
    if aside:
        commonest = Counter(row.rule for row in aside).most_common(1)[0][0]
        dropped = next(row for row in aside if row.rule == commonest)
        lines += [f"set aside, {dropped.rule}{f' ({dropped.detail})' if dropped.detail else ''}", *_text("", dropped.problem.question)]
    return lines


def _label_examples(folder: Path) -> list[str]:
    ranked = read_records(folder / "rankings.jsonl", RankedList)[0]
    best, worst = (pick(ranked.items, key=lambda item: item.rank) for pick in (min, max))
    lines = ["ranked", *_text("best", best.text), *_text("worst", worst.text)]
    solutions = read_records(folder / "steps.jsonl", SteppedSolution)
    # One with a wrong step says more than one without.
    judged = next((one for one in solutions if any(label is not None and label < 0.5 for label in one.labels)), solutions[0])
    lines += [f"judged by {judged.labeller}", *_text("", judged.question)]
    for step, label in zip(judged.steps, judged.labels, strict=True):
        lines += _text("   ?" if label is None else f"{label:.2f}", step)
    return lines


def _text(name: str, text: str) -> list[str]:
    """A text of any length in at most four lines."""
    indent = " " * 8
    lines = textwrap.wrap(
        " ".join(text.split()), WIDTH, initial_indent=f"  {name:6}", subsequent_indent=indent, max_lines=4, placeholder=" ..."
    )
    return lines or [indent]
