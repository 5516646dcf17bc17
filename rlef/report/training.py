"""Sections: the curves of each policy that was trained, with the limits of the guards and where an alarm rose."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rlef.report.data import BY_ITERATION, TRAINED, Curve, Run
from rlef.report.names import GUARDS, LEFT_OUT, TITLES
from rlef.report.parts import Section, bars, charts, folded, number, scalars, table, text, title
from rlef.report.plots import Plot, plot
from rlef.rl.guards import RULES, Rule

Charts = list[Plot | None]


@dataclass(frozen=True)
class Guard:
    """A rule of rlef.rl.guards over a curve."""

    name: str
    rule: Rule
    first: float
    now: float
    low: float
    high: float
    since: float | None  # the iteration at which it alarmed first
    moved: bool  # whether the curve ever left its first value


def guards(curves: Mapping[str, Curve]) -> list[Guard]:
    """Of each rule whose metric was measured."""
    found = []
    for name, rule in RULES.items():
        curve = curves.get(rule.metric, [])
        if not curve:
            continue
        first = curve[0][1]
        low, high = rule.limits(first)
        since = next((step for step, value in curve if rule.alarming(first, value)), None)
        found.append(Guard(name, rule, first, curve[-1][1], low, high, since, any(value != first for _, value in curve)))
    return found


def between(low: float, high: float) -> str:
    """As in 13 to 51.9, up to 0.5, or from 0.497."""
    if math.isfinite(low) and math.isfinite(high):
        return f"{number(low)} to {number(high)}"
    return f"up to {number(high)}" if math.isfinite(high) else f"from {number(low)}"


def sections(run: Run) -> list[Section]:
    return [one for name in run.of_kind(*TRAINED) if (one := _section(run, name)) is not None]


def _section(run: Run, name: str) -> Section | None:
    kind = run.kinds[name]
    if not run.metrics[name] and not run.manifests[name]:
        return None
    body, drawn = _iterations(run, name) if kind in BY_ITERATION else _steps(run, name)
    return Section(f"stage-{name}", title(TITLES[kind], name, kind), body, [one for one in drawn if one])


def _iterations(run: Run, name: str) -> tuple[str, Charts]:
    kind, curves = run.kinds[name], run.metrics[name]
    watched = sorted(guards(curves), key=lambda guard: guard.since is None)  # alarms first

    def one(words: str, key: str, **how) -> Plot | None:
        return plot(words, {"": curves.get(key, [])}, "iteration", of=name, **how)

    parts = {part: curves.get(f"reward/{key}", []) for part, key in (("r_I", "instruction"), ("r_A", "answer"), ("total", "total"))}
    reward: Charts = [
        plot("reward, mean of samples: total = r_I × r_A", parts, "iteration", of=name),
        one("samples that match the known answer", "monitor/exact_match", shares=True),
        one("pass rate of the prompts, by votes and the PRM", "rollout/pass_rate", shares=True),
    ]
    guarded: Charts = [
        plot(
            GUARDS[guard.name],
            {"": curves[guard.rule.metric]},
            "iteration",
            of=name,
            low=guard.low,
            high=guard.high,
            alarm=guard.since,
            metric=guard.rule.metric,
        )
        for guard in watched
        if guard.moved
    ]
    learning: Charts = [
        one("KL from the start, nats an answer", "ppo/kl"),
        one("KL from the start, nats a token", "grpo/kl"),
        one("entropy (variety), nats a token", f"{kind}/entropy"),
        one("share of clipped tokens", "ppo/clip_fraction"),
        one("share of clipped tokens", "grpo/clip_ratio_region_mean"),
        one("share of answers in groups of equal rewards, which teach nothing", "grpo/frac_reward_zero_std"),
        one("critic: explained variance, 1 is best", "value/explained_variance"),
        one("critic: loss", "value/loss"),
    ]
    seconds = {part: curves.get(f"time/{part}", []) for part in ("rollout", "reward", "forward", "update", "evolve")}
    speed: Charts = [plot("seconds an iteration", seconds, "iteration", of=name), one("tokens a second", "perf/tokens_per_second")]
    note = (
        "Good signs: the total reward rises, KL (how far the policy has moved from its start) stays small, and exact match with the known answers rises too. "
        "A reward that rises while exact match falls means that the policy fools the reward models."
    )
    body = f"<p>{note}</p>{charts(reward)}"
    if watched:
        told = "In the red an alarm rises; a red upright line is where one rose. A guard whose metric never moved has no plot."
        body += f"<h3>Guards</h3><p>{told}</p>{_guard_table(watched)}{charts(guarded)}"
    if any(learning):
        body += f"<h3>Policy and critic</h3>{charts(learning)}"
    if any(speed):
        body += f"<h3>Time</h3>{charts(speed)}"
    return body, [*reward, *guarded, *learning, *speed]


def _guard_table(watched: list[Guard]) -> str:
    rows = []
    for guard in watched:
        state = "<span class=good>quiet</span>" if guard.since is None else f"<span class=bad>alarm at {guard.since:g}</span>"
        rows.append(
            f"<tr><td>{text(GUARDS[guard.name])}<td>{state}<td class=n>{number(guard.first)}<td class=n>{number(guard.now)}"
            f"<td class=limits>{between(guard.low, guard.high)}<td class='w dim'>{text(guard.rule.meaning)}"
        )
    head = "<tr><th scope=col>guard<th scope=col>state<th class=n scope=col>first<th class=n scope=col>now<th scope=col>quiet at<th scope=col>an alarm says"
    return f"<div class='wide guards' tabindex=0 role=region aria-label='Table: guards'><table><thead>{head}<tbody>{''.join(rows)}</table></div>"


def _steps(run: Run, name: str) -> tuple[str, Charts]:
    kind, curves, result = run.kinds[name], run.metrics[name], run.result(name)

    def of(lines: Mapping[str, str]) -> dict[str, Curve]:
        return {label: curves.get(f"{kind}/{key}", []) for label, key in lines.items()}

    guessing = "Below the line the policy orders pairs no better than by guessing."
    lost = "Below 0 the better answers have become less likely than at the start."
    drawn: Charts = [
        plot("loss", of({"training": "loss", "held back": "eval_loss"}), "optimiser step", of=name),
        plot("pairs in the right order", of({"": "rewards_accuracies"}), "optimiser step", of=name, low=0.5, note=guessing),
        plot(
            "implicit reward of a pair",
            of({"better": "rewards_chosen", "worse": "rewards_rejected"}),
            "optimiser step",
            of=name,
            low=0.0,
            note=lost,
        ),
        plot("margin between the two of a pair", of({"": "rewards_margins"}), "optimiser step", of=name, low=0.0),
        plot("entropy (variety), nats a token", of({"": "entropy"}), "optimiser step", of=name),
    ]
    body = charts(drawn)
    if isinstance(result.get("left_out"), dict) and result["left_out"]:
        body += "<h3>Prompts that gave no pair</h3>" + bars(result["left_out"].items(), LEFT_OUT)
    if result:
        body += folded("All results", table(["result", "value"], scalars(result)))
    return body, drawn
