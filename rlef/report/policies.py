"""Section: the policies on the same held-out problems, with intervals."""

from __future__ import annotations

from rlef.report.data import Run
from rlef.report.parts import Section, charts, gain, percent, table
from rlef.report.plots import Plot, intervals, plot


def section(run: Run) -> Section:
    """Of an unfinished run it says how to go on."""
    results = run.results
    if not results:
        return Section("policies", "Policies compared", "<p class=dim>Not evaluated yet: rerun the same command to continue.</p>")
    shares = sorted(
        {key for row in results.values() for key in row if "@" in key or key.startswith("best_of")} - {"pass@1", "sampled_pass@1"}
    )
    over = next((row["gain"]["over"] for row in results.values() if "gain" in row), None)
    difference = f"minus {over} (95% interval)"
    head = ["policy", "problems", "pass@1", "95% interval", *([difference] if over else []), *shares]
    rows = []
    for policy, row in results.items():
        low, high = row["ci95"]
        gains = [gain(row["gain"]) if "gain" in row else "–"] if over else []
        rows.append(
            [policy, row["n"], percent(row["pass@1"]), f"{low:.1%} to {high:.1%}", *gains, *(percent(row.get(key)) for key in shares)]
        )
    drawn = _plots(run, over)
    parts = [
        "<p>Every policy answers the same held-out problems. An interval is where the true value lies with 95% confidence; "
        "a difference is sure where its interval does not hold 0.</p>",
        charts(drawn),
        table(head, rows),
    ]
    voters = max((row.get("vote_n", 0) for row in results.values()), default=0)
    if voters:
        parts.append(
            f"<p class=dim>With k samples, on the first {voters} problems: pass@k, any is right; majority@k, the most frequent answer is; "
            "prm_vote@k, the same weighted by r_A; best_of_k, the sample with the best r_A is.</p>"
        )
    votes = [[policy, gain(row["prm_vote_minus_majority"])] for policy, row in results.items() if "prm_vote_minus_majority" in row]
    if votes:
        parts.append(table(["policy", "vote weighted by r_A minus majority (95% interval)"], votes))
    depths = sorted({depth for row in results.values() for depth in row.get("by_depth", {})}, key=int)
    lost = [
        [policy, percent(row["extraction_failures"]), *(percent(row.get("by_depth", {}).get(depth)) for depth in depths)]
        for policy, row in results.items()
    ]
    parts.append("<h3>pass@1 by depth (reasoning steps), and answers that could not be read</h3>")
    parts.append(table(["policy", "no answer", *(f"depth {depth}" for depth in depths)], lost))
    return Section("policies", "Policies compared", "".join(parts), drawn)


def _plots(run: Run, over: str | None) -> list[Plot]:
    results = run.results
    by_depth = {
        policy: [(float(depth), share) for depth, share in row.get("by_depth", {}).items() if share is not None]
        for policy, row in results.items()
    }
    drawn = [
        intervals("solved greedily (pass@1)", {policy: (row["pass@1"], *row["ci95"]) for policy, row in results.items()}, of="policies"),
        intervals(
            f"difference from {over}",
            {policy: (row["gain"]["mean"], *row["gain"]["ci95"]) for policy, row in results.items() if "gain" in row},
            of="policies",
        ),
        plot("solved, by the problem's depth", by_depth, "reasoning steps", of="policies", shares=True, dots=True),
    ]
    return [one for one in drawn if one]
