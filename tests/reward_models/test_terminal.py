"""What acts in a terminal is shown as its code; all else stays as it is."""

from __future__ import annotations

import pytest

from reward_models.terminal import inert


@pytest.mark.parametrize(
    "text,shown",
    [
        ("\x1b]52;c;cm0=\x07", "\\x1b]52;c;cm0=\\x07"),
        ("a\x9b31mb\x00\r", "a\\x9b31mb\\x00\\r"),
        ("\u202egnp.exe\u2066\ud800", "\\u202egnp.exe\\u2066\\ud800"),
        ("Ann\thas 3 × ½ 数 😀\n[bold]", "Ann\thas 3 × ½ 数 😀\n[bold]"),
    ],
)
def test_inert(text, shown):
    assert inert(text) == shown
