"""Whose licences stand behind what a run makes, as far as the run knows, and its settings without what names a machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rlef.config import Config

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def base_of(config: Config) -> str | None:
    """The base model's hub id, where it has one."""
    path = config.model.path
    return path if path is not None and HUB_ID.fullmatch(path) and not Path(path).exists() else None


def licences(config: Config, base_licence: str | None = None, *, weights: bool = True) -> list[str]:
    """What is known, and of the rest that it is not. `weights`: the policy had a part in it."""
    lines = []
    if not weights:
        pass
    elif config.model.path is None:
        lines.append("- weights: trained from random initialisation, no base model")
    elif base_licence:
        lines.append(f"- base model: {base_of(config) or 'a local model'}, {base_licence} by its own card")
    else:
        lines.append(f"- base model: {base_of(config) or 'a local model'}; its licence is not known here and may bind this: look it up")
    for name, stage in config.stages.items():
        if stage.kind == "problems" and stage.source == "symbolic":
            lines.append(f"- problems (`{name}`): made by a program, no data of others")
        elif stage.kind == "problems":
            lines.append(f"- problems (`{name}`): {nameless(stage.path)}; their licence is not known here: look it up")
    if config.teacher.kind == "symbolic":
        lines.append("- teacher and judge: a program")
    else:
        teacher = nameless(config.teacher.model) if config.teacher.model else "the policy itself"
        lines.append(f"- teacher and judge: {teacher}; its terms may limit what is trained on its texts")
    return lines


def stated_licence(card: str) -> str | None:
    """The `license:` of a model card's front matter."""
    found = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    line = re.search(r"^license: *([\w.+-]+) *$", found[1], re.MULTILINE) if found else None
    return line[1] if line else None


def nameless(settings: Any) -> Any:
    """Without what names this machine or others: of a path its last part, of an address nothing."""
    if isinstance(settings, dict):
        return {key: nameless(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [nameless(value) for value in settings]
    if isinstance(settings, str) and "://" in settings:
        return "a server"
    return Path(settings).name if isinstance(settings, str) and "/" in settings and not HUB_ID.fullmatch(settings) else settings
