"""Every key of a config as configs/README.md, written from the schema: python scripts/config_reference.py"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from reward_models.config import ProcessForm
from rlef.config import STAGE_TYPES, Config, Stage

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "configs" / "README.md"
HEAD = """# Configs

*Written by `python scripts/config_reference.py` from the schema in `rlef/config.py`; a test fails where both differ. Change the descriptions there.*

A config is a YAML file with the sections `run`, `model`, `teacher`, `tracking` and `launch`, all of which may be left out, and the stages in their order below
`stages:`. `rlef init` writes one after a few questions. A stage is called by its kind, or has a name of its own and says `kind`:

```yaml
model: {path: Qwen/Qwen2.5-1.5B}
stages:
  problems: {source: jsonl, path: train.jsonl}
  sft: {data: seeds}
  longer: {kind: sft, init: sft, data: seeds, max_steps: 2000}
```

```
rlef check configs/quickstart.yaml                               is it right? what would be run?
rlef run configs/quickstart.yaml ppo.iterations=40 run.seed=1    a key of a section or of a stage, for this run alone
rlef run configs/quickstart.yaml stages.grpo.iterations=20       a further stage
```

An *input* is a stage before this one, or a folder; left out it is the nearest stage that makes it. A *source* of rewards is an input, or the address of a served model
(a list of them shares the load), or a function of yours, `FILE.py:FUNCTION`. An unknown key, a value out of its range and stages that do not fit together are told before
anything runs, all at once. `null` stands for "not set". Secrets are no keys: they are read from the environment (`OPENAI_API_KEY` or what `teacher.api_key_env` names,
`REWARD_MODELS_TOKEN`, `WANDB_API_KEY`, `HF_TOKEN`). Paths are taken from the folder that the command is started in.
[MIGRATION.md](MIGRATION.md) has the keys of TRL's PPOTrainer and PRMTrainer and of OpenRLHF beside ours.

"""


def files() -> str:
    """What lies in this folder, each file with what it says of itself."""
    lines = []
    for file in sorted((ROOT / "configs").rglob("*.*")):
        name = file.relative_to(PAGE.parent).as_posix()
        if file.suffix == ".yaml":
            told = file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        elif file.suffix == ".json":
            zero = json.loads(file.read_text())["zero_optimization"]
            told = f"ZeRO stage {zero['stage']}" + (", Adam's states on the host" if "offload_optimizer" in zero else "")
        elif file.suffix == ".py":
            told = file.read_text(encoding="utf-8").splitlines()[0].strip('"').split(": ")[0]
        else:
            continue
        lines.append(f"* [`{name}`]({name}): {told.rstrip('.')}.")
    return "## The files here\n\n" + "\n".join(lines) + "\n\n"


def table(model: type[BaseModel], *, without: type[BaseModel] | None = None) -> str:
    """The keys of a section, its own before those that it shares; `without` leaves out the keys of a section told elsewhere."""
    schema = model.model_json_schema()
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for key, row, required in rows(model, schema, schema, ""):
        if key == "kind" and model.__base__ is not BaseModel and "const" in row:
            continue
        if without is not None and key in without.model_fields:
            continue
        default = "required" if required else code(written(row.get("default")))
        lines.append(f"| `{key}` | {values(row, schema)} | {default} | {prose(row['description'])} |")
    return "\n".join(lines) + "\n\n"


def rows(model: type[BaseModel], part: dict[str, Any], schema: dict[str, Any], prefix: str) -> list[tuple[str, dict[str, Any], bool]]:
    """Each key, those of a section within it as `inner.key`, with its part of the JSON schema, and whether it must be given."""

    def distance(name: str) -> int:
        return next(place for place, one in enumerate(model.__mro__) if name in inspect.get_annotations(one))

    found = []
    for name, field in sorted(model.model_fields.items(), key=lambda one: distance(one[0])):
        row = part["properties"][name]
        if name == "hosts":
            continue  # read from a file, never written
        default = {"default": field.get_default(call_default_factory=True)} if field.default_factory else {}
        found.append((prefix + name, row | default | {"description": field.description or ""}, field.is_required()))
        inner = [one for one in (field.annotation, *get_args(field.annotation)) if isinstance(one, type) and issubclass(one, BaseModel)]
        for one in inner:
            found += rows(one, schema["$defs"][one.__name__], schema, f"{prefix}{name}.")
    return found


def values(row: dict[str, Any], schema: dict[str, Any]) -> str:
    """What a key may be, in words."""
    if "$ref" in row:
        return "keys below"
    if "anyOf" in row:
        kinds = [values(one, schema) for one in row["anyOf"] if one.get("type") != "null"]
        return "source" if len(kinds) > 1 else kinds[0]  # rlef.config.RewardSource
    if "enum" in row or "const" in row:
        return ", ".join(code(written(one)) for one in row.get("enum", [row.get("const")]))
    if row["type"] in ("integer", "number"):
        return ("whole number" if row["type"] == "integer" else "number") + limits(row)
    if row["type"] == "array":
        return "list of " + ("fewest and most" if "prefixItems" in row else values(row["items"], schema))
    if row["type"] == "object":
        return "mapping: name -> " + values(row["additionalProperties"], schema)
    return {"string": "text", "boolean": "true, false"}[row["type"]]


def limits(row: dict[str, Any]) -> str:
    """The range of a number."""
    above, least = row.get("exclusiveMinimum"), row.get("minimum")
    below, most = row.get("exclusiveMaximum"), row.get("maximum")
    if least is not None and most is not None:
        return f" from {least:g} to {most:g}"
    low = f" > {above:g}" if above is not None else f" >= {least:g}" if least is not None else ""
    high = f" < {below:g}" if below is not None else f" <= {most:g}" if most is not None else ""
    return low + ("," if low and high else "") + high


def written(value: Any) -> str:
    """As YAML has it."""
    if isinstance(value, float):
        return f"{value:g}" if value >= 1e-3 or value == 0 else f"{value:f}".rstrip("0")
    return value if isinstance(value, str) and value.strip() else json.dumps(value, ensure_ascii=False)


def code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


def prose(text: str) -> str:
    """Python's words for what is not set or is a switch as YAML's; nothing that Markdown would take for a tag or a column."""
    text = re.sub(r"\b(None|True|False)\b", lambda word: {"None": "null"}.get(word[0], word[0].lower()), text)
    return "`".join(part if place % 2 else part.replace("<", "&lt;") for place, part in enumerate(text.split("`"))).replace("|", "\\|")


def heading(model: type[BaseModel]) -> str:
    """The section's own docstring, for none is inherited."""
    return " ".join((model.__dict__.get("__doc__") or "").split()) + "\n\n"


def page() -> str:
    names = [name for name in Config.model_fields if name != "stages"]
    links = " · ".join(f"[`{name}`](#{name})" for name in (*names, *STAGE_TYPES))
    parts = [HEAD, f"{links}\n\n", files()]
    for name in names:
        section: Any = Config.model_fields[name].annotation
        parts.append(f"## `{name}`\n\n{heading(section)}{table(section)}")
    parts.append(f"## Every stage\n\n{heading(Stage)}`kind` too, where the stage has a name of its own.\n\n{table(Stage)}")
    for kind, stage in STAGE_TYPES.items():
        own = table(stage, without=Stage)
        parts.append(f"## `{kind}`\n\n{heading(stage)}{own if own.count(chr(10)) > 3 else ''}")
    parts.append(f"## `process_form.json`\n\n{heading(ProcessForm)}{table(ProcessForm)}")
    return "".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
