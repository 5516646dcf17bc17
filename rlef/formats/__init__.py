"""Rows of other projects' label and data files as records, and records as such rows: the table of formats. No files here.

Rows of one kind can become each other, and nothing is lost on the way. Columns that a format does not know go along in a record's `extra`
and stand beside its own columns; what our rows have and the format does not stands in `rlef_steps`, `rlef_problem` or `rlef_solution`.
What a format cannot hold at all is a ValueError that says why.
"""

from __future__ import annotations

from collections.abc import Mapping

from reward_models.formats import steps
from reward_models.formats.base import Format
from rlef.formats import conversations, pairs

__all__ = ["FORMATS", "Format"]

FORMATS: Mapping[str, Format] = {one.name: one for one in (*steps.FORMATS, *conversations.FORMATS, *pairs.FORMATS)}
