"""Texts of others for a terminal: what would act there (escapes, controls, marks that turn the line round) is shown as its code."""

from __future__ import annotations

import re

_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def inert(text: str) -> str:
    """The text with each such character as in a Python literal, e.g. \\x1b; newlines and tabs stay."""
    return _ACTING.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
