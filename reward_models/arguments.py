"""The parser of both command lines: examples in its help stand whole, and a mistake is one message in the style of UserError."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from reward_models.nearest import meant
from reward_models.terminal import inert

_CHOICE = re.compile(r"invalid choice: '?(?P<given>.*?)'? \(choose from (?P<known>.*)\)")


class Parser(argparse.ArgumentParser):
    """Give it an `epilog` of lines `example: COMMAND`, each a command as it is typed. Subparsers are of this class, too."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**settings)

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """As argparse's, and a number or word that is the default stands in the help."""
        told = settings.get("help") or ""
        if isinstance(settings.get("default"), int | float | str) and "(default" not in told and "action" not in settings:
            settings["help"] = f"{told} (default: %(default)s)".lstrip()
        return super().add_argument(*names, **settings)

    def error(self, message: str) -> NoReturn:
        """`error: PROBLEM`, below it how to mend it; ends the process with 2."""
        message = message.removeprefix("argument ")
        if wrong := _CHOICE.search(message):
            known = [word.strip("' ") for word in wrong["known"].split(",")]
            message = f"{message[: wrong.start()]}{wrong['given']!r} is none of {', '.join(known)}{meant(wrong['given'], known)}"
        example = next((line for line in (self.epilog or "").splitlines() if line.startswith("example: ")), "")
        fix = f"e.g. `{example.removeprefix('example: ')}`; " if example else ""
        print(inert(f"error: {message}\n  fix: {fix}`{self.prog} --help` has all options"), file=sys.stderr)
        sys.exit(2)

    def unrecognized(self, words: Sequence[str]) -> NoReturn:
        """Of words that no argument takes, with the nearest option."""
        options = re.findall(r"(?<!\w)--?[\w-]+", self.format_usage())
        self.error(f"unrecognized arguments: {' '.join(words)}{meant(words[0].split('=')[0], options)}")
