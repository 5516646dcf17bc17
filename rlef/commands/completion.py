"""`rlef completion`: a shell's script that completes commands, options, files, stages and the keys of a config."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, get_args

from rlef.commands.stage import STAGES

if TYPE_CHECKING:
    from pydantic import BaseModel

SHELLS = ("bash", "zsh", "fish")
# Functions of each shell: the stages of the config on the line (as the shipped ones are written; zsh and fish: their kinds), and all keys.
PREAMBLE = {
    "bash": """
_rlef_stages() {{
  local file found
  for file in "${{COMP_WORDS[@]}}"; do
    [[ $file == *.y?(a)ml && -r $file ]] && found=$(sed -n '/^stages:/,/^[^ #]*:/s/^  \\([A-Za-z0-9_-]\\+\\):.*/\\1/p' "$file")
  done
  compgen -W "${{found:-{kinds}}}" -- "$1"
}}
_rlef_keys() {{ compgen -W "{keys}" -- "$1"; }}
""",
    "zsh": """
_rlef_stages() {{ compadd -- {kinds}; }}
_rlef_keys() {{ compadd -S '' -- {keys}; }}
""",
    "fish": """
function _rlef_stages; string split ' ' '{kinds}'; end
function _rlef_keys; string split ' ' '{keys}'; end
""",
}
# A key is followed by its value, without a space.
AT_THE_END = """
_rlef() {
  _shtab_rlef "$@"
  [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2> /dev/null
  return 0
}
complete -o bashdefault -F _rlef rlef
"""


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "completion",
        help="print a shell's completion script: commands, options, files, stages, keys",
        description="bash: rlef completion bash > ~/.local/share/bash-completion/completions/rlef\n"
        "zsh:  rlef completion zsh > a file _rlef in a folder of $fpath\n"
        "fish: rlef completion fish > ~/.config/fish/completions/rlef.fish",
        epilog="example: rlef completion bash",
    )
    command.add_argument("shell", choices=SHELLS, help="whose script")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """`options.parser`: that of the whole command line."""
    print(script(options.parser, options.shell))
    return 0


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Of `parser`, whose arguments are told what completes them."""
    import shtab

    stages, overrides = ({"bash": name, "zsh": name, "fish": f"({name})"} for name in ("_rlef_stages", "_rlef_keys"))
    config = shtab.glob("*.yaml", "*.yml")
    how = {"overrides": overrides, "start": stages, "only": stages, "config": config, "file": config}
    how |= dict.fromkeys(("source", "target", "data", "test"), shtab.FILE) | dict.fromkeys(("model", "teacher_model"), shtab.DIRECTORY)
    for command in _commands(parser):
        for action in command._actions:
            if action.dest in how and not action.choices:
                folder = action.dest == "config" and command.prog.endswith("report")
                vars(action)["complete"] = shtab.DIRECTORY if folder else how[action.dest]
    preamble: Any = {shell: PREAMBLE[shell].format(kinds=" ".join(STAGES), keys=" ".join(keys()))}
    text = shtab.complete(parser, shell, preamble=preamble)
    return text + AT_THE_END if shell == "bash" else text


def _commands(parser: argparse.ArgumentParser) -> Iterable[argparse.ArgumentParser]:
    return [one for action in parser._actions if isinstance(action, argparse._SubParsersAction) for one in action.choices.values()]


def keys() -> list[str]:
    """Every key as an override begins, `ppo.iterations=`; those of stages under the name of their kind."""
    from rlef.config import STAGE_TYPES, Config

    sections: dict[str, Any] = {name: field.annotation for name, field in Config.model_fields.items() if name != "stages"}
    return [key for name, section in (sections | STAGE_TYPES).items() for key in _keys(section, name)]


def _keys(section: type[BaseModel], name: str) -> list[str]:
    from pydantic import BaseModel

    found = []
    for key, field in section.model_fields.items():
        if f"{name}.{key}" == "launch.hosts":
            continue  # read from the hostfile, never given
        parts = [one for one in (field.annotation, *get_args(field.annotation)) if isinstance(one, type) and issubclass(one, BaseModel)]
        found += [one for part in parts for one in _keys(part, f"{name}.{key}")] or [f"{name}.{key}="]
    return found
