"""One measured training or scoring, in a process of its own: takes a job as JSON and prints what it measured as JSON, its last line.

    PYTHON scripts/benchmark_job.py JOB.json

`benchmark.py` writes the job and starts this with the Python of rlef's environment or of the peer's. A function imports what its side needs,
so that neither side needs the other; the clock is the same for both. Seconds are those of the trainer's loop, from its first batch to its
last optimiser step, after a warm-up pass that is not counted: rows are tokenised before it. Slots are the tokens that went through the
model, padding included. `peak_bytes` is the most that an optimiser step, the second or later, adds to the resident memory it began with:
weights and Adam's state are there by then, gradients and activations are not. Linux resets that peak through /proc/self/clear_refs.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback


class Timed(Exception):
    """All that was to be measured is measured: saving and evaluating are left out."""


class Clock(TrainerCallback):
    """Measures a training from within; ends it by `Timed`, unless the trained model is wanted."""

    def __init__(self, pad_id: int, *, memory: bool = False, keep: bool = False) -> None:
        self.pad_id, self.memory, self.keep = pad_id, memory, keep
        self.slots = self.real = self.start_bytes = 0
        self.began = self.seconds = 0.0
        self.added: list[int] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        model(input_ids=torch.ones(4, 64, dtype=torch.long, device=model.device), use_cache=False).logits.sum().backward()
        model.zero_grad()
        self.counting = model.register_forward_pre_hook(self._count, with_kwargs=True)
        self.began = time.perf_counter()

    def _count(self, _model: Any, _args: Any, named: dict[str, Any]) -> None:
        self.slots += named["input_ids"].numel()
        self.real += int((named["input_ids"] != self.pad_id).sum())

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.memory:
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            self.start_bytes = resident("VmRSS")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.memory:
            self.added.append(resident("VmHWM") - self.start_bytes)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds = time.perf_counter() - self.began
        self.counting.remove()
        if not self.keep:
            raise Timed

    def found(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "slots": self.slots, "real": self.real, "peak_bytes": max(self.added[1:], default=0)}


def resident(name: str) -> int:
    """Bytes, from a field of /proc/self/status."""
    return 1024 * int(re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])


def rows_of(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


# --------------------------------------------------------------------------------------------- training


def prm_ours(job: dict[str, Any]) -> dict[str, Any]:
    from reward_models.config import ProcessModelConfig
    from reward_models.train import TrainOptions, train_process

    clock = Clock(job["pad_id"], memory=job["memory"], keep=job["keep"])
    settings, options = ProcessModelConfig(**job["settings"]), TrainOptions(**job["options"], callbacks=[clock])
    with contextlib.suppress(Timed):
        train_process(job["rows"], job["model"], job["out"], settings, options)
    return clock.found()


def prm_trl(job: dict[str, Any]) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoModelForTokenClassification, AutoTokenizer
    from trl.experimental.prm import PRMConfig, PRMTrainer

    clock = Clock(job["pad_id"], memory=job["memory"], keep=job["keep"])
    trainer = PRMTrainer(
        model=AutoModelForTokenClassification.from_pretrained(job["model"], num_labels=2),
        args=PRMConfig(output_dir=job["out"], use_cpu=not torch.cuda.is_available(), **job["arguments"]),
        train_dataset=Dataset.from_list(rows_of(job["rows"])),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        callbacks=[clock],
    )
    with contextlib.suppress(Timed):
        trainer.train()
        trainer.save_model(job["out"])
    return clock.found()


def irm_ours(job: dict[str, Any]) -> dict[str, Any]:
    from reward_models.config import InstructionModelConfig
    from reward_models.train import TrainOptions, train_instruction

    clock = Clock(job["pad_id"])
    settings, options = InstructionModelConfig(**job["settings"]), TrainOptions(**job["options"], callbacks=[clock])
    with contextlib.suppress(Timed):
        train_instruction(job["rows"], job["model"], job["out"], settings, options)
    return clock.found()


def irm_trl(job: dict[str, Any]) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    clock = Clock(job["pad_id"])
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=1),
        args=RewardConfig(output_dir=job["out"], use_cpu=not torch.cuda.is_available(), **job["arguments"]),
        train_dataset=Dataset.from_list(rows_of(job["rows"])),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        callbacks=[clock],
    )
    with contextlib.suppress(Timed):
        trainer.train()
    return clock.found()


# ---------------------------------------------------------------------------------------------- scoring


def scoring(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of `ProcessRewardModel.score`, and of one forward a prefix in the same batch size and just as well sorted by length.

    Both start from ids, and sort and cut their batches by one function. Scores of both must agree.
    """
    from reward_models.config import ProcessModelConfig
    from reward_models.data import batches_by_length, pad
    from reward_models.model import build
    from reward_models.process import ProcessRewardModel

    torch.manual_seed(0)
    settings = ProcessModelConfig(max_length=job["max_length"])
    model, tokenizer = build("process", job["model"], separator=settings.separator)
    scorer, rows, size = ProcessRewardModel(model, tokenizer, settings), rows_of(job["rows"]), job["batch_size"]
    read = [scorer.columns(row["question"], row["steps"]) for row in rows]
    prefixes = [one.ids[: column + 1] for one in read for column in one.columns]

    @torch.no_grad()
    def by_prefix(rows: list[list[int]]) -> list[float]:
        scores = [0.0] * len(rows)
        for piece in batches_by_length([len(ids) for ids in rows], size):
            logits = model(**pad([rows[place] for place in piece], job["pad_id"]), use_cache=False).logits[..., 0]
            for row, place in enumerate(piece):
                scores[place] = float(torch.sigmoid(logits[row, len(rows[place]) - 1]))
        return scores

    def by_solution(count: int) -> list[float]:
        return [score for one in scorer.score_read(read[:count], size) for score in one.scores]

    by_prefix(prefixes[:size]), by_solution(size)  # warm-up
    taken: dict[str, list[float]] = {"ours": [], "prefixes": []}
    off = 0.0
    for _ in range(job["repeats"]):
        began = time.perf_counter()
        ours = by_solution(len(rows))
        between = time.perf_counter()
        theirs = by_prefix(prefixes)
        taken["ours"].append(between - began)
        taken["prefixes"].append(time.perf_counter() - between)
        off = max(off, *(abs(one - other) for one, other in zip(ours, theirs, strict=True)))
    return taken | {"most_off": off, "token_ratio": sum(map(len, prefixes)) / sum(len(one.ids) for one in read)}


def auroc(job: dict[str, Any]) -> dict[str, Any]:
    """Step AUROC of pairs of trained models on the same held-out rows by one scorer, with 95 % bootstrap intervals over problems.

    A number is the mean over the pairs, of which each has its own seed.
    """
    from reward_models import metrics
    from reward_models.config import ProcessForm, ProcessModelConfig
    from reward_models.evaluate import ScoredSolution, score_solutions
    from reward_models.forms import load_published
    from reward_models.process import ProcessRewardModel
    from reward_models.records import SteppedSolution
    from reward_models.statistics import bootstrap_intervals

    rows = [SteppedSolution.model_validate(row) for row in rows_of(job["rows"])]
    form = ProcessForm(form="trl", max_length=job["max_length"])
    scored: list[tuple[list[ScoredSolution], list[ScoredSolution]]] = []
    for ours, theirs in job["models"]:
        model, tokenizer = load_published(theirs, form)
        settings = ProcessModelConfig(max_length=job["max_length"])
        # Trained on our ids it is read by our layout, else by its own.
        peer = ProcessRewardModel(model, tokenizer, settings, form if job["own_layout"] else None)
        scored.append((score_solutions(ProcessRewardModel.load(ours), rows, 16), score_solutions(peer, rows, 16)))

    def measure(places: Any) -> dict[str, float]:
        def mean(side: int) -> float:
            values = []
            for pair in scored:
                found = [pair[side][place] for place in places]
                values.append(metrics.auroc([one for row in found for one in row.labels], [one for row in found for one in row.chances]))
            return sum(values) / len(values)

        ours, theirs = mean(0), mean(1)
        return {"ours": ours, "theirs": theirs, "difference": ours - theirs}

    places = list(range(len(rows)))
    return measure(places) | {"intervals": bootstrap_intervals(places, measure), "problems": len(rows), "pairs": len(scored)}


JOBS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    one.__name__: one for one in (prm_ours, prm_trl, irm_ours, irm_trl, scoring, auroc)
}


def main(jobs: dict[str, Callable[[dict[str, Any]], dict[str, Any]]]) -> int:
    """Do the job that the command line names, one of `jobs` by kind."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    print("\n" + json.dumps(jobs[job["kind"]](job)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(JOBS))
