"""PPO against TRL's PPOTrainer and its parts against plain transformers: the prompts, the answers' lengths, and what each table measures."""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark_reward_models import ANNOTATION, write
from benchmark_tables import Table, by_turns, measure, over, ratio

PARTS = ("generation", "utilisation", "speed", "memory")
JOB = "benchmark_ppo_job.py"


@dataclass(frozen=True)
class Scale:
    """How much is measured of a model."""

    prompts: int  # of an iteration
    samples: int  # of a prompt
    iterations: int  # timed, after one that is not
    epochs: int  # of an iteration, an optimiser step each: TRL's mini-batches make no steps of their own
    together: int  # rows decoded and scored together
    micro: int  # rows of a micro-batch
    max_tokens: int  # longer answers are not taken
    repeats: int


SCALES = {"tiny": Scale(16, 4, 2, 1, 64, 16, 384, 5), "smollm2": Scale(4, 4, 1, 1, 16, 4, 256, 3)}
QUICK = Scale(2, 2, 1, 1, 4, 2, 128, 1)


class PpoBench:
    """Runs jobs on a model, ours by this Python, theirs by that of `peer`."""

    def __init__(self, name: str, model: Path, scale: Scale, out: Path, peer: str, threads: int, lines: Sequence[dict[str, str]]) -> None:
        from rlef.models import load_tokenizer

        self.name, self.model, self.scale, self.out, self.peer, self.threads = name, model, scale, out, peer, threads
        self.tokenizer = load_tokenizer(model)
        self.stop, self.pad = int(self.tokenizer.eos_token_id), int(self.tokenizer.pad_token_id)
        random.Random(0).shuffle(shuffled := list(lines))
        self.lines = shuffled

    def run(self, kind: str, name: str, *, python: str = sys.executable, **job: Any) -> dict[str, Any]:
        common = {"kind": kind, "model": str(self.model), "threads": self.threads, "stop": self.stop}
        return measure(python, common | {"never": [self.stop, self.pad], "pad_id": self.pad} | job, self.out / name, JOB)

    def lengths(self, count: int) -> list[int]:
        """Tokens of gold solutions with their end: an answer's length is that of a solution to some question, not to its own."""
        texts = (ANNOTATION.sub("", line["answer"]) for line in reversed(self.lines))
        found = (len(self.tokenizer.encode(text, add_special_tokens=False)) + 1 for text in texts)
        return [length for _, length in zip(range(count), (one for one in found if one <= self.scale.max_tokens), strict=False)]

    def rows(self) -> tuple[str, str]:
        """Files of the problems, and of every answer's prompt and length in the order in which both sides get them."""
        from rlef.config import ModelSection
        from rlef.records import Problem
        from rlef.rl.sampling import as_prompts, take_prompts

        scale, iterations = self.scale, self.scale.iterations + 1
        problems = [
            Problem(id=f"{number:016x}", question=line["question"]) for number, line in enumerate(self.lines[: scale.prompts * iterations])
        ]
        prompts = as_prompts(problems, self.tokenizer, ModelSection(path=str(self.model)), use_answers=False)
        lengths = iter(self.lengths(scale.prompts * scale.samples * iterations))
        rows = [
            {"iteration": iteration, "id": prompt.problem.id, "sample": sample, "input_ids": prompt.ids, "length": next(lengths)}
            for iteration in range(iterations)
            for prompt in take_prompts(prompts, iteration, scale.prompts, 0)
            for sample in range(scale.samples)
        ]
        rows += rows[: scale.prompts * scale.samples]  # TRL takes an optimiser step a micro-batch in the last batch of its data
        return write(self.out / "prompts.jsonl", [problem.model_dump() for problem in problems]), write(self.out / "rows.jsonl", rows)

    def prm(self) -> str:
        """A process reward model of the policy's size: nobody trained it."""
        from reward_models.config import ProcessModelConfig
        from reward_models.model import build
        from reward_models.process import SETTINGS

        folder = self.out / "prm"
        if not folder.is_dir():
            settings = ProcessModelConfig(max_length=1024)
            for part in build("process", self.model, separator=settings.separator):
                part.save_pretrained(folder)
            (folder / SETTINGS).write_text(settings.model_dump_json())
        return str(folder)

    def settings(self) -> dict[str, Any]:
        """Of the stage: the same answers, optimiser steps and sizes of batches as theirs."""
        scale = self.scale
        return {
            "kind": "ppo",
            "iterations": scale.iterations + 1,
            "prompts_per_iteration": scale.prompts,
            "samples_per_prompt": scale.samples,
            "epochs": scale.epochs,
            "minibatches": 1,
            "micro_batch_size": scale.micro,
            "rollout_batch_size": scale.together,
            "score_batch_size": scale.together,
            "max_tokens": max(self.lengths(scale.prompts * scale.samples * (scale.iterations + 1))),
            "critic_warmup": 0,
            "target_kl": None,  # would end the steps early
            "policy_lr": 1e-6,
            "critic_lr": 1e-6,
        }

    def ours(self, name: str, *, memory: bool = False, **settings: Any) -> dict[str, Any]:
        prompts, rows = self.rows()
        return self.run("ppo_ours", name, rows=rows, prompts=prompts, prm=self.prm(), memory=memory, settings=self.settings() | settings)

    def theirs(self, name: str, *, memory: bool = False) -> dict[str, Any]:
        scale, (_, rows) = self.scale, self.rows()
        answers = scale.prompts * scale.samples
        arguments = {
            "total_episodes": answers * (scale.iterations + 1),
            "per_device_train_batch_size": scale.micro,
            "gradient_accumulation_steps": answers // scale.micro,
            "num_ppo_epochs": scale.epochs,
            "num_mini_batches": 1,
            "local_rollout_forward_batch_size": scale.together,
            "num_sample_generations": 0,
            "response_length": max(self.lengths(answers * (scale.iterations + 1))),
            "stop_token": "eos",
            "temperature": 1.0,
            "learning_rate": 1e-6,
            "bf16": False,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
        }
        return self.run("ppo_trl", name, python=self.peer, rows=rows, memory=memory, arguments=arguments)

    def generation(self) -> Table:
        """The answers of an iteration, by rlef's sampler and by transformers."""
        answers = self.scale.prompts * self.scale.samples
        job = {"rows": self.rows()[1], "answers": answers, "together": self.scale.together, "repeats": self.scale.repeats}
        found = self.run("generation", "generation", **job)
        line = ratio("answers per second, ours / transformers' generate", over(found["theirs"], found["ours"]), at_least=1.8)
        taken = " and ".join(f"{statistics.median(found[side]):.2f} s {side}" for side in ("ours", "theirs"))
        return Table(f"Generation of {self.name}", [line], [f"{answers} answers: {taken}"])

    def utilisation(self) -> Table:
        """PPO's update and a plain training step, over the best matrix product at the model's shapes."""
        job = {"rows": self.rows()[1], "answers": self.scale.prompts * self.scale.samples, "repeats": self.scale.repeats}
        lines, notes = [], []
        for how, shared in (("", False), (" with share_prompts", True)):
            settings = self.settings() | {"share_prompts": shared, "epochs": 1}
            found = self.run("utilisation", f"utilisation_{int(shared)}", settings=settings, **job)
            lines.append(ratio(f"model-FLOPs utilisation of the update{how}", found["ours"], at_least=0.7))
            lines.append(ratio(f"the same / that of a plain training step{how}", over(found["ours"], found["theirs"]), at_least=1.1))
            notes.append(f"{found['rate'] / 1e9:.0f} GFLOP/s in the best of 15 products{how}")
        return Table(f"Utilisation of {self.name}, real tokens alone", lines, notes)

    def speed(self) -> Table:
        """Whole iterations."""
        ours, shared, theirs = by_turns(
            self.scale.repeats,
            lambda n: self.ours(f"ours_{n}"),
            lambda n: self.ours(f"shared_{n}", share_prompts=True),
            lambda n: self.theirs(f"theirs_{n}"),
        )
        assert len({run["steps"] for run in [*ours, *shared, *theirs]}) == 1, "other numbers of optimiser steps"
        lines = [
            ratio("samples per second, ours / TRL", over(*seconds(theirs, ours)), at_least=2.0),
            ratio("the same with share_prompts", over(*seconds(theirs, shared)), at_least=2.0),
        ]
        for what, runs in (("", ours), (" with share_prompts", shared)):
            spent = [[run["processor_seconds"] for run in side] for side in (theirs, runs)]
            lines.append(ratio(f"processor seconds{what}, which other work distorts less: TRL / ours", over(*spent)))
        notes = []
        for phase, what in PHASES.items():
            lines.append(ratio(f"{what}: time of TRL / ours", over(*seconds(theirs, ours, phase=phase))))
            lines.append(ratio(f"{what}: time of TRL / ours with share_prompts", over(*seconds(theirs, shared, phase=phase))))
        for who, runs in (("ours", ours), ("ours with share_prompts", shared), ("TRL", theirs)):
            parts = ", ".join(f"{phase} {statistics.median(seconds(runs, phase=phase)[0]):.2f}" for phase in PHASES)
            notes.append(f"{who}: {statistics.median(seconds(runs)[0]):.2f} s an iteration; {parts}")
        scale = self.scale
        notes.append(f"{scale.prompts} prompts, {scale.samples} answers each, {scale.epochs} optimiser steps an iteration")
        return Table(f"PPO of {self.name}", lines, notes)

    def memory(self) -> Table:
        """Most resident memory of an iteration, weights and optimiser included."""
        ours, theirs = by_turns(
            1, lambda n: self.ours(f"memory_ours_{n}", memory=True), lambda n: self.theirs(f"memory_theirs_{n}", memory=True)
        )
        peaks = [[run["peak_bytes"] / 2**20 for run in runs] for runs in (ours, theirs)]
        line = ratio("peak memory, ours / TRL", over(*peaks), at_most=0.6)
        return Table(f"PPO of {self.name}, memory", [line], [f"MiB: {peaks[0][0]:.0f} ours, {peaks[1][0]:.0f} TRL"])


PHASES = {"rollout": "generation", "reward": "reward model", "rest": "log-probabilities, values and the rest", "update": "update"}


def seconds(*sides: Sequence[dict[str, Any]], phase: str | None = None) -> list[list[float]]:
    """Of an iteration, or of its `phase`."""
    return [[(run["phases"][phase] if phase else run["seconds"]) / run["iterations"] for run in runs] for runs in sides]
