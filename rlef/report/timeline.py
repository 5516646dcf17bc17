"""Section: the stages one after the other, how long each took and what it cost."""

from __future__ import annotations

from rlef.report.data import Run
from rlef.report.parts import Section, duration, folded, table, text
from rlef.views.compare import paid_usd


def section(run: Run) -> Section:
    """Stages run one after the other: a bar begins where the one before it ends; waits between two commands are not drawn."""
    shown = [name for name in run.of_kind(*set(run.kinds.values())) if run.kinds[name] != "report"]
    seconds = {name: float(run.manifests[name].get("seconds", 0)) for name in shown}
    whole = sum(seconds.values()) or 1.0
    rows, begun = [], 0.0
    for name in shown:
        state, share = run.state(name), seconds[name] / whole
        cost = paid_usd(run.result(name))
        told = f"{duration(seconds[name])} <span class=dim>{share:.0%}</span>" if state == "done" else text(state)
        told += f" · {cost:.2f} USD" if cost is not None else ""
        bar = f"<div class=bar style='margin-left:{100 * begun / whole:.2f}%;width:{100 * share:.2f}%'></div>" if seconds[name] else ""
        rows.append(f"<tr><th scope=row>{text(name)}<td class=n>{told}<td class=lane>{bar}")
        begun += seconds[name]
    paid = [cost for name in shown if (cost := paid_usd(run.result(name))) is not None]
    total = f"<p>{duration(begun)} of work in all" + (f", {sum(paid):.2f} USD paid to the teacher" if paid else "") + ".</p>"
    return Section(
        "stages", "Stages, time and cost", f"{total}<table class=timeline><tbody>{''.join(rows)}</table>{_teacher(run)}{_made_by(run)}"
    )


def _teacher(run: Run) -> str:
    """What each stage asked of a paid endpoint."""
    rows = []
    for name in run.kinds:
        asked = run.result(name).get("teacher")
        if isinstance(asked, dict):
            cost = "–" if asked.get("cost_usd") is None else f"{asked['cost_usd']:.2f}"
            rows.append(
                [name, *(f"{asked.get(key) or 0:,}" for key in ("calls", "journal_hits", "prompt_tokens", "completion_tokens")), cost]
            )
    head = ["stage", "calls", "found in the journal", "prompt tokens", "completion tokens", "USD"]
    return f"<h3>What the teacher was asked</h3>{table(head, rows)}" if rows else ""


def _made_by(run: Run) -> str:
    """Versions and machine."""
    info = run.info
    versions = info.get("versions")
    rows = [[name, value] for name, value in (versions.items() if isinstance(versions, dict) else ())]
    rows += [[name, info[name]] for name in ("python", "git", "seed", "cpus") if info.get(name) is not None]
    return folded("Made with", table(["of", "value"], rows)) if rows else ""
