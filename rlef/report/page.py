"""The page: sections in order, with Bokeh, styles, scripts and data inside, behind a policy of its own that lets nothing be fetched."""

from __future__ import annotations

import json
import traceback
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from rlef.errors import UserError
from rlef.report import comparison, evolution, lineage, policies, rewards, rollouts, summary, timeline, training
from rlef.report.data import Run
from rlef.report.parts import Section, text
from rlef.report.plots import PALETTE

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
SCRIPTS = ("page.js", "elements.js", "plots.js", "viewer.js", "lineage.js", "rollouts.js")


def write_report(*folders: Path, out: Path | None = None) -> Path:
    """Writes `out`, without it report.html in the first run's folder, comparison.html where there are several.

    Raises UserError where a folder holds no run, or one with a damaged file.
    """
    for folder in folders:
        if not (folder / "config.yaml").is_file():
            raise UserError(f"{folder}: no config.yaml there", fix="give a run directory, e.g. runs/quickstart")
    try:
        whole = page([Run(folder) for folder in folders])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {error}, {Path(where.filename).name} line {where.lineno}"
        raise UserError(
            f"{', '.join(map(str, folders))}: no report: a file there is not as rlef writes it ({told:.300})", fix="make that stage again"
        ) from error
    target = out or folders[0] / ("report.html" if len(folders) == 1 else "comparison.html")
    if not target.parent.is_dir():
        raise UserError(f"{target.parent}: no such folder", fix="make it, or give another --out")
    partial = target.with_name(target.name + ".partial")
    partial.write_text(whole, encoding="utf-8")
    partial.replace(target)
    return target


def page(runs: Sequence[Run]) -> str:
    """The first run in full; with more than one, first how they compare."""
    run = runs[0]
    found = [
        comparison.section(runs),
        policies.section(run),
        timeline.section(run),
        *evolution.sections(run),
        lineage.section(run),
        *rewards.sections(run),
        *training.sections(run),
        rollouts.section(run),
    ]
    sections = [one for one in found if one is not None]
    anchors = {one.anchor: one.title for one in sections}
    links = "".join(f"<a href='#{text(one.anchor)}'>{text(_short(one.title))}</a>" for one in sections)
    body = "".join(
        f"<section aria-labelledby='{text(one.anchor)}'><h2 id='{text(one.anchor)}'>{text(one.title)}</h2>{one.body}</section>"
        for one in sections
    )
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>"
        f'<meta http-equiv=Content-Security-Policy content="{POLICY}"><meta name=color-scheme content="light dark">'
        f"<title>rlef: {text(run.name)}</title><style>{_file('page.css')}</style></head><body><a class=skip href='#main'>Skip the menu</a>"
        f"<nav aria-label=Sections><strong>{text(run.name)}</strong><a href='#health'>Health</a>{links}</nav><main id=main>"
        f"<h1>{text(run.name)}</h1>{summary.as_html(run, anchors)}{body}</main>{_data(sections)}{_scripts()}</body></html>"
    )


def _short(title: str) -> str:
    return title.split(":")[0]


def _data(sections: Sequence[Section]) -> str:
    """What the scripts read. No text in it can end its element: every < is written as an escape."""
    plots = ",".join(f"{json.dumps(one.key)}:{one.json}" for section in sections for one in section.plots)
    blocks = {"plots": f"{{{plots}}}", "palette": json.dumps({value: name for name, value in PALETTE.items()})}
    blocks |= {f"{section.anchor}-data": json.dumps(section.viewer, separators=(",", ":")) for section in sections if section.viewer}
    return "".join(
        f"<script type=application/json id={name}>{data.replace('<', chr(92) + 'u003c')}</script>" for name, data in blocks.items()
    )


def scripts() -> list[str]:
    """All code of the page: Bokeh's and ours."""
    from bokeh.resources import Resources

    bokeh = "".join(Resources(mode="inline", components=["bokeh"], minified=True, log_level="error").js_raw)
    return [bokeh.replace("</script", "<\\/script"), *(_file(name) for name in SCRIPTS)]


def _scripts() -> str:
    return "".join(f"<script>{script}</script>" for script in scripts())


def _file(name: str) -> str:
    return resources.files("rlef.report").joinpath(name).read_text(encoding="utf-8")
