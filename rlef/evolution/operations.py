"""The chat teacher's operations, from YAML, and which of a teacher's operations each parent gets."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from reward_models.nearest import meant
from rlef.errors import UserError
from rlef.load_config import read_yaml
from rlef.records import Domain
from rlef.symbolic import SymbolicTeacher

OWN_FILE = Path(__file__).with_name("operations.yaml")
Line = Literal["up", "down", "breadth"]
# The lines to take in turn where a domain lacks one: code has no easier line, and what is too hard there gets company at best.
NEAREST: dict[Line, tuple[Line, ...]] = {
    "up": ("up", "breadth", "down"),
    "down": ("down", "breadth", "up"),
    "breadth": ("breadth", "up", "down"),
}
Templates = dict[str, dict[str, str]]  # domain -> operation (line.name) -> template with {question}
_OPERATION = re.compile(r"(up|down|breadth)\.\w+")
_FIX = f"one entry is `domain: {{line.name: template}}`, as in {OWN_FILE.name} of the package"


def read_operations(file: str | Path | None = None) -> Templates:
    """The package's operations; those of `file` are added to them or take their place. Raises one UserError with all its mistakes."""
    templates: Templates = read_yaml(OWN_FILE, fix=_FIX)
    added = read_yaml(Path(file), fix=_FIX) if file is not None else {}
    if wrong := _mistakes(added):
        raise UserError(f"{file}: {len(wrong)} mistake(s)\n" + "\n".join(f"  - {line}" for line in wrong), fix=_FIX)
    return {domain: {**templates.get(domain, {}), **added.get(domain, {})} for domain in get_args(Domain)}


def operations_of(teacher: str, file: str | Path | None) -> dict[str, tuple[str, ...]]:
    """The operations that a kind of teacher has in each domain."""
    if teacher == "symbolic":
        return dict(SymbolicTeacher.operations)
    return {domain: tuple(known) for domain, known in read_operations(file).items()}


def _mistakes(added: Mapping[str, Any]) -> list[str]:
    wrong: list[str] = []
    for domain, operations in added.items():
        if domain not in get_args(Domain):
            wrong.append(f"{domain}: no such domain{meant(domain, get_args(Domain))}; known: {', '.join(get_args(Domain))}")
        elif not isinstance(operations, dict):
            wrong.append(f"{domain}: must be a mapping from operations to templates, not {operations!r}")
        else:
            wrong += [f"{domain}.{name}: {found}" for name, template in operations.items() if (found := flaw(str(name), template))]
    return wrong


def flaw(name: str, template: Any) -> str | None:
    """What is wrong with a template, in words."""
    if not _OPERATION.fullmatch(name):
        return "an operation is line.name with a line of up, down, breadth, e.g. up.add_step"
    if not isinstance(template, str):
        return f"a template is text, not {template!r}"
    if "{question}" not in template:
        return "{question} must stand in its template, or the teacher never sees the parent"
    return None if template.replace("{question}", "").strip() else "beside {question} its template asks for nothing"


def write_operations(file: Path, templates: Templates) -> None:
    """A file for `read_operations`, templates of several lines as they read."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.dump(templates, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=140), encoding="utf-8")


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Outside double quotes the other ends of lines that YAML knows would be read as newlines.
    style = '"' if re.search("[\x85\u2028\u2029]", text) else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)


def operations_to_improve(
    operations: Mapping[str, Sequence[str]], wanted: Sequence[str] | None, domains: Collection[str]
) -> list[tuple[str, str]]:
    """(domain, operation) of each of `wanted` (domain.line.name), or of all that make harder (up) in these domains.

    Raises UserError where one is not known.
    """
    known = {f"{domain}.{name}": (domain, name) for domain, names in operations.items() for name in names}
    if wanted is None:
        return [(domain, name) for domain, name in known.values() if domain in domains and name.startswith("up.")]
    for key in wanted:
        if key not in known:
            raise UserError(
                f"operations: the teacher has no operation {key}{meant(key, known)}",
                fix=f"known: {', '.join(sorted(known))}",
            )
    return [known[key] for key in dict.fromkeys(wanted)]


def check_weights(operations: Mapping[str, Sequence[str]], weights: Mapping[str, float]) -> None:
    """Raises UserError where a weight is of no line or operation of any domain."""
    names = {name for known in operations.values() for name in known}
    known = sorted(names | {name.split(".")[0] for name in names})
    for key in weights:
        if key not in known and weights[key] > 0:
            raise UserError(
                f"evolve.weights: the teacher has no operation {key}{meant(key, known)}",
                fix=f"known: {', '.join(known)}",
            )


def in_band(rate: float, band: tuple[float, float]) -> bool:
    """Whether a problem of this pass rate is worth practising: both ends are within."""
    return band[0] <= rate <= band[1]


def line_of(rate: float, band: tuple[float, float]) -> Line:
    """A problem solved more often than the band allows goes up, a hopeless one goes down, the middle breeds in breadth."""
    return "breadth" if in_band(rate, band) else "down" if rate < band[0] else "up"


def choose_operations(
    domains: Sequence[str],
    operations: Mapping[str, Sequence[str]],
    weights: Mapping[str, float],
    *,
    seed: str,
    lines: Sequence[Line | None] | None = None,
) -> list[str]:
    """An operation for each parent, by its domain. A weight is of a line (up, down, breadth), shared evenly by those of its operations
    that have no weight of their own, or of one operation (up.add_step). Weights of what a domain lacks count for nothing there.

    `lines`: the line that a parent must take; where its domain has none of positive weight the next of NEAREST. None: any line.
    Raises UserError where a weight is of nothing known, or a parent's domain has no operation of positive weight.
    """
    check_weights(operations, weights)
    kinds = list(zip(domains, lines or [None] * len(domains), strict=True))
    drawn = {kind: iter(_draw(kinds.count(kind), *kind, operations.get(kind[0], ()), weights, seed)) for kind in set(kinds)}
    return [next(drawn[kind]) for kind in kinds]


def _draw(count: int, domain: str, line: Line | None, names: Sequence[str], weights: Mapping[str, float], seed: str) -> list[str]:
    groups = {key: [name for name in names if name == key or (name not in weights and name.split(".")[0] == key)] for key in weights}
    groups = {key: group for key, group in groups.items() if group and weights[key] > 0}
    if not groups:
        raise UserError(
            f"evolve.weights: no operation of domain {domain} has a positive weight", fix=f"give one to any of {', '.join(names) or 'none'}"
        )
    if line is not None:
        taken = next(one for one in NEAREST[line] if any(key.split(".")[0] == one for key in groups))
        groups = {key: group for key, group in groups.items() if key.split(".")[0] == taken}
        seed = f"{seed}/{line}"
    rng = random.Random(seed)
    return [rng.choice(groups[key]) for key in rng.choices(list(groups), weights=[weights[key] for key in groups], k=count)]
