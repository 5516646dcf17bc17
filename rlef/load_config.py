"""From a YAML file and overrides to a whole Config: every mistake at once, each with its key and, for a typo, the nearest known one.

A config has the sections `run`, `model`, `teacher`, `tracking`, `launch` and the ordered mapping `stages` (name -> settings; `kind`
defaults to the name). On the command line `key.sub=value` overrides a value; a key that starts with a stage's name (`ppo.iterations=20`)
means `stages.ppo.iterations`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from reward_models.nearest import meant, meant_path, nearest
from rlef import rounds
from rlef.config import STAGE_TYPES, Config, EvolveStage, MethodStage, resolve_path
from rlef.errors import UserError, raise_all
from rlef.hosts import read_hostfile
from rlef.planning.memory import Zero

MOST_NODES = 100_000  # of a YAML file with its aliases written out
# What PyYAML raises over texts that are no YAML: dates that do not exist, nests too deep, lists as keys, beside its own errors.
NO_YAML = (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, RecursionError)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `key.sub=value` overrides, validate. All mistakes are raised together as one UserError."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such config file{meant_path(path)}", fix="give the path of a YAML file, e.g. configs/quickstart.yaml")
    data = read_yaml(path, fix="start from configs/quickstart.yaml")
    mistaken: list[UserError] = []
    for override in sorted(overrides, key=lambda text: not text.startswith("run.")):  # rounds decide which stages there are
        try:
            _override(data, override)
        except UserError as error:
            mistaken.append(error)
    raise_all(mistaken)
    stages = _mapping(data, "stages", path)
    for name in stages:
        _mapping(stages, name, path, key=f"stages.{name}")
    run = _mapping(data, "run", path)
    run["dir"] = run.get("dir") or f"runs/{path.stem}"
    launch = _mapping(data, "launch", path)
    if launch.get("hostfile") is not None:
        launch["hosts"] = read_hostfile(str(launch["hostfile"]))
    data = rounds.expand(data)
    for name, settings in data["stages"].items():
        settings.setdefault("kind", name)
    config = parse_config(data, str(path))
    _check_files(config, path)
    return config


def config_of(run_dir: str | Path) -> Config:
    """The whole config that a run directory holds; files that it names may be another machine's. Raises UserError where it has none."""
    file = Path(run_dir) / "config.yaml"
    fix = "give a run directory, e.g. runs/quickstart, which has one once the run has begun"
    if not file.is_file():
        raise UserError(f"{run_dir}: no run directory, it has no config.yaml{meant_path(run_dir)}", fix=fix)
    return parse_config(read_yaml(file, fix=fix), str(file))


class _Loader(yaml.SafeLoader):
    """YAML where a key given twice is an error: the first would be dropped without a word. So are aliases that grow without a limit."""

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None and _size(node, {}) > MOST_NODES:
            raise yaml.YAMLError(f"with its aliases written out it has over {MOST_NODES:,} values")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and key.value != "<<":
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """Nodes with all aliases written out; infinitely many where one holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # as long as it is being counted
        pairs = node.value if isinstance(node, yaml.MappingNode) else [node.value] if isinstance(node, yaml.SequenceNode) else []
        known[id(node)] = 1 + sum(_size(part, known) for pair in pairs for part in pair)
    return known[id(node)]


def read_yaml(path: Path, *, fix: str) -> dict[str, Any]:
    """The mapping that a YAML file holds. Raises UserError with the line of a mistake; `fix`: what to do where it is no mapping."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{where}: not valid YAML ({error.problem})", fix="mend that line") from None
    except (*NO_YAML, OSError) as error:
        raise UserError(f"{path}: not a YAML text file ({error})", fix="give a YAML file") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: must be a mapping of keys", fix=fix)
    return {str(key): value for key, value in data.items()}


def _mapping(parent: dict[str, Any], name: str, path: Path, *, key: str = "") -> dict[str, Any]:
    """The mapping `name` of `parent`; an empty one stands for nothing at all."""
    value = parent.get(name)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{path}: {key or name}: must be a mapping of keys, not {value!r}", fix=f"write `{name}:` with indented keys below")
    parent[name] = value if value is not None else {}
    return parent[name]


def parse_config(data: dict[str, Any], source: str) -> Config:
    """Validate a plain mapping. Raises UserError with every mistake, each with its key, and the nearest known key for a typo."""
    try:
        config = Config.model_validate(data)
        lines = [f"{key}: must be a number, not true or false" for key in _switches(data, config)]
    except ValidationError as error:
        lines = [line for one in error.errors() for line in _explain(one)]
    if lines:
        raise UserError(
            f"{source}: {len(lines)} mistake(s)\n" + "\n".join(f"  - {line}" for line in lines),
            fix="mend these keys; configs/README.md has them all",
        )
    return config


def _switches(given: Any, read: Any, key: str = "") -> list[str]:
    """Keys whose true or false was read as 1 or 0: pydantic takes one for the other."""
    if isinstance(given, dict):
        parts = read if isinstance(read, dict) else dict(read)
        return [one for name, value in given.items() for one in _switches(value, parts[name], f"{key}.{name}".lstrip("."))]
    if isinstance(given, list | tuple):
        return [key] * any(isinstance(one, bool) and not isinstance(other, bool) for one, other in zip(given, read, strict=True))
    return [key] * (isinstance(given, bool) and not isinstance(read, bool))


def _explain(error: Any) -> list[str]:
    kinds = set(STAGE_TYPES)
    # pydantic puts the union's tag into the location after the stage's name: stages.ppo.ppo.lr
    parts = [str(part) for part in error["loc"]]
    if len(parts) > 2 and parts[0] == "stages" and parts[2] in kinds:
        owner: type[BaseModel] | None = STAGE_TYPES[parts.pop(2)]
        depth = 2
    else:
        owner, depth = Config, 0
    key = ".".join(parts)
    if error["type"] == "extra_forbidden":
        if key in kinds:
            return [f"{key}: unknown key; a stage stands under `stages:`"]
        for part in parts[depth:-1]:
            field = owner.model_fields.get(part) if owner else None
            owner = next((t for t in _types(field.annotation) if issubclass(t, BaseModel)), None) if field else None
        return [f"{key}: unknown key{meant(parts[-1], owner.model_fields if owner else ())}"]
    if error["type"] == "union_tag_invalid":
        given = str(error["ctx"].get("tag", ""))
        hint = meant(given, kinds) or f"; known: {', '.join(sorted(kinds))}"
        own = f"a stage with a name of its own says `kind: {nearest(given, kinds) or 'ppo'}`"
        return [f"{key}: unknown stage kind {given!r}{hint} ({own})"]
    if error["type"] == "model_type":
        return [f"{key}: must be a mapping of keys, not {error['input']!r}"]
    if error["type"] == "literal_error":
        known = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        return [f"{key}: must be one of {', '.join(known)}{meant(str(error['input']), known)} (given: {error['input']!r})"]
    message = str(error["msg"]).removeprefix("Value error, ")
    if not key:
        return message.splitlines()
    return [f"{key}: {message} (given: {error['input']!r})" if error["type"] != "missing" else f"{key}: {message}"]


def _types(annotation: Any) -> list[type]:
    """All classes that an annotation names."""
    return [annotation] if isinstance(annotation, type) else [one for part in get_args(annotation) for one in _types(part)]


def _override(data: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"{text!r}: not an override", fix="write key.sub=value, e.g. ppo.iterations=20")
    parts = key.split(".")
    stages = data.get("stages")
    names = [*(map(str, stages) if isinstance(stages, dict) else ()), *rounds.round_names(data)]
    if parts[0] in names and parts[0] not in Config.model_fields:
        parts = ["stages", *parts]
    elif parts[0] not in Config.model_fields:
        known = [*Config.model_fields, *names]
        stem, _, number = parts[0].rpartition("_")
        of_round = stem in names and number.isdecimal()
        hint = f"; `{parts[0]}` comes with run.rounds={number}" if of_round else meant(parts[0], known)
        raise UserError(
            f"{text!r}: {parts[0]!r} is neither a section nor a stage{hint}",
            fix=f"known: {', '.join(known)}",
        )
    target = data
    for part in parts[:-1]:
        step = target.setdefault(part, {})
        if step is None:
            step = target[part] = {}
        if not isinstance(step, dict):
            raise UserError(f"{key}: {part} is no section", fix="check the key")
        target = step
    try:
        target[parts[-1]] = yaml.load(value, Loader=_Loader)
    except NO_YAML:
        raise UserError(f"{text!r}: the value is not valid YAML", fix="quote it") from None


def _check_files(config: Config, path: Path) -> None:
    """Local files that the config names must exist before anything loads. A hub id is left to the stage that loads it."""
    wrong: list[str] = []

    def file(key: str, name: str | None) -> None:
        if name is not None and not Path(name).is_file():
            wrong.append(f"{key}: {name}: no such file{meant_path(name)}")

    def model(key: str, name: str, gguf: str | None) -> None:
        try:
            folder = Path(resolve_path(name))
        except UserError as error:
            wrong.append(f"{key}: {error.problem}; {error.fix}")
            return
        if gguf is not None and folder.is_dir() and not (folder / gguf).is_file():
            held = ", ".join(sorted(one.name for one in folder.glob("*.gguf"))) or "none"
            wrong.append(f"{key}: {folder} holds no file {gguf}; its GGUF files: {held}")
        elif gguf is None and folder.is_dir() and not (folder / "config.json").is_file():
            wrong.append(f"{key}: {folder} holds no config.json, so it is no model{meant_path(folder)}")
        elif not folder.is_dir() and not HUB_ID.fullmatch(name):
            wrong.append(f"{key}: {name}: neither a folder nor a hub id (owner/name){meant_path(name)}")

    if config.model.path is not None:
        model("model.path", config.model.path, config.model.gguf_file)
    if config.teacher.kind == "hf" and config.teacher.model is not None:
        model("teacher.model", config.teacher.model, config.teacher.gguf_file)
    if Path(str(config.run.dir)).exists() and not Path(str(config.run.dir)).is_dir():
        wrong.append(f"run.dir: {config.run.dir}: a file, not a folder")
    file("launch.deepspeed", config.launch.deepspeed)
    if config.launch.deepspeed is not None and Path(config.launch.deepspeed).is_file():
        try:
            settings = json.loads(Path(config.launch.deepspeed).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            wrong.append(f"launch.deepspeed: {config.launch.deepspeed}, line {error.lineno}: not valid JSON ({error.msg})")
        except (ValueError, RecursionError, OSError) as error:
            wrong.append(f"launch.deepspeed: {config.launch.deepspeed}: not valid JSON ({error})")
        else:
            try:
                Zero.of(settings)
            except (AttributeError, TypeError, ValueError, OverflowError):
                wrong.append(f"launch.deepspeed: {config.launch.deepspeed}: not a JSON object as DeepSpeed reads it")
    for name, stage in config.stages.items():
        if stage.kind == "problems":
            file(f"stages.{name}.path", stage.path if stage.source == "jsonl" else None)
            file(f"stages.{name}.held_out_path", stage.held_out_path)
        if isinstance(stage, EvolveStage | MethodStage):
            file(f"stages.{name}.operations_file", stage.operations_file)
        if stage.kind == "evolve" and stage.embedding_model is not None:
            model(f"stages.{name}.embedding_model", stage.embedding_model, None)
        if stage.kind == "evaluate":
            file(f"stages.{name}.path", stage.path)
    if wrong:
        raise UserError(
            f"{path}: {len(wrong)} mistake(s)\n" + "\n".join(f"  - {line}" for line in wrong),
            fix="paths are taken from the folder you start in",
        )
