"""What may import what: two fences at run time, the order of layers and the homes of heavy packages from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each layer imports only from those before it; packages of one row are siblings.
LAYERS = [
    {"reward_models"},
    {
        "errors",
        "config",
        "rounds",
        "load_config",
        "hosts",
        "records",
        "teacher",
        "answers",
        "prompts",
        "sources",
        "formats",
        "convert",
        "children",
        "holder",
        "run_dir",
        "trackers",
        "lineage",
        "tracking",
        "symbolic",
        "planning",
        "views",
        "cards",
        "starter",
    },
    {"models"},
    {"rollout", "engines"},
    {"evolution", "rl"},
    {"report"},
    {"stages"},
    {"processes"},
    {"pipeline"},
    {"commands"},
    {"cli", "__main__"},
]
# pydantic, PyYAML and what they bring.
SCHEMA = {"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection", "yaml"}
HOMES = {
    "bokeh": {"rlef/report/page.py", "rlef/report/plots.py"},
    "deepspeed": {"reward_models/operators.py", "reward_models/zero.py", "rlef/engines/deepspeed_engine.py", "rlef/processes/ranks.py"},
    "vllm": {"rlef/rollout/colocated.py"},
    "trl": {"rlef/stages/sft.py", "rlef/stages/dpo.py", "rlef/stages/grpo.py", "rlef/stages/rollouts.py"},
    "wandb": {"rlef/trackers/wandb.py", "rlef/trackers/wandb_records.py"},
    "shtab": {"rlef/commands/completion.py"},
    "datasketch": {"rlef/evolution/decontamination.py"},
    "openai": {"rlef/rollout/remote.py"},
    "fastapi": {"reward_models/serving/app.py"},
    "starlette": {"reward_models/serving/app.py"},
    "uvicorn": {"reward_models/serving/server.py"},
    "prometheus_client": {"reward_models/serving/metrics.py"},
}


@cache
def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names if node.module == "rlef"}
    return found


def layer(name: str) -> int:
    return next(index for index, names in enumerate(LAYERS) if name in names)


def test_imports_go_one_way():
    wrong = []
    for file in (ROOT / "rlef").rglob("*.py"):
        own = file.relative_to(ROOT / "rlef").parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for name in imports(file):
            parts = name.split(".")
            if parts[0] != "rlef" or len(parts) == 1 or parts[1] in ("__version__",) or parts[1] == own:
                continue
            # A stage's context names types of the frame for the reader; nothing of it is imported at run time.
            for_a_type = own == "processes" and parts[1] == "pipeline"
            siblings = layer(parts[1]) == layer(own) == 3
            if (layer(parts[1]) > layer(own) or siblings) and not for_a_type:
                wrong.append(f"{file.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_reward_models_never_names_rlef():
    assert [file for file in (ROOT / "reward_models").rglob("*.py") if any(name.split(".")[0] == "rlef" for name in imports(file))] == []


def test_heavy_packages_have_their_homes():
    for package, homes in HOMES.items():
        users = {
            str(file.relative_to(ROOT))
            for folder in ("rlef", "reward_models")
            for file in (ROOT / folder).rglob("*.py")
            if any(name.split(".")[0] == package for name in imports(file))
        }
        assert users == homes, package


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


@pytest.mark.slow
def test_reward_models_imports_with_rlef_and_the_servers_packages_blocked():
    code = """
import sys, importlib, pkgutil
for name in ("rlef", "fastapi", "starlette", "uvicorn", "prometheus_client"):
    sys.modules[name] = None
import reward_models
for module in pkgutil.walk_packages(reward_models.__path__, "reward_models."):
    if module.name != "reward_models.__main__":
        importlib.import_module(module.name)
print("ok")
"""
    assert run(code).strip() == "ok"


def test_config_and_command_line_load_nothing_heavy():
    code = """
import sys
import rlef.cli, rlef.load_config, rlef.pipeline, rlef.planning.shapes
rlef.load_config.load_config("configs/quickstart.yaml")
print([name for name in ("torch", "transformers", "trl", "deepspeed", "vllm", "wandb", "datasets", "bokeh") if name in sys.modules])
"""
    assert run(code).strip() == "[]"


@pytest.mark.parametrize(
    "package,words,allowed",
    [
        ("rlef", ["--help"], set()),
        ("rlef", ["ppo", "--help"], set()),
        ("rlef", ["check", "configs/quickstart.yaml"], SCHEMA),
        ("rlef", ["plan", "configs/quickstart.yaml", "--gpu-memory", "24", "--json"], SCHEMA),
        ("reward_models", ["--help"], SCHEMA),
        ("reward_models", ["train", "--help"], SCHEMA),
    ],
)
def test_what_answers_at_once_imports_few_packages(package, words, allowed):
    """Seconds differ from machine to machine; the packages that are imported do not."""
    code = f"""
import sys
from {package}.cli import main
try:
    code = main({words!r})
except SystemExit as end:
    code = end.code
taken = {{name.partition(".")[0] for name, module in sys.modules.items() if getattr(module, "__file__", None)}}
print(code, *sorted(taken - set(sys.stdlib_module_names)))
"""
    code, *taken = run(code).splitlines()[-1].split()
    started_with = {name for name in taken if name.startswith("_")}  # by Python itself, and __editable__ of a checkout
    assert code == "0" and set(taken) - {"rlef", "reward_models"} - started_with <= allowed
