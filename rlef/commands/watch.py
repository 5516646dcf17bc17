"""`rlef watch`: a run as it goes on, from its directory alone: stages, time left, curves, last answers."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlef.commands.arguments import within

if TYPE_CHECKING:
    from rich.text import Text

    from rlef.views.live import Look, StageLook

BARS = "▁▂▃▄▅▆▇█"
PLAIN_BARS = "_.-=+*#@"  # for a terminal that is no UTF-8
MARKS = {"done": ("✓", "+"), "works": ("▶", ">"), "stopped": ("■", "x"), "failed": ("✗", "!"), "to run": ("·", ".")}
STYLES = {"done": "green", "works": "bold cyan", "stopped": "yellow", "failed": "bold red", "to run": "dim"}
CURVE_WIDTH = 28


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "watch",
        help="show a run as it goes on: stages, time left, curves, last answers; Ctrl-C leaves",
        epilog="example: rlef watch runs/quickstart\nexample: rlef watch runs/quickstart --once",
    )
    command.add_argument("run_dir", metavar="RUN", help="run directory, of a run that was started anywhere")
    command.add_argument("--once", action="store_true", help="print it as it is now and end (so too without a terminal)")
    command.add_argument("--every", type=within(0.1, 3600, "seconds"), default=2.0, metavar="S", help="seconds between two looks")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Ends when the run is done."""
    from rich.console import Console, Group
    from rich.live import Live

    from rlef.views.live import look

    root = Path(options.run_dir)
    if sys.stdout.encoding and not sys.stdout.encoding.lower().startswith("utf"):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    console = Console(highlight=False)

    def lines(height: int | None) -> tuple[Any, bool]:
        seen = look(root, time.time())
        plain = not console.encoding.lower().startswith("utf")
        return Group(*frame(seen, time.time(), console.width, height, plain=plain)), seen.done

    last, done = lines(None)
    if not options.once and console.is_terminal and not done:
        with contextlib.suppress(KeyboardInterrupt), Live(console=console, screen=True, auto_refresh=False) as shown:
            while not done:
                current, done = lines(console.height)
                shown.update(current, refresh=True)
                time.sleep(0 if done else options.every)
        last, _ = lines(None)  # what stays on the terminal
    console.print(last)
    return 0


def frame(seen: Look, now: float, width: int, height: int | None, *, plain: bool = False) -> list[Text]:
    """The lines of a screen, each at most `width` cells; of more than `height` lines the last ones, answers first, are left out."""
    from rich.text import Text

    lines = [_head(seen), *(_stage_line(stage, plain=plain) for stage in seen.stages)]
    if seen.progress is not None:
        lines += [Text(), _progress_line(seen, now, plain=plain)]
    if seen.curves:
        steps = [step for points in seen.curves.values() for step, _ in points]
        lines += [Text(), Text(f"{seen.curves_of}, steps {min(steps):g} to {max(steps):g}", style="bold")]
        lines += [_curve_line(name, [value for _, value in points], plain=plain) for name, points in seen.curves.items()]
    if seen.answers:
        lines += [Text(), Text(f"last answers of {seen.answers_of}, iteration {seen.answers[0].iteration}", style="bold")]
        lines += _answer_lines(seen)
    lines = lines if height is None else lines[: max(1, height)]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
    return lines


def _head(seen: Look) -> Text:
    from rich.text import Text

    from reward_models.terminal import inert

    done = sum(stage.state == "done" for stage in seen.stages)
    said, style = _condition(seen)
    return Text(f"{inert(seen.name)}  ", style="bold") + Text(said, style=style) + Text(f"  {done} of {len(seen.stages)} stages done")


def _condition(seen: Look) -> tuple[str, str]:
    """Whether anybody works there, as far as it can be known from here."""
    from rlef.views.live import SILENT_S

    if seen.done:
        return "done", "green"
    if seen.lives:
        return "works", "bold cyan"
    where = f" on {seen.holder.host}" if seen.holder is not None else ""
    if seen.lives is False:
        failed = any(stage.state == "failed" for stage in seen.stages)
        return f"{'failed' if failed else 'stopped'}: its process is gone; the same command goes on", "bold yellow"
    if seen.silent_s is not None and seen.silent_s > SILENT_S:
        return f"silent for {duration(seen.silent_s)}{where}: perhaps it is gone", "bold yellow"
    return f"works{where}" if seen.silent_s is not None else "not started", "bold cyan"


def _stage_line(stage: StageLook, *, plain: bool) -> Text:
    from rich.text import Text

    from rlef.views.step_view import one_line

    took = duration(stage.seconds) if stage.seconds is not None else ""
    mark = MARKS[stage.state][plain]
    state = "" if stage.state in ("done", "to run") else stage.state
    head = Text(f" {mark} {one_line(stage.name):12} {took:>10}  {state}", style=STYLES[stage.state])
    return head + Text(one_line(stage.said), style="dim")


def _progress_line(seen: Look, now: float, *, plain: bool) -> Text:
    from rich.text import Text

    from rlef.views.step_view import one_line

    progress = seen.progress
    assert progress is not None
    share = min(1.0, max(0.0, progress.done / progress.total)) if progress.total else 0.0
    full = round(share * CURVE_WIDTH)
    bar = ("#" if plain else "━") * full, ("-" if plain else "╌") * (CURVE_WIDTH - full)
    left = progress.left(now)
    told = f"  {progress.done:g}/{progress.total:g}" + (f", {duration(left)} left" if left is not None else "")
    return Text(f"{one_line(progress.what)} ") + Text(bar[0], style="cyan") + Text(bar[1], style="dim") + Text(told)


def _curve_line(name: str, values: Sequence[float], *, plain: bool) -> Text:
    from rich.text import Text

    from rlef.views.step_view import one_line

    drawn = sparkline(values, CURVE_WIDTH, PLAIN_BARS if plain else BARS)
    return Text(f"{one_line(name):24} ") + Text(f"{drawn:{CURVE_WIDTH}}", style="cyan") + Text(f"  {values[0]:.3g} to {values[-1]:.3g}")


def _answer_lines(seen: Look) -> list[Text]:
    from rich.text import Text

    from rlef.views.step_view import colour, one_line, step_lines

    lines: list[Text] = []
    for answer in seen.answers:
        reward = Text(f"r_I {answer.instruction:.2f} x r_A {answer.answer:.2f} = {answer.total:.2f}", style=colour(answer.total))
        lines.append((Text("not judged", style="dim") if answer.masked else reward) + Text(f"  {one_line(answer.question)}", style="bold"))
        steps = step_lines(answer.text, answer.step_scores, delimiter=seen.step_delimiter, marker=seen.answer_marker)
        lines += [Text("  ") + line for line in steps]
    return lines


def sparkline(values: Sequence[float], width: int, bars: str = BARS) -> str:
    """A character a value, from the least to the greatest; of more values than `width`, means of equal stretches."""
    count = min(len(values), width)
    stretches = [values[place * len(values) // count : (place + 1) * len(values) // count] for place in range(count)]
    means = [sum(stretch) / len(stretch) for stretch in stretches]
    low, high = min(means), max(means)
    return "".join(bars[round((mean - low) / (high - low) * (len(bars) - 1)) if high > low else 0] for mean in means)


def duration(seconds: float) -> str:
    """Two units at most: 3 s, 2 min, 1 h 5 min, 3 d 2 h."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if hours < 1:
        return f"{minutes} min" if minutes >= 10 else f"{minutes} min {seconds % 60} s"
    return f"{hours} h {minutes % 60} min" if days < 1 else f"{days} d {hours % 24} h"
