"""The health of a run in words: each sentence with its figure, a judgement, and a link to the section that it is from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rlef.report.data import BY_ITERATION, TRAINED, Curve, Run
from rlef.report.names import GUARDS
from rlef.report.parts import duration, gain, number, percent, text
from rlef.report.training import between, guards
from rlef.run_dir import RunDir
from rlef.views.live import at_work

Judgement = Literal["good", "watch", "bad", "plain"]
MARKS = {"good": "✓", "watch": "!", "bad": "✕", "plain": "·"}
SPOKEN = {"good": "good", "watch": "to watch", "bad": "bad", "plain": "for information"}
HINT = "In plots: point at them, or go there with Tab and read with the arrow keys; drag to look closer, double-click to see all again."
FEWEST = 8  # iterations, below which two quarters tell nothing
FEWEST_PAIRS = 16
RISE = 0.01  # of a mean reward between the first and the last quarter of the iterations, which counts as rising


@dataclass(frozen=True)
class Finding:
    """One sentence."""

    judgement: Judgement
    words: str
    anchor: str  # of the section it is from


def findings(run: Run) -> list[Finding]:
    return [*_progress(run), *_data(run), *_rewards(run), *_training(run), *_results(run)]


def as_html(run: Run, anchors: Mapping[str, str]) -> str:
    """Lead and sentences; a link only where the section is on the page. `anchors`: titles of the sections."""
    lead = (
        "A teacher rewrites seed problems into harder, easier and different ones. Two reward models learn from judged examples: r_I scores a problem, "
        "r_A the steps of an answer, where the worst step counts. The policy then learns to raise r_I × r_A"
    )
    known = any(run.config["stages"][name].get("use_answers") for name in run.of_kind("ppo", "dpo", "grpo", "rft"))
    lead += ", with known answers as a check on r_A." if known else "; no known answer enters that reward."
    rows = []
    for one in findings(run):
        link = f" <a href='#{text(one.anchor)}' aria-label='more: {text(anchors[one.anchor])}'>more</a>" if one.anchor in anchors else ""
        mark = f"<span class='mark {one.judgement}' role=img aria-label='{SPOKEN[one.judgement]}'>{MARKS[one.judgement]}</span>"
        rows.append(f"<li>{mark}<span>{text(one.words)}{link}</span>")
    return f"<p class=lead>{lead}</p><h2 id=health>Health</h2><ul class=findings>{''.join(rows)}</ul><p class=hint>{HINT}</p>"


def _progress(run: Run) -> Iterator[Finding]:
    stages = [name for name in run.kinds if run.kinds[name] != "report"]
    states = {name: run.state(name) for name in stages}
    done = sum(state == "done" for state in states.values())
    seconds = sum(manifest.get("seconds", 0) for manifest in run.manifests.values())
    working = at_work(RunDir(run.folder), stages)
    yield Finding("good" if done == len(stages) else "watch", f"{done} of {len(stages)} stages are done, in {duration(seconds)}.", "stages")
    for name, state in states.items():
        if state == "begun":
            now = "is at work now" if name == working else "has begun and is not finished; the same command goes on with it"
            yield Finding("watch", f"{name} {now}.", "stages")
        if state == "stopped with an error":
            yield Finding("bad", f"{name} stopped with an error; its folder has it, and the same command goes on.", "stages")


def _data(run: Run) -> Iterator[Finding]:
    for name in run.of_kind("method"):
        if result := run.result(name):
            rates = (
                f"{result['failure_rate_before']:.0%} failed by the first method and {result['failure_rate_after']:.0%} by the one found"
            )
            better = result["failure_rate_after"] < result["failure_rate_before"]
            yield Finding("good" if better else "watch", f"Of evolutions that the search for a method had not seen, {rates}.", "stages")
    for name in run.of_kind("evolve"):
        if result := run.result(name):
            flawed = result.get("flawed")
            aside = f"; {flawed:.0%} of the kept ones are flawed, which only the symbolic teacher knows" if flawed else ""
            share = result["kept"] / result["made"] if result["made"] else 0.0
            words = f"{_by(name, 'evolve')}{result['made']:,} evolutions were made and {result['kept']:,} kept{aside}."
            yield Finding("plain" if share >= 0.5 else "watch", words, _stage(name))


def _rewards(run: Run) -> Iterator[Finding]:
    for name in run.of_kind("irm"):
        if (result := run.result(name)).get("pair_accuracy") is not None:
            words = (
                f"The instruction reward model orders {percent(result['pair_accuracy'])} of held-out pairs of problems as the judge does"
            )
            yield Finding(*_over_guessing(result, "pair_accuracy", _by(name, "irm") + words), _stage(name))
    for name in run.of_kind("prm"):
        result = run.result(name)
        if result.get("step_auroc") is not None:
            words = f"The process reward model scores a right step above a wrong one in {percent(result['step_auroc'])} of cases, its AUROC"
            yield Finding(*_over_guessing(result, "step_auroc", _by(name, "prm") + words), _stage(name))
        if result.get("within_problem") is not None:
            words = f"Of a right and a wrong answer to one problem it scores the right one higher in {percent(result['within_problem'])} of cases"
            yield Finding(*_over_guessing(result, "within_problem", _by(name, "prm") + words), _stage(name))


def _over_guessing(result: dict[str, Any], key: str, words: str) -> tuple[Judgement, str]:
    """Good where the whole interval is above one half."""
    interval = (result.get("intervals") or {}).get(key)
    if not interval:
        return "plain", f"{words}; 50% is guessing."
    low, high = interval
    told = f"{words} ({percent(low)} to {percent(high)}; 50% is guessing)."
    return "good" if low > 0.5 else "watch", told


def _training(run: Run) -> Iterator[Finding]:
    for name in run.of_kind(*TRAINED):
        if (loss := run.result(name).get("eval_loss")) is not None:
            yield Finding("plain", f"{name}: its loss on rows that were held back ends at {number(loss)}.", _stage(name))
    for name in run.of_kind(*BY_ITERATION):
        curves = run.metrics[name]
        rewards = curves.get("reward/total", [])
        if rewards:
            asked = run.config["stages"][name].get("iterations", "?")
            state = "" if run.manifests[name] else ", not finished"
            words = f"{name}: {rewards[-1][0]:g} of {asked} iterations{state}; "
            yield Finding(*_hacked(words, rewards, curves.get("monitor/exact_match", [])), _stage(name))
        yield from _guarded(run, name)
    for name in run.of_kind("dpo"):
        if (found := run.result(name).get("reward_accuracy")) is not None:
            pairs = run.result(name).get("pairs", 0)
            few = f" So few pairs teach nothing: raise {name}.count, or lower {name}.min_margin." if pairs < FEWEST_PAIRS else ""
            words = f"{name}: at the end the policy orders {percent(found)} of its {pairs} pairs as the rewards do.{few}"
            yield Finding("good" if found > 0.5 and not few else "watch", words, _stage(name))


def _hacked(words: str, rewards: Curve, exact: Curve) -> tuple[Judgement, str]:
    """Whether the reward rises, and whether what it is for rises with it: means of the first and of the last quarter."""
    before, after = quarters(rewards)
    words += f"mean reward {number(before)} in the first quarter, {number(after)} in the last"
    if not exact:
        return "plain", f"{words}."
    right_before, right_after = quarters(exact)
    words += f"; answers that match the known one {percent(right_before)}, then {percent(right_after)}"
    if len(rewards) < FEWEST:
        return "plain", f"{words}. Too few iterations to judge by."
    if after - before < RISE:
        return "watch", f"{words}. The reward does not rise."
    if right_after <= right_before:
        return "bad", f"{words}. The reward rises and exact match does not: the policy fools the reward models."
    return "good", f"{words}. Both rise."


def _by(name: str, kind: str) -> str:
    """Of two stages of one kind each sentence says which."""
    return "" if name == kind else f"{name}: "


def _stage(name: str) -> str:
    return f"stage-{name}"


def quarters(curve: Curve) -> tuple[float, float]:
    """Means of the first and of the last quarter of the values, each of one at least."""
    values = [value for _, value in curve]
    some = max(1, len(values) // 4)
    return sum(values[:some]) / some, sum(values[-some:]) / some


def _guarded(run: Run, name: str) -> Iterator[Finding]:
    watched = guards(run.metrics[name])
    if not watched:
        return
    for guard in watched:
        if guard.since is not None:
            words = f"{name}: an alarm since iteration {guard.since:g}: {guard.rule.meaning} ({guard.rule.metric} {guard.first:.3g}, now {guard.now:.3g})."
            yield Finding("bad", words, _stage(name))
    if all(guard.since is None for guard in watched):
        told = [
            f"{GUARDS[guard.name]} {number(guard.first)}, now {number(guard.now)} (quiet at {between(guard.low, guard.high)})"
            for guard in watched
            if guard.name in ("kl", "length")
        ]
        yield Finding("good", f"{name}: none of {len(watched)} guards raised an alarm. {'; '.join(told)}.".replace(" .", ""), _stage(name))


def _results(run: Run) -> Iterator[Finding]:
    for policy, row in run.results.items():
        if "gain" in row:
            low, high = row["gain"]["ci95"]
            sure = "above" if low > 0 else "below" if high < 0 else "not clearly different from"
            words = f"{policy} answers {row['pass@1']:.1%} of the held-out problems, {sure} {row['gain']['over']}: {gain(row['gain'])} (95% interval)."
            yield Finding("good" if low > 0 else "bad" if high < 0 else "watch", words, "policies")
