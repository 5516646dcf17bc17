"""One measured PPO run, generation or optimiser step, in a process of its own: takes a job as JSON and prints what it measured, its last line.

    PYTHON scripts/benchmark_ppo_job.py JOB.json

`benchmark.py` writes the job. Both sides have their answers' lengths from one list: the end token is forced where an answer is to end and
suppressed before, on the logits of each step, as on the one side so on the other. Of an iteration all is counted, from the end of the one
before to its own end; the first is the warm-up. `peak_bytes` is the most resident memory of the later ones above what the process had before
it loaded its first model.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmark_job import resident, rows_of
from torch.optim.optimizer import register_optimizer_step_post_hook

FORCED = 2.0  # no uniform: here the answer ends


class Clock:
    """Seconds of whole iterations and of their phases, optimiser steps and peak memory, all without the first iteration."""

    def __init__(self) -> None:
        self.start_bytes, self.began, self.ended, self.iterations = resident("VmRSS"), 0.0, 0.0, 0
        self.phases: dict[str, float] = {}
        self.steps: dict[int, int] = {}  # by optimiser
        register_optimizer_step_post_hook(self._step)

    def _step(self, optimizer: Any, *_: Any) -> None:
        self.steps[id(optimizer)] = self.steps.get(id(optimizer), 0) + 1

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.phases[phase] = self.phases.get(phase, 0.0) + time.perf_counter() - began

    def iteration(self) -> None:
        """One has ended."""
        self.ended = time.perf_counter()
        if self.began:
            self.iterations += 1
            return
        self.phases.clear()
        self.steps.clear()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self.began = time.perf_counter()

    def found(self) -> dict[str, Any]:
        seconds = self.ended - self.began
        rest = seconds - sum(self.phases.values())
        peak = resident("VmHWM")
        return {
            "seconds": seconds,
            "iterations": self.iterations,
            "steps": max(self.steps.values(), default=0),
            "phases": self.phases | {"rest": rest},
            "peak_bytes": peak - self.start_bytes,
            "start_bytes": self.start_bytes,
        }


# ------------------------------------------------------------------------------------------ forced lengths


def forced(logits: torch.Tensor, ends: torch.Tensor, stop: int, never: Sequence[int]) -> torch.Tensor:
    """(B, V) logits of which rows that end give `stop` alone, and the others none of `never`."""
    logits = logits.clone()
    logits[:, list(never)] = -torch.inf
    logits[ends] = -torch.inf
    logits[ends, stop] = 0.0
    return logits


class Forced:
    """A logits processor for transformers' `generate`: row b is to have `lengths[b]` tokens, the end token included."""

    def __init__(self, lengths: Sequence[int], width: int, stop: int, never: Sequence[int]) -> None:
        self.lengths, self.width, self.stop, self.never = torch.tensor(lengths), width, stop, never

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ends = (self.lengths == input_ids.shape[1] - self.width + 1).to(scores.device)
        return forced(scores, ends, self.stop, self.never)


def force_ours(lengths: dict[tuple[int, ...], int], stop: int, never: Sequence[int]) -> None:
    """The same in rlef's sampler: `lengths` by a sample's key without the run's seed."""
    from rlef.rollout import hf

    draw, uniforms = hf._draw, hf.keyed_uniforms

    def forced_uniforms(key: Sequence[int], count: int) -> Any:
        drawn = uniforms(key, count)
        drawn[lengths[tuple(key[1:])] - 1] = FORCED
        return drawn

    def forced_draw(logits: torch.Tensor, temperature: float, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ends = uniform == FORCED
        return draw(forced(logits, ends, stop, never), temperature, uniform.where(~ends, torch.full_like(uniform, 0.5)))

    hf.keyed_uniforms, hf._draw = forced_uniforms, forced_draw


def keyed_lengths(rows: Sequence[dict[str, Any]]) -> dict[tuple[int, ...], int]:
    return {(row["iteration"], int(row["id"], 16), row["sample"]): row["length"] for row in rows}


# ------------------------------------------------------------------------------------------ whole iterations


def ppo_ours(job: dict[str, Any]) -> dict[str, Any]:
    """The stage itself."""
    from rlef.config import Config
    from rlef.stages import ppo
    from rlef.stages.context import StageContext
    from rlef.tracking import Tracker

    clock = Clock()

    class Timed(Tracker):
        def log(self, metrics: dict[str, float], step: int) -> None:
            for name in ("rollout", "reward", "update"):
                clock.phases[name] = clock.phases.get(name, 0.0) + metrics[f"time/{name}"]
            clock.iteration()

    force_ours(keyed_lengths(rows_of(job["rows"])), job["stop"], job["never"])
    config = Config.model_validate({"model": {"path": job["model"]}, "stages": {"ppo": job["settings"]}})
    inputs = {"init": Path(job["model"]), "prompts": Path(job["prompts"]), "prm": Path(job["prm"])}
    folder = Path(job["out"]) / "ppo"
    folder.mkdir()
    ppo.run(StageContext("ppo", config, config.stages["ppo"], inputs, folder, Timed("", None, quiet=True)))
    return clock.found()


def ppo_trl(job: dict[str, Any]) -> dict[str, Any]:
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    clock, rows = Clock(), rows_of(job["rows"])

    class Iterations(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.iteration()

    def model(auto: Any, **more: Any) -> Any:
        return auto.from_pretrained(job["model"], dtype=torch.float32, **more)

    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    policy, reward = model(AutoModelForCausalLM), model(AutoModelForSequenceClassification, num_labels=1)
    dataset = Dataset.from_list([{"input_ids": row["input_ids"]} for row in rows])
    trainer = PPOTrainer(
        args=PPOConfig(output_dir=job["out"], use_cpu=not torch.cuda.is_available(), **job["arguments"]),
        processing_class=tokenizer,
        model=policy,
        ref_model=model(AutoModelForCausalLM),
        reward_model=reward,
        value_model=model(AutoModelForSequenceClassification, num_labels=1),
        train_dataset=dataset,
        callbacks=[Iterations()],
    )
    # Its own loader shuffles: in this one the rows come as they come to ours.
    loader = DataLoader(dataset, batch_size=trainer.args.batch_size, collate_fn=trainer.data_collator, drop_last=True)  # type: ignore[arg-type]
    trainer.dataloader = trainer.accelerator.prepare(loader)

    coming, generate = iter(rows), policy.generate

    def forced_generate(input_ids: torch.Tensor, **more: Any) -> Any:
        lengths = [next(coming)["length"] for _ in input_ids]
        found = generate(input_ids=input_ids, logits_processor=[Forced(lengths, input_ids.shape[1], job["stop"], job["never"])], **more)
        answers = found.sequences[:, input_ids.shape[1] :]
        assert [int((row == job["stop"]).int().argmax()) + 1 for row in answers] == lengths and answers.shape[1] == max(lengths)
        return found

    batch_generation, get_reward, accumulate = ppo_trainer.batch_generation, ppo_trainer.get_reward, trainer.accelerator.accumulate

    def timed_generation(*arguments: Any) -> Any:
        with clock.timed("rollout"):
            return batch_generation(*arguments)

    def timed_reward(model: Any, *arguments: Any) -> Any:
        with clock.timed("reward") if model is reward else contextlib.nullcontext():
            return get_reward(model, *arguments)

    @contextlib.contextmanager
    def timed_update(*models: Any) -> Iterator[None]:
        with clock.timed("update"), accumulate(*models):
            yield

    policy.generate, trainer.accelerator.accumulate = forced_generate, timed_update
    ppo_trainer.batch_generation, ppo_trainer.get_reward = timed_generation, timed_reward
    trainer.train()
    return clock.found()


JOBS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {one.__name__: one for one in (ppo_ours, ppo_trl)}


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    print("\n" + json.dumps(JOBS[job["kind"]](job)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
