"""Step labels as a model is trained on them: at any threshold of what a row keeps of its verdicts, neutral ones decided, or the outcome."""

from __future__ import annotations

from collections.abc import Sequence

from reward_models.config import ProcessModelConfig
from reward_models.errors import UserError
from reward_models.records import SteppedSolution


def hard_labels(rates: Sequence[float | None], threshold: float) -> list[float | None]:
    """1 where a rate is above `threshold`, else 0; what was not measured stays None."""
    return [None if rate is None else float(rate > threshold) for rate in rates]


def first_error_labels(rates: Sequence[float | None], threshold: float) -> list[float | None]:
    """1 up to the last step whose rate is above `threshold`: a wrong beginning is taken never to recover. The step after it is 0 where its
    rate was measured, and nothing later is judged. With a threshold that the rates were not bisected by, the first error may lie between
    two measured steps: there is no 0 then."""
    right = max((place + 1 for place, rate in enumerate(rates) if rate is not None and rate > threshold), default=0)
    wrong = [0.0] if right < len(rates) and rates[right] is not None else []
    return [1.0] * right + wrong + [None] * (len(rates) - right - len(wrong))


def calculator_labels(equations: Sequence[float | None], rates: Sequence[float | None]) -> list[float | None]:
    """A wrong equation is 0; any other step has the success rate of completions from it (Math-Shepherd, arXiv 2312.08935)."""
    return [0.0 if equation == 0.0 else rate for equation, rate in zip(equations, rates, strict=True)]


def consensus_labels(one: Sequence[float | None], other: Sequence[float | None]) -> list[float | None]:
    """Labels 0 or 1 that both give alike, else None (consensus filtering of judge and Monte Carlo, arXiv 2501.07301, by step)."""
    return [label if label == second else None for label, second in zip(one, other, strict=True)]


def at_threshold(row: SteppedSolution, threshold: float) -> SteppedSolution:
    """The row as its labeller would have labelled it with this `threshold`; one without rates stays as it is."""
    if row.rates is None:
        return row
    rates = row.rates if row.equations is None else calculator_labels(row.equations, row.rates)
    labels = (first_error_labels if row.labeller.startswith("bisection") else hard_labels)(rates, threshold)
    if row.judged is not None:
        labels = consensus_labels(row.judged, labels)
    return row.model_copy(update={"labels": tuple(labels)})


def relabelled(rows: Sequence[SteppedSolution], threshold: float | None) -> list[SteppedSolution]:
    """All rows at `threshold`; None: as they are. Raises UserError where no row has rates."""
    if threshold is not None and all(row.rates is None for row in rows):
        raise UserError(
            f"threshold {threshold:g}: no row has the rates of completions that it is held against",
            fix="leave it out, or label by monte_carlo, calculator or bisection",
        )
    return list(rows) if threshold is None else [at_threshold(row, threshold) for row in rows]


def decided(labels: Sequence[float | None], neutral: str) -> list[float | None]:
    """Labels between 0 and 1 as `neutral` (right, wrong, mask or keep) has them. PRM800K's neutral step is no error to one who asks
    whether the problem can still be solved, and no progress to a strict one."""
    becomes = {"right": 1.0, "wrong": 0.0, "mask": None}
    return [label if label in (None, 0.0, 1.0) or neutral == "keep" else becomes[neutral] for label in labels]


def by_outcome(row: SteppedSolution) -> SteppedSolution:
    """The solution as one step, right where its answer is; not judged where that is not known."""
    whole = {"steps": ("\n".join(row.steps),), "labels": (None if row.correct is None else float(row.correct),)}
    return row.model_copy(update=whole | dict.fromkeys(("rates", "samples", "equations", "judged")))


def made_ready(rows: Sequence[SteppedSolution], settings: ProcessModelConfig) -> list[SteppedSolution]:
    """Rows as a model of these settings is trained and measured on them. Raises UserError where an outcome model finds no outcome."""
    if settings.outcome:
        if all(row.correct is None for row in rows):
            raise UserError(
                "outcome: no row says whether its answer is `correct`", fix="give rows with it, or train a process reward model"
            )
        return [by_outcome(row) for row in rows]
    return [_judged_anew(row, settings) for row in rows]


def _judged_anew(row: SteppedSolution, settings: ProcessModelConfig) -> SteppedSolution:
    """By the threshold where it keeps rates, else by what neutral labels become."""
    if row.rates is not None:
        return row if settings.threshold is None else at_threshold(row, settings.threshold)
    return row.model_copy(update={"labels": tuple(decided(row.labels, settings.neutral))})
