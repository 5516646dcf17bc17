"""One self-contained page of a run, finished or not: it only reads the run directory, and every model text in it is escaped."""

from __future__ import annotations

import html
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlef.charts import line_chart
from rlef.errors import UserError
from rlef.records import Eliminated, Problem, Rollout, read_jsonl
from rlef.stages.context import StageContext

STAGE_VERSION = 1
PER_OPERATION, PER_RULE, ROLLOUTS = 2, 2, 12  # examples shown

STYLE = """
:root{--bg:#fff;--fg:#1b1f24;--dim:#59636e;--line:#d5dbe1;--box:#f6f8fa;--c1:#0969da;--c2:#bf3989;--c3:#1a7f37;--c4:#9a6700}
@media(prefers-color-scheme:dark){:root{--bg:#0d1117;--fg:#e6edf3;--dim:#9198a1;--line:#30363d;--box:#161b22;--c1:#58a6ff;--c2:#f778ba;--c3:#56d364;--c4:#e3b341}}
body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:0 auto;padding:16px}
h1{font-size:26px;margin:8px 0}h2{font-size:19px;margin:34px 0 8px;border-bottom:1px solid var(--line)}h3{font-size:15px;margin:16px 0 4px}
table{border-collapse:collapse;display:block;overflow-x:auto;margin:8px 0}td,th{padding:4px 10px;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}th{color:var(--dim);font-weight:600}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(280px,1fr));gap:10px}svg{background:var(--box);border-radius:6px;width:100%}
svg text{fill:var(--fg);font:12px system-ui}svg .a{fill:var(--dim);font-size:10px}svg .g{stroke:var(--line)}
.card{background:var(--box);border-radius:6px;padding:8px 12px;margin:8px 0;overflow-wrap:anywhere}.dim{color:var(--dim)}
.step{display:block;border-left:6px solid;padding-left:8px;margin:2px 0;white-space:pre-wrap;font-family:ui-monospace,monospace;font-size:13px}
"""


def run(ctx: StageContext) -> dict:
    """Writes report.html into the run directory."""
    page = write_report(ctx.folder.parent)
    return {"bytes": page.stat().st_size}


def write_report(run_dir: Path) -> Path:
    """Raises UserError where the folder holds no run."""
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"{run_dir}: no config.yaml there", fix="give a run directory, e.g. runs/quickstart")
    config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    manifests = {name: _json(run_dir / name / "manifest.json") for name in config["stages"]}
    kinds = {name: stage["kind"] for name, stage in config["stages"].items()}
    metrics = _metrics(run_dir / "metrics.jsonl")
    results: dict[str, Any] = {}
    for name, kind in kinds.items():
        if kind == "evaluate":
            results |= _json(run_dir / name / "results.json")
    sections = [
        _summary(run_dir, manifests, kinds, results),
        _comparison(results),
        *(_evolution(run_dir / name, manifests[name]) for name, kind in kinds.items() if kind == "evolve"),
        *(_reward_model(name, kind, manifests[name], metrics) for name, kind in kinds.items() if kind in ("irm", "prm")),
        *(_training(name, kind, metrics) for name, kind in kinds.items() if kind in ("sft", "ppo", "dpo", "rft")),
        *(_rollouts(name, run_dir / name / "rollouts.jsonl") for name, kind in kinds.items() if kind == "ppo"),
        _timeline(manifests, kinds),
    ]
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>rlef: {_e(run_dir.name)}</title><style>{STYLE}</style><body>{''.join(sections)}</body></html>"
    )
    target = run_dir / "report.html"
    partial = run_dir / "report.html.partial"
    partial.write_text(page, encoding="utf-8")
    partial.replace(target)
    return target


# --------------------------------------------------------------------------------------------- sections


def _summary(run_dir: Path, manifests: dict[str, Any], kinds: dict[str, str], results: dict[str, Any]) -> str:
    done = sum(bool(manifest) for name, manifest in manifests.items() if kinds[name] != "report")
    total = sum(kind != "report" for kind in kinds.values())
    seconds = sum(manifest.get("seconds", 0) for manifest in manifests.values())
    sentences = [f"{done} of {total} stages are done, in {seconds / 60:.1f} minutes."]
    for name, kind in kinds.items():
        result = manifests[name].get("result", {})
        if kind == "evolve" and result:
            flawed = result.get("flawed")
            aside = f"; {flawed:.0%} of the kept ones are flawed, which only the symbolic teacher knows" if flawed else ""
            sentences.append(f"{result['made']} evolutions were made and {result['kept']} kept{aside}.")
        if kind == "irm" and result:
            sentences.append(f"The instruction reward model orders {result['pair_accuracy']:.0%} of held-out pairs as the judge does.")
        if kind == "prm" and result:
            sentences.append(f"The process reward model tells right from wrong steps with an AUROC of {_number(result['step_auroc'])}.")
    for policy, row in results.items():
        if "gain" in row:
            low, high = row["gain"]["ci95"]
            sure = "above" if low > 0 else "below" if high < 0 else "not clearly different from"
            sentences.append(
                f"{policy} answers {row['pass@1']:.1%} of the held-out problems, {sure} {row['gain']['over']} ({row['gain']['mean']:+.1%}, 95 % interval {low:+.1%} to {high:+.1%})."
            )
    return f"<h1>{_e(run_dir.name)}</h1><p>{' '.join(_e(sentence) for sentence in sentences)}</p>"


def _comparison(results: dict[str, Any]) -> str:
    if not results:
        return ""
    shares = sorted(
        {key for row in results.values() for key in row if "@" in key or key.startswith("best_of")} - {"pass@1", "sampled_pass@1"}
    )
    depths = sorted({depth for row in results.values() for depth in row.get("by_depth", {})}, key=int)
    head = ["policy", "n", "pass@1", "95 %", *shares, "no answer", *(f"depth {depth}" for depth in depths)]
    rows = []
    for policy, row in results.items():
        low, high = row["ci95"]
        rows.append(
            [
                policy,
                row["n"],
                _percent(row["pass@1"]),
                f"{low:.1%} – {high:.1%}",
                *(_percent(row.get(key)) for key in shares),
                _percent(row["extraction_failures"]),
            ]
            + [_percent(row["by_depth"].get(depth)) for depth in depths]
        )
    return "<h2>Policies on the same held-out problems</h2>" + _table(head, rows)


def _evolution(folder: Path, manifest: dict[str, Any]) -> str:
    if not manifest:
        return ""
    result = manifest["result"]
    evolved = _rows(folder / "evolved.jsonl", Problem)
    dropped = _rows(folder / "eliminated.jsonl", Eliminated)
    texts = {problem.id: problem.question for problem in evolved}
    texts |= {problem.id: problem.question for problem in _rows(folder.parent / "problems" / "seeds.jsonl", Problem)}
    shown: dict[str, list[str]] = defaultdict(list)
    for problem in evolved:
        if problem.lineage and len(shown[problem.lineage.operation]) < PER_OPERATION and problem.lineage.parent in texts:
            flaw = f" <span class=dim>(flawed: {_e(problem.truth.flaw)})</span>" if problem.truth and problem.truth.flaw else ""
            shown[problem.lineage.operation].append(
                f"<div class=card><span class=dim>before:</span> {_e(texts[problem.lineage.parent])}<br><span class=dim>after:</span> {_e(problem.question)}{flaw}</div>"
            )
    rules: dict[str, list[str]] = defaultdict(list)
    for row in dropped:
        if len(rules[row.rule]) < PER_RULE:
            rules[row.rule].append(f"<div class=card>{_e(row.problem.question)}</div>")
    parts = [f"<h2>What evolved</h2><p>{result['made']} made, {result['kept']} kept.</p>"]
    parts.append(_table(["operation", "kept"], sorted(result["operations"].items())))
    parts += [f"<h3>{_e(operation)}</h3>{''.join(cards)}" for operation, cards in sorted(shown.items())]
    parts.append("<h2>What was eliminated</h2>" + _table(["rule", "rows"], sorted(result["eliminated"].items())))
    parts += [f"<h3>{_e(rule)}</h3>{''.join(cards)}" for rule, cards in sorted(rules.items())]
    return "".join(parts)


def _reward_model(name: str, kind: str, manifest: dict[str, Any], metrics: dict[str, dict[str, list]]) -> str:
    result = manifest.get("result", {}) if manifest else {}
    title = "Instruction reward model" if kind == "irm" else "Process reward model"
    scalars = [(key, _number(value)) for key, value in result.items() if isinstance(value, int | float) and not isinstance(value, bool)]
    parts = [f"<h2>{title} ({_e(name)})</h2>", _charts(line_chart("loss", {"loss": metrics[name].get(f"{kind}/loss", [])}))]
    parts.append(_table(["held-out measure", "value"], scalars))
    for key, label in (("by_flaw", "sound against flawed, by flaw"), ("by_gap", "by rank gap"), ("by_depth", "step AUROC by depth")):
        if result.get(key):
            parts.append(f"<h3>{label}</h3>" + _table(list(result[key]), [[_number(value) for value in result[key].values()]]))
    return "".join(parts)


def _training(name: str, kind: str, metrics: dict[str, dict[str, list]]) -> str:
    found = metrics[name]
    if not found:
        return ""
    if kind == "ppo":
        charts = [
            line_chart(
                "reward (mean of samples)",
                {"total": found.get("reward/total", []), "r_I": found.get("reward/instruction", []), "r_A": found.get("reward/answer", [])},
            ),
            line_chart("exact match of samples (for the eye only)", {"": found.get("monitor/exact_match", [])}),
            line_chart("KL to the start, nats an answer", {"": found.get("ppo/kl", [])}),
            line_chart("length, tokens", {"": found.get("rollout/length", [])}),
            line_chart("steps an answer", {"": found.get("rollout/steps", [])}),
            line_chart("entropy, nats a token", {"": found.get("ppo/entropy", [])}),
            line_chart("clip fraction", {"": found.get("ppo/clip_fraction", [])}),
            line_chart("explained variance of the critic", {"": found.get("value/explained_variance", [])}),
            line_chart("value loss", {"": found.get("value/loss", [])}),
            line_chart("finished answers", {"": found.get("rollout/finished", [])}),
            line_chart(
                "seconds an iteration", {part: found.get(f"time/{part}", []) for part in ("rollout", "reward", "forward", "update")}
            ),
            line_chart("tokens a second", {"": found.get("perf/tokens_per_second", [])}),
        ]
    else:
        losses = {"train": found.get(f"{kind}/loss", []), "held back": found.get(f"{kind}/eval_loss", [])}
        charts = [
            line_chart("loss", losses),
            line_chart("reward accuracy", {"": found.get(f"{kind}/rewards_accuracies", [])}),
            line_chart("reward margin", {"": found.get(f"{kind}/rewards_margins", [])}),
        ]
    return f"<h2>{_e(kind.upper())} ({_e(name)})</h2>" + _charts(*charts)


def _rollouts(name: str, file: Path) -> str:
    rows = _rows(file, Rollout)[:ROLLOUTS]
    if not rows:
        return ""
    cards = []
    for row in rows:
        lines = [line for line in row.text.splitlines() if line.strip()]
        steps = []
        for place, line in enumerate(lines):
            score = row.step_scores[place] if place < len(row.step_scores) else None
            colour = f"hsl({120 * score:.0f} 65% 45%)" if score is not None else "gray"
            steps.append(
                f'<span class=step style="border-color:{colour}">{_e(line)} <span class=dim>{"" if score is None else f"{score:.2f}"}</span></span>'
            )
        cards.append(
            f"<div class=card>{_e(row.question)}{''.join(steps)}<span class=dim>r_I {row.instruction:.2f} × r_A {row.answer:.2f} = {row.total:.2f}, "
            f"{row.length} tokens{'' if row.finished else ', cut off'}</span></div>"
        )
    return f"<h2>Last samples of {_e(name)}</h2>{''.join(cards)}"


def _timeline(manifests: dict[str, Any], kinds: dict[str, str]) -> str:
    longest = max((manifest.get("seconds", 0) for manifest in manifests.values()), default=0) or 1
    rows = []
    for name, manifest in manifests.items():
        if kinds[name] == "report":
            continue
        seconds = manifest.get("seconds") if manifest else None
        width = 100 * (seconds or 0) / longest
        bar = f'<div style="background:var(--c1);height:10px;width:{width:.0f}%;min-width:1px"></div>'
        rows.append(f"<tr><td>{_e(name)}<td class=n>{'not done' if seconds is None else f'{seconds:.0f} s'}<td style='width:60%'>{bar}")
    return f"<h2>Stages</h2><table style='display:table;width:100%'>{''.join(rows)}</table>"


# ---------------------------------------------------------------------------------------------- helpers


def _e(value: object) -> str:
    return html.escape(str(value))


def _number(value: float) -> str:
    return (
        "–"
        if value is None or (isinstance(value, float) and math.isnan(value))
        else f"{value:.3g}"
        if isinstance(value, float)
        else str(value)
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    body = "".join("<tr>" + "".join(f"<td{' class=n' if index else ''}>{_e(cell)}" for index, cell in enumerate(row)) for row in rows)
    return f"<table><tr>{''.join(f'<th>{_e(cell)}' for cell in head)}{body}</table>"


def _charts(*charts: str) -> str:
    return f"<div class=charts>{''.join(charts)}</div>"


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _rows(file: Path, record: Any) -> list[Any]:
    return list(read_jsonl(file, record)) if file.is_file() and file.stat().st_size else []


def _metrics(file: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """stage -> metric -> [(step, value)]"""
    found: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the last line of a run that was killed
                continue
            for name, value in row.items():
                if name not in ("stage", "step", "time") and value is not None:
                    found[row["stage"]][name].append((row["step"], value))
    return found
