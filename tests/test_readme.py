"""What the pages say is so: their commands parse, their keys and files exist, the file tree is whole, what is public says what it is."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

import reward_models.cli
import rlef.cli
from rlef.commands.completion import keys
from rlef.config import STAGE_TYPES
from rlef.errors import UserError
from rlef.load_config import load_config

ROOT = Path(__file__).parents[1]
PAGES = {
    str(page.relative_to(ROOT)): page.read_text(encoding="utf-8")
    for page in (
        ROOT / "README.md",
        *(ROOT / "configs").glob("*.md"),
        *(ROOT / "reward_models").glob("*.md"),
        *(ROOT / "rlef").glob("*.md"),
        *(ROOT / "scripts").glob("*.md"),
    )
}
LINES = {"rlef": rlef.cli, "python -m rlef": rlef.cli, "python -m reward_models": reward_models.cli}
BEGINS = re.compile(r"(?:\w+=\S+ )*(rlef|python -m rlef|python -m reward_models|python scripts/\S+|bash scripts/\S+)(?=$| )")
STANDS_FOR = {"CONFIG": "configs/quickstart.yaml", "FORMAT": "steps", "N": "1", "STAGE": "sft"}
NOT_HERE = ("no such file", "no such config file", "neither a folder nor a hub id", "pip install", "no such package")


def commands(page):
    """The commands of a page: in its code, and where a line of a block begins with one."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page, re.M | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", "").splitlines()]
    prose = re.sub(r"^```.*?^```", "", page, flags=re.M | re.DOTALL)
    inline = re.findall(r"`([^`]+)`", prose)
    found = [re.split(r"  +|\s+#|\s&&\s|; ", text.strip())[0] for text in (*lines, *inline)]
    return list(dict.fromkeys(text for text in found if BEGINS.match(text)))


COMMANDS = [(page, command) for page, text in PAGES.items() for command in commands(text)]


@pytest.mark.parametrize("page,command", COMMANDS, ids=[f"{page}: {command}" for page, command in COMMANDS])
def test_every_command_is_right(page, command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    program = BEGINS.match(command)[1]
    words = shlex.split(re.sub(r"\[.*?\]|\.\.\.$| \.\.\. ", " ", command[command.index(program) + len(program) :]))
    words = [STANDS_FOR.get(word, word) for word in words if word != "..."]
    if program not in LINES:
        script = ROOT / program.split()[1]
        text = script.read_text(encoding="utf-8")
        options = [word.split("=")[0] for word in words if word.startswith("--")]
        assert [option for option in options if f'"{option}"' not in text] == []
        return
    cli = LINES[program]
    _, known = cli.parser()
    if words and words[0].startswith("{"):
        assert set(words[0].strip("{}").split(",")) == set(known)
    elif len(words) < 2 or words[1:] == ["--help"]:
        assert not words or words[0] in known or words[0].startswith("--")
    else:
        try:
            options = cli.parse(words)
        except SystemExit:
            told = capsys.readouterr().err
            assert "arguments are required" in told and (len(words) < 4 or "..." in command), told  # named by some of its options
            return
        if (
            words[0] != "report"
            and getattr(options, "overrides", None) is not None
            and (options.overrides or options.config.startswith("configs/"))
        ):
            _right(options.config, options.overrides, ours=options.config in command)


def _right(file, overrides, *, ours):
    """Loads, but for files that a user brings; of a config of the user's own only the keys are known."""
    try:
        load_config(file if Path(file).suffix == ".yaml" and Path(file).is_file() else "configs/quickstart.yaml", overrides)
    except UserError as error:
        lines = error.problem.splitlines()
        wrong = lines[1:] if "mistake" in lines[0] else lines
        allowed = NOT_HERE if ours else (*NOT_HERE, "no multiple of")
        assert all(any(word in line for word in allowed) for line in wrong), error


def test_the_pages_have_commands_of_each_kind():
    assert {BEGINS.match(command)[1].split("/")[0] for _, command in COMMANDS} >= {
        "rlef",
        "python -m reward_models",
        "python scripts",
        "bash scripts",
    }
    assert {page for page, _ in COMMANDS} >= {"README.md", "configs/README.md", "configs/MIGRATION.md", "reward_models/README.md"}


@pytest.mark.parametrize("page", PAGES)
def test_keys_in_the_prose_are_keys(page):
    """`ppo.kl_coef`, `label.orders: 2`, `ppo: {rollout: {colocated: true}}` name what there is."""
    known = {key.removesuffix("=") for key in keys()}
    known |= {key.rpartition(".")[0] for key in known}
    sections = {key.partition(".")[0] for key in known}
    named = re.findall(r"`(\w+\.[\w.]+)(?:[:=][^`]*)?`", PAGES[page])
    named = [
        name for name in named if name.split(".")[0] in sections and not name.endswith((".py", ".json", ".jsonl", ".yaml", ".gz", ".html"))
    ]
    assert [name for name in named if name not in known] == []
    inner = re.findall(r"`(\w+): \{(\w+):", PAGES[page])
    assert [f"{kind}.{key}" for kind, key in inner if kind in STAGE_TYPES and f"{kind}.{key}" not in known] == []


# ---------------------------------------------------------------------------------------------- the file tree


def tree():
    return re.search(r"^## The files\n+```\n(.*?)^```", PAGES["README.md"], re.M | re.DOTALL)[1]


def files():
    """What a reader may look for: modules, scripts, configs."""
    for folder in ("rlef", "reward_models", "scripts", "configs"):
        yield from (
            file.relative_to(ROOT)
            for file in (ROOT / folder).rglob("*")
            if file.is_file() and file.suffix in (".py", ".sh", ".slurm", ".yaml", ".md")
        )


def test_every_file_stands_in_the_tree():
    words = set(re.findall(r"[\w.]+", tree().replace("(.py .yaml)", "")))
    own = {file for file in files() if file.stem not in ("__init__", "__main__") and "__pycache__" not in file.parts}
    missing = sorted(str(file) for file in own if not words & {file.name, file.stem})
    missing += sorted({str(file.parent) for file in own if len(file.parts) > 2 and file.parts[1] not in words})
    assert missing == []


def test_nothing_else_stands_in_the_tree():
    names = {file.name for file in files()} | {file.name for file in (ROOT / "tests").rglob("*.py")} | {"operations.yaml"}
    told = set(re.findall(r"(?<![\w.])\w+\.(?:py|sh|slurm|yaml|md)\b", tree()))
    assert sorted(told - names) == []
    folders = {
        path.name
        for top in ("rlef", "reward_models", "scripts", "configs", "tests")
        for path in [ROOT / top, *(ROOT / top).rglob("*")]
        if path.is_dir()
    }
    assert sorted(set(re.findall(r"(?<![\w.])(\w+)/(?=\s|$)", tree())) - folders) == []


# ---------------------------------------------------------------------------------------------- docstrings

SHORT = 6  # lines: a function with no more is told by its name and its file


def undocumented(file):
    code = ast.parse(file.read_text(encoding="utf-8"))
    commands = file.parent.name == "commands"  # whose docstring says what `add` and `run` are
    if code.body and ast.get_docstring(code) is None:
        yield f"{file.relative_to(ROOT)}"
    for node in code.body:
        told = not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or ast.get_docstring(node) is not None
        if told or node.name.startswith("_") or (commands and node.name in ("add", "run")):
            continue
        if isinstance(node, ast.ClassDef) or len(ast.unparse(node).splitlines()) > SHORT:
            yield f"{file.relative_to(ROOT)}: {node.name}"


@pytest.mark.parametrize("package", ["rlef", "reward_models"])
def test_what_is_public_says_what_it_is(package):
    assert [name for file in sorted((ROOT / package).rglob("*.py")) for name in undocumented(file)] == []
