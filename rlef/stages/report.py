"""Writes report.html into the run directory when all else is done; `rlef report` writes it at any time."""

from __future__ import annotations

from rlef.report.page import write_report
from rlef.stages.context import StageContext

STAGE_VERSION = 1


def run(ctx: StageContext) -> dict:
    page = write_report(ctx.folder.parent)
    return {"bytes": page.stat().st_size}
