"""Stage after stage: what each needs, whether it is done, and one summary at the end."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlef import launch
from rlef.config import Config
from rlef.errors import UserError
from rlef.run_dir import RunDir, digest, outside_digest, write_json

NOT_IN_FINGERPRINT = {"micro_batch_size", "score_batch_size", "rollout_batch_size", "paid", "kind"}
LONG_S = 600.0  # work longer than this is redone only with --yes


@dataclass(frozen=True)
class Kind:
    """How a kind of stage is run. `inputs`: name -> kinds that make it, the first found earlier wins; "?" marks an optional input."""

    function: str  # module:function
    inputs: dict[str, tuple[str, ...]]
    uses_teacher: bool = False
    distributed: bool = False  # started under torchrun when launch.processes > 1


REGISTRY: dict[str, Kind] = {
    "problems": Kind("rlef.stages.problems:run", {}),
    "evolve": Kind("rlef.stages.evolve:run", {"problems": ("problems",)}, uses_teacher=True),
    "respond": Kind("rlef.stages.respond:run", {"prompts": ("evolve",), "problems?": ("problems",)}, uses_teacher=True),
    "sft": Kind(
        "rlef.stages.sft:run",
        {"problems": ("problems",), "responses?": ("respond",), "evolved?": ("evolve",), "init!": ()},
        distributed=True,
    ),
    "label": Kind(
        "rlef.stages.label:run",
        {"policy": ("sft",), "problems": ("problems",), "evolved?": ("evolve",), "prompts?": ("respond",)},
        uses_teacher=True,
    ),
    "irm": Kind("rlef.stages.train_rewards:run_irm", {"labels": ("label",), "init": ("sft",)}, distributed=True),
    "prm": Kind("rlef.stages.train_rewards:run_prm", {"labels": ("label",), "init": ("sft",)}, distributed=True),
    "ppo": Kind(
        "rlef.stages.ppo:run",
        {"init": ("sft",), "prompts": ("respond", "evolve", "problems"), "irm?": ("irm",), "prm": ("prm",)},
        distributed=True,
    ),
    "dpo": Kind(
        "rlef.stages.dpo:run",
        {"init": ("sft",), "prompts": ("respond", "evolve", "problems"), "irm?": ("irm",), "prm": ("prm",)},
        distributed=True,
    ),
    "rft": Kind(
        "rlef.stages.rft:run",
        {"init": ("sft",), "prompts": ("respond", "evolve", "problems"), "irm?": ("irm",), "prm": ("prm",)},
        distributed=True,
    ),
    "evaluate": Kind("rlef.stages.evaluate:run", {"problems": ("problems",), "prm?": ("prm",)}),
    "report": Kind("rlef.stages.report:run", {}),
}
POLICY_KINDS = ("sft", "ppo", "dpo", "rft")


def resolve_inputs(config: Config, name: str) -> dict[str, str]:
    """Input name -> stage name or outside path. Raises UserError where something is missing."""
    stage = config.stages[name]
    earlier = list(config.stages)[: list(config.stages).index(name)]
    kind = REGISTRY[stage.kind]
    settings = stage.model_dump()
    resolved: dict[str, str] = {}
    for marked, makers in kind.inputs.items():
        key, optional = marked.rstrip("?!"), marked.endswith(("?", "!"))
        given = settings.get(key)
        if given == "none" and optional:
            continue
        if given is not None:
            if given in config.stages:
                if given not in earlier:
                    raise UserError(f"stages.{name}.{key}: stage {given!r} comes later", fix="put it before this stage")
            elif not Path(given).exists():
                raise UserError(
                    f"stages.{name}.{key}: {given!r} is neither an earlier stage nor a path", fix=f"stages before it: {', '.join(earlier)}"
                )
            resolved[key] = given
            continue
        found = next((one for maker in makers for one in reversed(earlier) if config.stages[one].kind == maker), None)
        if found is not None:
            resolved[key] = found
        elif not optional:
            raise UserError(
                f"stages.{name}: needs {key}, and no earlier stage of kind {' or '.join(makers)} makes it",
                fix=f"add one, or set stages.{name}.{key}",
            )
    if stage.kind == "evaluate":
        policies = stage.policies if stage.policies is not None else [one for one in earlier if config.stages[one].kind in POLICY_KINDS]
        for policy in policies:
            if policy not in earlier and not (policy == "base" and config.model.path) and not Path(policy).exists():
                raise UserError(f"stages.{name}.policies: {policy!r} is no earlier stage", fix=f"stages before it: {', '.join(earlier)}")
            if policy in earlier:
                resolved[f"policy:{policy}"] = policy
    if stage.kind == "report":
        resolved = {one: one for one in earlier}
    return resolved


def fingerprint(config: Config, run: RunDir, name: str, inputs: dict[str, str]) -> dict[str, str]:
    """What the stage's result depends on, a digest or short value a key."""
    stage = config.stages[name]
    kind = REGISTRY[stage.kind]
    settings = stage.model_dump(mode="json", exclude=NOT_IN_FINGERPRINT)
    paths = {"path", "held_out_path"}
    out = {f"{name}.{key}": json.dumps(value, sort_keys=True) for key, value in settings.items() if key not in kind_inputs(kind) | paths}
    out |= {f"{name}.{key}": outside_digest(settings[key]) for key in paths & settings.keys() if settings[key] is not None}
    out["stage version"] = stage_version(kind)
    out["run.seed"] = str(config.run.seed)
    if stage.kind not in ("problems", "report"):
        out["model"] = digest(config.model.model_dump(mode="json"))
    if kind.uses_teacher:
        out["teacher"] = digest(
            config.teacher.model_dump(mode="json", exclude={"concurrency", "batch_size", "timeout_s", "retries", "api_key_env"})
        )
    if stage.kind == "evolve":
        out["held-out files"] = digest([outside_digest(file) for file in config.held_out_files()])
    for key, source in inputs.items():
        out[f"input {key}"] = run.outputs_digest(source) if source in config.stages else outside_digest(source)
    return out


def stage_version(kind: Kind) -> str:
    """STAGE_VERSION of the stage's module, read from its source: importing it would load torch."""
    spec = importlib.util.find_spec(kind.function.split(":")[0])
    assert spec is not None and spec.origin is not None
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "STAGE_VERSION":
            return str(ast.literal_eval(node.value))
    raise LookupError(f"{spec.origin} has no STAGE_VERSION")


def kind_inputs(kind: Kind) -> set[str]:
    return {name.rstrip("?!") for name in kind.inputs}


def changed_keys(old: dict[str, str], new: dict[str, str]) -> list[str]:
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def run(config: Config, *, start: str | None = None, only: str | None = None, yes: bool = False) -> RunDir:
    """Run what is not done yet. `start` redoes that stage and its successors; `only` runs one stage alone."""
    for name, flag in ((start, "--from"), (only, "--only")):
        if name is not None and name not in config.stages:
            raise UserError(f"{flag} {name}: no such stage", fix=f"stages: {', '.join(config.stages)}")
    inputs = {name: resolve_inputs(config, name) for name in config.stages}
    run_dir = RunDir(str(config.run.dir))
    run_dir.create(config.model_dump(mode="json"))
    _write_info(run_dir, config)
    names = list(config.stages) if only is None else [only]
    forced = set(list(config.stages)[list(config.stages).index(start) :]) if start else set()
    for place, name in enumerate(names):
        for source in inputs[name].values():
            if source in config.stages and run_dir.manifest(source) is None and config.stages[name].kind != "report":
                raise UserError(f"{name}: its input {source} is not finished", fix=f"run `{source}` first")
        print_ = fingerprint(config, run_dir, name, inputs[name])
        manifest = run_dir.manifest(name)
        label = f"[{place + 1}/{len(names)}] {name}"
        if manifest is not None:
            changed = changed_keys(manifest.fingerprint, print_)
            if not changed and name not in forced:
                print(f"{label}: done before ({manifest.seconds:.0f} s)", flush=True)
                continue
            reason = f"changed: {', '.join(changed)}" if changed else "asked for by --from"
            _guard(config, run_dir, names[place:], reason, yes)
            print(f"{label}: {reason}; the old folder moves to superseded/", flush=True)
            for one in names[place:] if only is None else [name]:
                if run_dir.manifest(one) is not None:
                    run_dir.supersede(one)
        print(f"{label} ...", flush=True)
        began = time.time()
        folder = run_dir.start(name, print_)
        result = launch.run_stage(config, run_dir, name, folder, inputs[name], REGISTRY[config.stages[name].kind])
        seconds = time.time() - began
        run_dir.finish(name, print_, seconds, result)
        write_summary(config, run_dir)
        print(f"{label}: {seconds:.0f} s  {_brief(result)}", flush=True)
    write_summary(config, run_dir)
    return run_dir


def _guard(config: Config, run_dir: RunDir, names: Sequence[str], reason: str, yes: bool) -> None:
    """Work that was paid for or took long is not thrown away unasked."""
    dear = [name for name in names if (found := run_dir.manifest(name)) and (config.stages[name].paid or found.seconds > LONG_S)]
    if dear and not yes:
        raise UserError(
            f"{', '.join(dear)} would be redone ({reason}), and took long or was paid for", fix="add --yes to redo it, or undo the change"
        )


def write_summary(config: Config, run_dir: RunDir) -> None:
    """summary.json from the manifests alone."""
    summary: dict[str, Any] = {"run": run_dir.root.name, "stages": {}, "reward_models": {}, "evaluate": {}, "evolution": {}}
    for name, stage in config.stages.items():
        manifest = run_dir.manifest(name)
        summary["stages"][name] = {"seconds": manifest.seconds if manifest else None, "status": "done" if manifest else "pending"}
        if manifest is None:
            continue
        if stage.kind in ("irm", "prm"):
            summary["reward_models"][name] = manifest.result
        elif stage.kind == "evaluate":
            summary["evaluate"] |= manifest.result
        elif stage.kind == "evolve":
            summary["evolution"] = manifest.result
        elif manifest.result:
            summary["stages"][name]["result"] = manifest.result
    write_json(run_dir.summary_file, summary)


def _write_info(run_dir: RunDir, config: Config) -> None:
    info = json.loads(run_dir.info_file.read_text()) if run_dir.info_file.is_file() else {"wandb": {}}
    names = ("rlef", "torch", "transformers", "trl", "deepspeed", "datasets", "wandb")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    info |= {
        "versions": versions,
        "python": sys.version.split()[0],
        "git": git.stdout.strip() or None,
        "seed": config.run.seed,
        "cpus": os.cpu_count(),
    }
    write_json(run_dir.info_file, info)


def _brief(result: dict[str, Any]) -> str:
    """The stage's numbers on one line."""
    flat = {key: value for key, value in result.items() if isinstance(value, int | float)}
    return "  ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in list(flat.items())[:6])
