"""Stage after stage: what each needs, whether it is done, and one summary at the end."""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reward_models import disk, gate
from reward_models.client import served_digest
from reward_models.errors import UserError as RewardModelsError
from reward_models.nearest import meant, meant_path
from rlef.cards.data_card import write_card
from rlef.config import (
    COMPLETED,
    AnyStage,
    Config,
    EvolveStage,
    MethodStage,
    PpoStage,
    ProblemsStage,
    RewardModelSettings,
    RewardSettings,
    Section,
    addresses,
    function_of,
    resolve_path,
)
from rlef.errors import UserError, raise_all
from rlef.evolution.operations import check_weights, operations_of, operations_to_improve
from rlef.planning.memory import Zero
from rlef.processes import launch
from rlef.rl.functions import check_function
from rlef.run_dir import RunDir, digest, outside_digest, write_json
from rlef.sources import read_problems, with_answers
from rlef.tracking import keep_rows, mend

if TYPE_CHECKING:
    from rlef.processes.nodes import Lead

NOT_IN_FINGERPRINT = {
    "micro_batch_size", "gradient_checkpointing", "save_every", "score_batch_size", "rollout_batch_size", "paid", "require", "seed",
    "rollout", "servers",
    "profile",
}  # fmt: skip
DECODING_KINDS = ("label", "evaluate", "evolve")  # their batch_size is rows decoded together: sampling noise does not depend on it
FOR_FEEDBACK = {"band", "keep_outside", "samples", "temperature", "max_tokens", "use_answers"}  # of an evolve stage, read by feedback alone
FOLLOWS = "follows "
PATHS = ("path", "held_out_path", "operations_file")
TEACHER_NOT_IN_FINGERPRINT = {"concurrency", "batch_size", "timeout_s", "retries", "api_key_env", "prices", "max_cost_usd"}
MOST_ROWS = 10_000  # of a file that are looked at before a run: `rlef check` answers within 2 seconds
NOT_REACHED = "not reached"  # in place of the digest of a served model
LONG_S = 600.0  # work longer than this is redone only with --yes


@dataclass(frozen=True)
class Kind:
    """How a kind of stage is run. `inputs`: name -> kinds that make it, of which the first that there is wins, of kinds joined by | the
    nearest stage; "?" marks an optional input."""

    function: str  # module:function
    inputs: dict[str, tuple[str, ...]]
    uses_teacher: bool = False
    distributed: bool = False  # run by several processes where the config asks for them
    shares_teacher: bool = False  # so too, where the teacher is a model in this process


REGISTRY: dict[str, Kind] = {
    "problems": Kind("rlef.stages.problems:run", {}),
    "method": Kind("rlef.stages.method:run", {"problems": ("problems",)}, uses_teacher=True),
    "evolve": Kind(
        "rlef.stages.evolve:run",
        {"problems": ("problems",), "method?": ("method",), "pool?": ("evolve",), "policy?": ("sft",), "prm?": ("prm", "orm")},
        uses_teacher=True,
    ),
    "respond": Kind("rlef.stages.respond:run", {"prompts": ("evolve",)}, uses_teacher=True, shares_teacher=True),
    "sft": Kind(
        "rlef.stages.sft:run",
        {"problems": ("problems",), "responses?": ("respond",), "evolved?": ("evolve",), "init!": ()},
        distributed=True,
    ),
    "label": Kind(
        "rlef.stages.label:run",
        {"policy": ("sft",), "problems": ("problems",), "evolved?": ("evolve",), "prompts?": ("respond",), "templates?": ("method",)},
        uses_teacher=True,
        distributed=True,
    ),
    "irm": Kind("rlef.stages.train_rewards:run_irm", {"labels": ("label",), "init": ("sft",)}, distributed=True),
    "prm": Kind("rlef.stages.train_rewards:run_prm", {"labels": ("label",), "init": ("sft",)}, distributed=True),
    "orm": Kind("rlef.stages.train_rewards:run_prm", {"labels": ("label",), "init": ("sft",)}, distributed=True),
    "ppo": Kind(
        "rlef.stages.ppo:run",
        {
            "init": ("sft",),
            "prompts": ("respond|evolve", "problems"),
            "irm?": ("irm",),
            "prm": ("prm", "orm"),
            "evolve?": ("evolve",),
            "problems?": ("problems",),
            "method?": ("method",),
        },
        distributed=True,
    ),
    "dpo": Kind(
        "rlef.stages.dpo:run",
        {"init": ("sft",), "prompts": ("respond|evolve", "problems"), "irm?": ("irm",), "prm": ("prm", "orm")},
        distributed=True,
    ),
    "grpo": Kind(
        "rlef.stages.grpo:run",
        {"init": ("sft",), "prompts": ("respond|evolve", "problems"), "irm?": ("irm",), "prm": ("prm", "orm")},
        distributed=True,
    ),
    "rft": Kind(
        "rlef.stages.rft:run",
        {"init": ("sft",), "prompts": ("respond|evolve", "problems"), "irm?": ("irm",), "prm": ("prm", "orm")},
        distributed=True,
    ),
    "evaluate": Kind("rlef.stages.evaluate:run", {"problems": ("problems",), "prm?": ("prm", "orm")}),
    "report": Kind("rlef.stages.report:run", {}),
}
POLICY_KINDS = ("sft", "ppo", "dpo", "grpo", "rft")
MODELS = ("init", "policy", "policies", "irm", "prm")  # inputs that are models
ASKED_AS = {("label", "templates"): "evolved", ("ppo", "method"): "evolve"}  # a method -> the input whose evolve stage's method it is


def resolve_inputs(config: Config, name: str) -> dict[str, str]:
    """Input name -> stage name or outside path. Raises UserError where something is missing."""
    stage = config.stages[name]
    earlier = list(config.stages)[: list(config.stages).index(name)]
    if stage.kind == "report":
        return {one: one for one in earlier}
    settings = stage.model_dump()
    resolved: dict[str, str] = {}
    for marked, makers in REGISTRY[stage.kind].inputs.items():
        key, optional = marked.rstrip("?!"), marked.endswith(("?", "!"))
        given = settings.get(key)
        if (given == "none" and optional) or key in _unread(stage) or key in served_models(stage) | reward_functions(stage):
            continue
        if given is not None:
            kinds = POLICY_KINDS if key in ("init", "policy") else tuple(kind for maker in makers for kind in maker.split("|"))
            resolved[key] = _source(config, f"stages.{name}.{key}", given, earlier, kinds)
            continue
        evolve = resolved.get(ASKED_AS.get((stage.kind, key), ""), "")
        if evolve in config.stages:
            with contextlib.suppress(UserError):  # it is told of that stage
                if (method := resolve_inputs(config, evolve).get("method")) is not None:
                    resolved[key] = method
            continue
        found = next((one for maker in makers for one in reversed(earlier) if config.stages[one].kind in maker.split("|")), None)
        if found is not None:
            resolved[key] = found
        elif not optional:
            raise UserError(
                f"stages.{name}: needs {key}, and no earlier stage of kind {' or '.join(makers).replace('|', ' or ')} makes it",
                fix=f"add one, or set stages.{name}.{key} to a stage or folder",
            )
    if stage.kind == "evaluate":
        policies = stage.policies if stage.policies is not None else [one for one in earlier if config.stages[one].kind in POLICY_KINDS]
        for policy in policies:
            if policy != "base" or not config.model.path:
                resolved[f"policy:{policy}"] = _source(config, f"stages.{name}.policies", policy, earlier, POLICY_KINDS)
        compared = [*(["base"] if config.model.path and stage.policies is None else []), *policies]
        if not compared:
            raise UserError(
                f"stages.{name}: no policy to evaluate", fix="put a stage that trains one before it, or name folders in policies"
            )
        if stage.gain_over not in compared and stage.gain_over != type(stage).model_fields["gain_over"].default:
            raise UserError(
                f"stages.{name}.gain_over: {stage.gain_over!r} is not among the policies compared{meant(stage.gain_over, compared)}",
                fix=f"one of {', '.join(compared)}",
            )
    _needs(config, name, resolved)
    practised = config.stages.get(resolved.get("prompts", ""))
    reads = {"use_answers": isinstance(stage, RewardSettings) and stage.use_answers}
    reads["outcome_weight"] = isinstance(stage, PpoStage) and stage.outcome_weight > 0
    for key in (key for key, read in reads.items() if read):
        if config.teacher.kind != "symbolic" and practised and practised.kind in ("evolve", "respond"):
            raise UserError(
                f"stages.{name}.{key}: the prompts come from {resolved['prompts']}: what a chat model evolved has no known answers",
                fix=f"set stages.{name}.prompts to a problems stage, or leave {key} out",
            )
    return resolved


def _needs(config: Config, name: str, resolved: dict[str, str]) -> None:
    """Inputs that are optional, and not with these settings."""
    stage = config.stages[name]
    if stage.kind == "evolve" and stage.choose == "feedback" and "policy" not in resolved:
        raise UserError(
            f"stages.{name}.choose: feedback needs a policy to measure, and no sft stage comes before",
            fix=f"put {name} after one, or set stages.{name}.policy to a stage or folder",
        )
    judge = config.stages.get(resolved.get("prm", ""))
    if stage.kind == "dpo" and stage.pairs == "steps" and judge is not None and judge.kind == "orm":
        raise UserError(
            f"stages.{name}.pairs: steps needs a score for each step, and {resolved['prm']} scores whole answers",
            fix=f"set stages.{name}.prm to a process reward model, or pairs: answers",
        )
    labels = config.stages.get(resolved.get("labels", ""))
    if stage.kind == "prm" and stage.threshold is not None and labels is not None and labels.kind == "label":
        method = labels.method
        problems = config.stages.get(resolve_inputs(config, resolved["labels"])["problems"])
        if method == "auto" and config.teacher.kind == "symbolic" and isinstance(problems, ProblemsStage) and problems.source == "symbolic":
            method = "symbolic"  # what auto chooses where the teacher knows how each problem was made
        if method not in (*COMPLETED, "auto"):
            raise UserError(
                f"stages.{name}.threshold: labels of method {method} keep no rates to be judged anew",
                fix=f"use {', '.join(COMPLETED)} in {resolved['labels']}, or no threshold",
            )
    if stage.kind == "ppo" and stage.fresh_every is not None:
        missing = [key for key in ("evolve", "problems") if resolved.get(key) not in config.stages]
        if missing:
            raise UserError(
                f"stages.{name}.fresh_every: fresh rounds need a stage of kind {' and one of kind '.join(missing)} before this one",
                fix="add it, or leave fresh_every out",
            )


def _unread(stage: AnyStage) -> tuple[str, ...]:
    """Inputs that a stage of these settings does not read: it must not be redone for them."""
    if stage.kind == "evolve" and stage.choose == "weights":
        return ("policy", "prm")
    if stage.kind == "ppo" and stage.fresh_every is None:
        return ("evolve", "problems", "method")
    return ()


def served_models(stage: AnyStage) -> dict[str, list[str]]:
    """Reward models that the stage does not load but asks: irm or prm -> addresses."""
    settings = dict(stage)
    found = {key: addresses(settings.get(key)) for key in ("irm", "prm") if key not in _unread(stage)}
    return {key: urls for key, urls in found.items() if urls}


def reward_functions(stage: AnyStage) -> dict[str, tuple[str, str]]:
    """Functions of the user's in reward models' places: irm or prm -> file and name."""
    settings = dict(stage)
    found = {key: function_of(settings.get(key)) for key in ("irm", "prm") if key not in _unread(stage)}
    return {key: place for key, place in found.items() if place is not None}


def _source(config: Config, key: str, given: str, earlier: Sequence[str], kinds: Sequence[str]) -> str:
    """A given input, if it is an earlier stage of one of `kinds` or a path that exists."""
    before = f"stages before it: {', '.join(earlier) or 'none'}"
    if given in config.stages and given not in earlier:
        raise UserError(f"{key}: stage {given!r} does not come before this one", fix=f"put it earlier; {before}")
    if given not in config.stages and not Path(given).exists():
        hint = meant(given, earlier) or meant_path(given)
        raise UserError(f"{key}: {given!r} is neither an earlier stage nor a path{hint}", fix=before)
    if given in config.stages and config.stages[given].kind not in kinds:
        fitting = [one for one in earlier if config.stages[one].kind in kinds]
        raise UserError(
            f"{key}: stage {given!r} is of kind {config.stages[given].kind}, which does not make this input",
            fix=f"stages that do: {', '.join(fitting) or 'none before it'}",
        )
    if given not in config.stages and key.rpartition(".")[2] in MODELS and not _holds_model(Path(given)):
        raise UserError(
            f"{key}: {given} holds no model{meant_path(given)}", fix="give a folder with a config.json, or a stage's folder with its model/"
        )
    return given


def _holds_model(folder: Path) -> bool:
    """As from_pretrained reads it, or a stage's folder."""
    return any((folder / part / "config.json").is_file() for part in (".", "model"))


def resolve_all(config: Config) -> dict[str, dict[str, str]]:
    """Every stage's inputs. Raises one UserError with all that is not joined up."""
    resolved: dict[str, dict[str, str]] = {}
    wrong: list[UserError] = []
    for name in config.stages:
        try:
            resolved[name] = resolve_inputs(config, name)
        except UserError as error:
            wrong.append(error)
    raise_all(wrong)
    return resolved


def check_launch(config: Config, names: Collection[str]) -> None:
    """Whether these stages run under the config's ZeRO stage."""
    zero = Zero.read(config.launch.deepspeed)
    if zero is not None and zero.stage == 3:
        settings = {name: stage.against_zero_3 for name in names if isinstance(stage := config.stages[name], PpoStage)}
        fix = (
            "leave it out, or set launch.deepspeed to a file of ZeRO-2 or lower; for this stage alone: rlef {} CONFIG launch.deepspeed=FILE"
        )
        wrong = {name: f"stages.{name}.{key}: it works on whole weights, and ZeRO-3 divides them" for name, key in settings.items() if key}
        raise_all([UserError(problem, fix=fix.format(name)) for name, problem in wrong.items()])


def check_data(config: Config) -> None:
    """The files that stages will read: a broken line, an empty file, an unknown operation or function: told before hours of work, not after
    them."""
    wrong: list[UserError] = []
    graded = {f"{name}.path" for name, stage in config.stages.items() if stage.kind == "evaluate"}
    if any(stage.kind == "evaluate" and stage.path is None for stage in config.stages.values()):
        graded |= {f"{name}.held_out_path" for name in config.stages}
    for name, stage in config.stages.items():
        if isinstance(stage, EvolveStage | MethodStage):
            try:
                operations = operations_of(config.teacher.kind, _operations_file(config, name, stage))
                if isinstance(stage, EvolveStage):
                    check_weights(operations, stage.weights)
                else:
                    operations_to_improve(operations, stage.operations, ())
            except UserError as error:
                wrong.append(UserError(f"stages.{name}: {error.problem}", error.fix))
        for key, (file, function) in reward_functions(stage).items():
            try:
                check_function(key, file, function)
            except UserError as error:
                wrong.append(UserError(f"stages.{name}.{key}: {error.problem}", error.fix))
        if stage.kind == "ppo" and stage.rollout.vllm is not None and shutil.which(stage.rollout.vllm) is None:
            wrong.append(
                UserError(f"stages.{name}.rollout.vllm: {stage.rollout.vllm} is no command here", "give the path of an installed vllm")
            )
        if stage.kind == "ppo" and stage.rollout.colocated and importlib.util.find_spec("vllm") is None:
            wrong.append(
                UserError(f"stages.{name}.rollout.colocated: vllm is not installed beside rlef", "pip install vllm, or use rollout.vllm")
            )
        files: dict[str, tuple[str, int, bool]] = {}
        if stage.kind == "problems":
            if stage.source == "jsonl" and stage.path is not None:
                files["path"] = (stage.path, stage.seeds, stage.skip_broken_lines)
            if stage.held_out_path is not None:
                files["held_out_path"] = (stage.held_out_path, stage.held_out, False)
        elif stage.kind == "evaluate" and stage.path is not None:
            files["path"] = (stage.path, MOST_ROWS, False)
        for key, (file, limit, skip) in files.items():
            try:
                problems, _ = read_problems(file, limit=min(limit, MOST_ROWS), skip_broken=skip)
                if f"{name}.{key}" in graded:
                    with_answers(problems, file)
            except UserError as error:
                wrong.append(UserError(f"stages.{name}.{key}: {error.problem}", error.fix))
    raise_all(wrong)


def _operations_file(config: Config, name: str, stage: EvolveStage | MethodStage) -> str | Path | None:
    """The file that names the stage's operations; what a method stage makes has those of the file that it starts from."""
    method = resolve_inputs(config, name).get("method")
    maker = config.stages.get(method or "")
    if isinstance(maker, MethodStage):
        return maker.operations_file
    return Path(method) / "operations.yaml" if method else stage.operations_file


def fingerprint(config: Config, run: RunDir, name: str, inputs: dict[str, str]) -> dict[str, str]:
    """What the stage's result depends on, a digest or short value a key. Paths stand for their contents."""
    stage = config.stages[name]
    kind = REGISTRY[stage.kind]
    left_out = NOT_IN_FINGERPRINT | ({"batch_size"} if stage.kind in DECODING_KINDS else set())
    if stage.kind == "evolve" and stage.choose == "weights":
        left_out |= FOR_FEEDBACK
    out = {
        f"{name}.{key}": json.dumps(value, sort_keys=True)
        for key, value in stage.model_dump(mode="json", exclude=left_out | kind_inputs(kind)).items()
        if key not in PATHS
    }
    settings = stage.model_dump()
    out |= {f"{name}.{key}": outside_digest(settings[key]) for key in PATHS if settings.get(key) is not None}
    out["stage version"] = stage_version(kind)
    out["run.seed" if stage.seed is None else f"{name}.seed"] = str(config.seed_of(stage))
    if stage.kind not in ("problems", "report"):
        out |= _section(config.model, "model", path=config.model.path, gguf=config.model.gguf_file)
    if kind.uses_teacher or (stage.kind == "ppo" and stage.fresh_every is not None):
        teacher = config.teacher
        local = teacher.kind == "hf"
        out |= _section(
            teacher, "teacher", path=teacher.model if local else None, gguf=teacher.gguf_file, exclude=TEACHER_NOT_IN_FINGERPRINT
        )
    if stage.kind == "label" and (file := config.operations_file(name)) is not None:
        out["operations file"] = outside_digest(file)
    if stage.kind == "evolve" and stage.embedding_model is not None:
        out[f"{name}.embedding_model"] = outside_digest(resolve_path(stage.embedding_model))
    if stage.kind == "ppo" and stage.fresh_every is not None:
        # What evolve made may be the same with other settings; what fresh rounds make is not.
        source = inputs["evolve"]
        theirs = fingerprint(config, run, source, resolve_inputs(config, source))
        read = {key: value for key, value in theirs.items() if not key.startswith("input ")}
        out["settings of fresh rounds"] = digest(read | {"band": config.stages[source].model_dump()["band"]})
    if stage.kind == "evolve" or (stage.kind == "problems" and stage.held_out_path is None):
        out["held-out files"] = digest([outside_digest(file) for file in config.held_out_files()])
    for key, urls in served_models(stage).items():
        # An address is no content: another server, or more of them, with the same model change nothing.
        try:
            out[f"served {key}"] = served_digest(urls, key)
        except RewardModelsError:
            out[f"served {key}"] = NOT_REACHED
    for key, (file, function) in reward_functions(stage).items():
        out[f"function {key}"] = f"{function} {outside_digest(file)}"
    for key, source in inputs.items():
        out[f"input {key}"] = run.outputs_digest(source) if source in config.stages else outside_digest(source)
    return out


def _section(section: Section, name: str, *, path: str | None, gguf: str | None, exclude: set[str] | None = None) -> dict[str, str]:
    out = {f"{name}.{key}": json.dumps(value, sort_keys=True) for key, value in section.model_dump(mode="json", exclude=exclude).items()}
    if path is not None:
        out[f"contents of {name}"] = outside_digest(resolve_path(path), gguf)
        # Where the files lie does not matter; what is in them does.
        out.pop(f"{name}.path" if name == "model" else f"{name}.model")
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


def plan(config: Config, run_dir: RunDir, inputs: dict[str, dict[str, str]], *, forced: Collection[str] = ()) -> dict[str, str]:
    """Stage -> why it has to be run again; only finished stages that are not up to date are in it.

    A stage whose input is unfinished, and otherwise unchanged, is left out: whether it is up to date shows when its input is there. So is
    one whose served reward model does not answer: what is done needs it no more.
    """
    reasons: dict[str, str] = {}
    for name in config.stages:
        manifest = run_dir.manifest(name)
        if manifest is None:
            continue
        redone = [source for source in inputs[name].values() if source in reasons]
        pending = {f"input {key}" for key, source in inputs[name].items() if source in config.stages and run_dir.manifest(source) is None}
        print_ = fingerprint(config, run_dir, name, inputs[name])
        pending |= {key for key, value in print_.items() if value == NOT_REACHED and key in manifest.fingerprint}
        changed = [key for key in changed_keys(manifest.fingerprint, print_) if key not in pending]
        missing = run_dir.missing_files(name)
        if name in forced:
            reasons[name] = "asked for by --from"
        elif changed:
            reasons[name] = f"changed: {', '.join(changed)}"
        elif missing:
            reasons[name] = f"files are gone: {', '.join(missing[:3])}"
        elif redone:
            reasons[name] = FOLLOWS + ", ".join(dict.fromkeys(redone))
    return reasons


def run(config: Config, *, start: str | None = None, only: str | None = None, yes: bool = False, lead: Lead | None = None) -> RunDir:
    """Run what is not done yet. `start` redoes that stage and all after it; `only` runs one stage alone. `lead`: of other machines."""
    for name, flag in ((start, "--from"), (only, "--only")):
        if name is not None and name not in config.stages:
            raise UserError(
                f"{flag} {name}: the config has no such stage{meant(name, config.stages)}",
                fix=f"add it under stages; there are {', '.join(config.stages)}",
            )
    if start is not None and only is not None:
        raise UserError("--from and --only: one redoes a stage and all after it, the other runs one alone", fix="give one of them")
    check_launch(config, config.stages if only is None else [only])
    inputs = resolve_all(config)
    check_data(config)
    run_dir = RunDir(str(config.run.dir))
    every = list(config.stages)
    forced = set(every[every.index(start) :]) if start else set()
    names = [only] if only is not None else every
    if only is not None:
        # Reading problems costs nothing: `rlef evolve CONFIG` should just work.
        unread = [one for one in dict.fromkeys(inputs[only].values()) if one in config.stages and run_dir.manifest(one) is None]
        if config.stages[only].kind != "report":
            names = [*(one for one in unread if config.stages[one].kind == "problems"), only]
        _inputs_finished(config, run_dir, only, {key: one for key, one in inputs[only].items() if one not in names})
    # Before anything is written: is there dear work that this command would throw away?
    reasons = plan(config, run_dir, inputs, forced=forced)
    if only is None:
        _guard(config, run_dir, reasons, yes)
    with run_dir.locked(), disk.told(run_dir.root, but=UserError):
        _run_stages(config, run_dir, inputs, names, forced, yes, lead)
    return run_dir


def _run_stages(
    config: Config,
    run_dir: RunDir,
    inputs: dict[str, dict[str, str]],
    names: Sequence[str],
    forced: set[str],
    yes: bool,
    lead: Lead | None,
) -> None:
    created = False
    mend(run_dir.metrics_file, {name: run_dir.stage(name) for name in config.stages if run_dir.manifest(name) is not None})
    for place, name in enumerate(names):
        _inputs_finished(config, run_dir, name, inputs[name])
        label = f"[{place + 1}/{len(names)}] {name}"
        reasons = plan(config, run_dir, inputs, forced=forced)
        if len(names) < len(config.stages) and reasons.get(name, "").startswith(FOLLOWS):
            del reasons[name]  # it is run on what is there
        if name in reasons:
            stale = [name, *_dependents(config, inputs, name)]
            _guard(config, run_dir, {one: reasons[name] for one in stale}, yes)
            followers = [one for one in stale[1:] if run_dir.manifest(one) is not None]
            also = f", and what follows from it: {', '.join(followers)}" if followers else ""
            print(f"{label}: {reasons[name]}; the old folder moves to superseded/{also}", flush=True)
        if not created:
            run_dir.create(config.model_dump(mode="json"))
            _write_info(run_dir, config)
            created = True
        if name in reasons:
            run_dir.supersede(*[one for one in stale if run_dir.manifest(one) is not None])
        forced.discard(name)
        manifest = run_dir.manifest(name)
        if manifest is not None:
            run_dir.clear(name)
            print(f"{label}: done before ({manifest.seconds:.0f} s)", flush=True)
            _check_gate(config, run_dir, name)
            continue
        print(f"{label} ...", flush=True)
        began = time.monotonic()
        for key, urls in served_models(config.stages[name]).items():
            served_digest(urls, key)  # its error says which server does not answer, before anything loads
        print_ = fingerprint(config, run_dir, name, inputs[name])
        left = run_dir.interrupted(name)
        if left is not None and (changed := changed_keys(left, print_)):
            print(f"{label}: changed since it was stopped: {', '.join(changed)}; the old folder moves to superseded/", flush=True)
        folder = run_dir.start(name, print_)
        try:
            result = launch.run_stage(config, run_dir, name, folder, inputs[name], REGISTRY[config.stages[name].kind], lead)
        except Exception as error:
            run_dir.fail(name, error)
            raise
        seconds = time.monotonic() - began
        keep_rows(run_dir.metrics_file, name, folder)
        write_card(config, name, folder, result)
        run_dir.finish(name, print_, seconds, result)
        write_summary(config, run_dir)
        print(f"{label}: {seconds:.0f} s  {_brief(result)}", flush=True)
        for line in _outcomes(result):
            print(f"{label}: {line}", flush=True)
        if "teacher" in result:
            print(f"{label}: teacher  {_brief(result['teacher'], most=10)}", flush=True)
        _check_gate(config, run_dir, name)
    write_summary(config, run_dir)


def _inputs_finished(config: Config, run_dir: RunDir, name: str, inputs: dict[str, str]) -> None:
    # The report shows what there is.
    if config.stages[name].kind == "report":
        return
    missing = [source for source in dict.fromkeys(inputs.values()) if source in config.stages and run_dir.manifest(source) is None]
    if missing:
        raise UserError(f"{name}: its input {', '.join(missing)} is not finished", fix=f"run `{missing[0]}` first, or all with `rlef run`")
    for source in inputs.values():
        _check_gate(config, run_dir, source)


def _check_gate(config: Config, run_dir: RunDir, name: str) -> None:
    """Raises UserError where a finished reward model's metrics are below what its stage requires."""
    stage, manifest = config.stages.get(name), run_dir.manifest(name)
    if not isinstance(stage, RewardModelSettings) or manifest is None:
        return
    told = gate.failure(stage.kind, stage.require, manifest.result)
    if told is not None:
        raise UserError(
            f"{name}: {told}",
            fix=f"the trained model stays in {run_dir.stage(name) / 'model'}. Better labels or training; or lower stages.{name}.require, "
            "and the same command goes on without training again",
        )


def _dependents(config: Config, inputs: dict[str, dict[str, str]], name: str) -> list[str]:
    """Stages that read this one, or read what does."""
    found = [name]
    for one in config.stages:
        if one not in found and any(source in found for source in inputs[one].values()):
            found.append(one)
    return found[1:]


def _guard(config: Config, run_dir: RunDir, reasons: dict[str, str], yes: bool) -> None:
    """Work that was paid for or took long is not thrown away unasked."""
    dear = [name for name in reasons if (found := run_dir.manifest(name)) and (config.stages[name].paid or found.seconds > LONG_S)]
    if dear and not yes:
        raise UserError(
            "\n".join(f"{name} took long or was paid for, and would be redone ({reasons[name]})" for name in dear),
            fix="add --yes to redo it, or undo the change",
        )


def write_summary(config: Config, run_dir: RunDir) -> None:
    """summary.json from the manifests alone."""
    summary: dict[str, Any] = {"run": run_dir.root.name, "stages": {}, "reward_models": {}, "evaluate": {}, "evolution": {}}
    for name, stage in config.stages.items():
        manifest = run_dir.manifest(name)
        summary["stages"][name] = {"seconds": manifest.seconds if manifest else None, "status": "done" if manifest else "pending"}
        if manifest is None:
            continue
        if stage.kind in ("irm", "prm", "orm"):
            summary["reward_models"][name] = manifest.result
        elif stage.kind == "evaluate":
            summary["evaluate"] |= manifest.result
        elif stage.kind == "evolve":
            summary["evolution"] = manifest.result
        elif manifest.result:
            summary["stages"][name]["result"] = manifest.result
    write_json(run_dir.summary_file, summary)


def _write_info(run_dir: RunDir, config: Config) -> None:
    info = run_dir.info()
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


def _outcomes(result: dict[str, Any]) -> list[str]:
    """Of an evaluation: a line a policy. Of an evolution that left nothing: why. Of a stage that answers: whether all were taken."""
    from reward_models.statistics import in_points  # numpy, which `rlef check` does without

    lines = []
    if result.get("made") and not result.get("kept") and (rules := result.get("eliminated")):
        rule = max(rules, key=lambda one: rules[one])
        fix = "; raise teacher.max_tokens" if rule == "cut_off" else ""
        lines.append(f"nothing was kept: {rules[rule]} of {result['made']} fell by {rule}{fix}")
    if result.get("asked") and result.get("prompts") == 0:
        lines.append(
            f"all {result['asked']} problems were asked, none is left to practise on; for PPO or DPO lower its count or evolve more"
        )
    for policy, row in result.items():
        if isinstance(row, dict) and "pass@1" in row:
            gain = row.get("gain")
            against = ""
            if gain:
                mean, low, high = in_points(gain)
                against = f", {mean} points over {gain['over']} (95 %: {low} to {high})"
            lines.append(f"{policy} {row['pass@1']:.1%} right{against}")
    return lines


def _brief(result: dict[str, Any], most: int = 6) -> str:
    """The stage's numbers on one line."""
    flat = {key: value for key, value in result.items() if isinstance(value, int | float)}
    return "  ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in list(flat.items())[:most])
