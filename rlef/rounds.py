"""Whole rounds of the loop as stages: `run.rounds: 2` adds evolve_2, label_2, irm_2, prm_2, ppo_2, which begin with the policy of ppo.

RLEIF evolves, labels and trains again with the policy that it has (WizardMath, arXiv 2308.09583, section 3); WizardLM-2 calls it
progressive learning.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from rlef.config import STAGE_TYPES, RewardSettings, RunSection, SftStage
from rlef.errors import UserError

ONCE = ("problems", "method", "evaluate", "report")
REPEATED = ("evolve", "label", "irm", "prm", "orm")  # by default, and what trains a policy on their rewards
REFERENCES = ("init", "policy", "pool", "labels", "prompts", "irm", "prm", "evolve")  # settings that may name a stage that is repeated
SEED_STEP = 1000  # between the seeds of two rounds: those of neighbouring runs stay apart

Stages = dict[str, dict[str, Any]]


def expand(data: Mapping[str, Any]) -> dict[str, Any]:
    """The plain mapping of a config, with the stages of its further rounds behind those of the first; unchanged where `rounds` is 1.

    Stage NAME of round r is called NAME_r. It has the settings of NAME, but
    - what names a repeated stage (`init: dpo`) names that of its own round;
    - what began with an SFT that comes once, or with a policy from outside, begins with the policy of the round before: the first
      that no other stage of that round begins with. A reward model's own trunk from outside stays;
    - the first evolve stage has the last one of the round before as `pool`, and label judges solutions to this round's problems;
    - `seed` is SEED_STEP greater, round by round.
    What the config holds under NAME_r without a `kind` takes the place of any of these. `evaluate.policies` get the new policies.
    Raises UserError where a name is taken, where `repeat` names what cannot be repeated, and where no repeated stage trains a policy.
    """
    run = _run_section(data)
    if run is None or run.rounds == 1:
        return dict(data)
    patches = {name: data["stages"][name] for name in round_names(data) if name in data["stages"]}
    for name, patch in patches.items():
        if "kind" in patch:
            raise UserError(
                f"stages.{name}: run.rounds makes a stage of this name", fix="call yours otherwise; settings of that stage need no kind"
            )
    first = {name: settings | {"kind": _kind(name, settings)} for name, settings in data["stages"].items() if name not in patches}
    loop = _loop(first, run)
    further = {
        f"{name}_{number}": loop.stage(name, number, patches.get(f"{name}_{number}", {}))
        for number in range(2, run.rounds + 1)
        for name in loop.repeated
    }
    end = 1 + max(list(first).index(name) for name in loop.repeated)
    before, behind = list(first.items())[:end], list(first.items())[end:]
    return dict(data) | {
        "run": {key: value for key, value in data["run"].items() if key not in ("rounds", "repeat")},
        "stages": dict(before) | further | {name: loop.compared(settings, run.rounds) for name, settings in behind},
    }


def round_names(data: Mapping[str, Any]) -> list[str]:
    """The names of all stages of further rounds."""
    run, stages = _run_section(data), data.get("stages")
    if run is None or not isinstance(stages, dict):
        return []
    repeated = run.repeat or [name for name, settings in stages.items() if _by_default(_kind(name, settings))]
    return [f"{name}_{number}" for number in range(2, run.rounds + 1) for name in repeated]


@dataclass(frozen=True)
class _Loop:
    """The stages of the first round, and what of them comes again."""

    first: Stages
    repeated: Sequence[str]
    policy: str  # what the next round begins with
    evolves: Sequence[str]
    seed: int

    def stage(self, name: str, number: int, patch: dict[str, Any]) -> dict[str, Any]:
        """The settings of stage `name` in round `number`, of which `patch` has the last word."""
        settings = copy.deepcopy(self.first[name])
        kind = settings["kind"]

        # 1. What it reads of its own round.
        settings |= {key: f"{settings[key]}_{number}" for key in REFERENCES if settings.get(key) in self.repeated}
        kinds = [self.first[one]["kind"] for one in self.repeated]
        answered_once = "respond" not in kinds and any(one["kind"] == "respond" for one in self.first.values())
        if kind == "label" and self.evolves and answered_once:
            settings.setdefault("prompts", "none")

        # 2. What it begins with: a policy, and problems.
        if kind == "evolve" and name == self.evolves[0]:
            settings["pool"] = _before(self.evolves[-1], number)
        if kind == "label" or (kind == "evolve" and (settings | patch).get("choose") == "feedback"):
            settings["policy"] = self._start(name, "policy", number)
        elif kind in ("irm", "prm", "orm") or _trains_policy(kind):
            settings["init"] = self._start(name, "init", number)

        # 3. Noise of its own.
        seed = self.seed if settings.get("seed") is None else settings["seed"]
        settings["seed"] = seed + SEED_STEP * (number - 1) if isinstance(seed, int) else seed
        return settings | patch

    def compared(self, settings: dict[str, Any], rounds: int) -> dict[str, Any]:
        """An evaluate stage that names policies names those of all rounds."""
        policies = settings.get("policies")
        if settings["kind"] != "evaluate" or not isinstance(policies, list):
            return settings
        return settings | {
            "policies": [*policies, *(f"{one}_{number}" for number in range(2, rounds + 1) for one in policies if one in self.repeated)]
        }

    def _start(self, name: str, key: str, number: int) -> str:
        source = _source(self.first, name, key)
        if source in self.repeated:
            return f"{source}_{number}"
        if key == "init" and source not in (None, *self.first) and not _trains_policy(self.first[name]["kind"]):
            return str(source)
        return _before(self.policy, number)


def _loop(first: Stages, run: RunSection) -> _Loop:
    for name in run.repeat or ():
        if name not in first or first[name]["kind"] in ONCE:
            able = [one for one, settings in first.items() if settings["kind"] not in ONCE]
            raise UserError(f"run.repeat: {name!r} is no stage that can be repeated", fix=f"those that can: {', '.join(able) or 'none'}")
    repeated = [name for name in first if (_by_default(first[name]["kind"]) if run.repeat is None else name in run.repeat)]
    policies = [name for name in repeated if _trains_policy(first[name]["kind"])]
    begun = [_source(first, name, "init") for name in policies]
    ends = [name for name in policies if name not in begun]
    if not ends:
        raise UserError(
            "run.rounds: no repeated stage trains a policy for the next round to begin with", fix="add ppo, or leave rounds out"
        )
    return _Loop(first, repeated, ends[0], [name for name in repeated if first[name]["kind"] == "evolve"], run.seed)


def _source(first: Stages, name: str, key: str) -> Any:
    """What a stage begins with: what it names, else the nearest SFT before it. An SFT that names nothing begins with the model section."""
    if first[name].get(key) is not None or first[name]["kind"] == "sft":
        return first[name].get(key)
    earlier = list(first)[: list(first).index(name)]
    return next((one for one in reversed(earlier) if first[one]["kind"] == "sft"), None)


def _before(name: str, number: int) -> str:
    """A stage in the round before round `number`."""
    return name if number == 2 else f"{name}_{number - 1}"


def _run_section(data: Mapping[str, Any]) -> RunSection | None:
    """None where it is not valid, of which parse_config will tell with all other mistakes."""
    try:
        return RunSection.model_validate(data.get("run") or {})
    except ValidationError:
        return None


def _kind(name: str, settings: Any) -> str:
    return str(settings.get("kind", name)) if isinstance(settings, dict) else str(name)


def _trains_policy(kind: str) -> bool:
    return issubclass(STAGE_TYPES.get(kind, RunSection), SftStage | RewardSettings)


def _by_default(kind: str) -> bool:
    return kind in REPEATED or (kind != "sft" and _trains_policy(kind))
