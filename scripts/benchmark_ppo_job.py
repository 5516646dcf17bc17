"""One measured PPO run, generation or optimiser step, in a process of its own: takes a job as JSON and prints what it measured, its last line.

    PYTHON scripts/benchmark_ppo_job.py JOB.json

`benchmark.py` writes the job. Both sides have their answers' lengths from one list: the end token is forced where an answer is to end and
suppressed before, on the logits of each step, as on the one side so on the other. Of an iteration all is counted, from the end of the one
before to its own end; the first is the warm-up. `peak_bytes` is the most resident memory of the later ones above what the process had before
it loaded its first model.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read by torch: where others work too, a thread that spins takes what it waits for

import contextlib
import ctypes
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmark_job import main, resident, rows_of
from torch.optim.optimizer import register_optimizer_step_post_hook

FORCED = 2.0  # no uniform: here the answer ends


class Clock:
    """Seconds of whole iterations and of their phases, optimiser steps and peak memory, all without the first iteration."""

    def __init__(self) -> None:
        self.start_bytes, self.began, self.ended, self.iterations = resident("VmRSS"), 0.0, 0.0, 0
        self.processor = 0.0  # seconds of all threads
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
            self.processor_seconds = time.process_time() - self.processor
            return
        self.phases.clear()
        self.steps.clear()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self.began, self.processor = time.perf_counter(), time.process_time()

    def found(self) -> dict[str, Any]:
        seconds = self.ended - self.began
        rest = seconds - sum(self.phases.values())
        peak = resident("VmHWM")
        return {
            "seconds": seconds,
            "processor_seconds": self.processor_seconds,
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
        def log(self, metrics: dict[str, float], step: int, alerts: Mapping[str, str] | None = None) -> None:
            for name in ("rollout", "reward", "update"):
                clock.phases[name] = clock.phases.get(name, 0.0) + metrics[f"time/{name}"]
            clock.iteration()

    force_ours(keyed_lengths(rows_of(job["rows"])), job["stop"], job["never"])
    config = Config.model_validate({"model": {"path": job["model"]}, "stages": {"ppo": job["settings"]}})
    inputs = {"init": Path(job["model"]), "prompts": Path(job["prompts"]), "prm": Path(job["prm"])}
    folder = Path(job["out"]) / "ppo"
    folder.mkdir(exist_ok=True)
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


# ----------------------------------------------------------------------------------- parts, beside transformers


def generation(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of rlef's sampler and of transformers' `generate`, by turns, on the same prompts in batches of the same size."""
    from rlef.models import load_policy
    from rlef.rollout.base import SampleRequest, SamplingParams
    from rlef.rollout.hf import HFGenerator

    rows, size, pad = rows_of(job["rows"])[: job["answers"]], job["together"], job["pad_id"]
    model, lengths = load_policy(job["model"]), [row["length"] for row in rows]
    force_ours(keyed_lengths(rows), job["stop"], job["never"])
    requests = [SampleRequest(tuple(row["input_ids"]), (0, row["iteration"], int(row["id"], 16), row["sample"])) for row in rows]
    sampler, params = HFGenerator(model, pad, size), SamplingParams(max(lengths), 1.0, (job["stop"],))

    def ours() -> list[int]:
        return [len(one.tokens) for one in sampler.generate(requests, params)]

    def theirs() -> list[int]:
        found = []
        for start in range(0, len(rows), size):
            part = [row["input_ids"] for row in rows[start : start + size]]
            width = max(map(len, part))
            ids = torch.tensor([[pad] * (width - len(one)) + one for one in part])
            mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in part])
            made = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=max(lengths), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                eos_token_id=job["stop"], pad_token_id=pad,
                logits_processor=[Forced(lengths[start : start + size], width, job["stop"], job["never"])],
            )  # fmt: skip
            found += [int((row == job["stop"]).int().argmax()) + 1 for row in made[:, width:]]
        return found

    return by_turns(job["repeats"], ours, theirs, lengths)


def by_turns(repeats: int, ours: Callable[[], Any], theirs: Callable[[], Any], expected: Any = None) -> dict[str, Any]:
    """Seconds of both sides, after a turn of each that is not counted."""
    taken: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(repeats + 1):
        for name, side in (("ours", ours), ("theirs", theirs)) if number % 2 else (("theirs", theirs), ("ours", ours)):
            began = time.perf_counter()
            found = side()
            taken[name].append(time.perf_counter() - began)
            assert found == expected
    return {name: values[1:] for name, values in taken.items()}


def utilisation(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of PPO's update, and of a plain training step of transformers on the same rows, and the operations of each that count."""
    from rlef.config import PpoStage
    from rlef.engines import make_engine
    from rlef.models import load_policy
    from rlef.rl.actors import Actors, CriticNet, PolicyNet
    from rlef.rl.batch import RolloutBatch, read_tokens
    from rlef.rl.policy import TokenCritic, TokenPolicy
    from rlef.rl.update import update
    from rlef.rl.utilisation import Multiplied, matmul_rate

    settings, rows, cpu = PpoStage(**job["settings"]), rows_of(job["rows"])[: job["answers"]], torch.device("cpu")
    plain, noise = load_policy(job["model"]).train(), torch.Generator().manual_seed(0)
    answers = [torch.randint(4, plain.config.vocab_size, (row["length"],), generator=noise).tolist() for row in rows]
    prompts = [row["input_ids"] for row in rows]
    batch = RolloutBatch.of(prompts, answers, [[0.0] * len(one) for one in answers], range(len(rows)))
    batch.advantages, batch.returns = (torch.randn(batch.mask.shape, generator=noise) for _ in range(2))
    common = {"lr": 1e-6, "device": cpu, "deepspeed_json": None}
    policy = make_engine(TokenPolicy(load_policy(job["model"])), **common)
    critic = make_engine(TokenCritic.from_folder(job["model"]), **common)
    actors = Actors(PolicyNet(policy), CriticNet(critic), policy.module)
    adam = torch.optim.AdamW(plain.parameters(), lr=1e-6)

    def ours() -> None:
        update(actors, batch, settings, 0, 0, job["pad_id"], cpu)

    def theirs() -> None:
        for start in range(0, len(rows), settings.micro_batch_size):
            part = list(zip(prompts, answers, strict=True))[start : start + settings.micro_batch_size]
            width = max(len(prompt) + len(answer) for prompt, answer in part)
            ids, mask, labels = (torch.full((len(part), width), value) for value in (job["pad_id"], 0, -100))
            for place, (prompt, answer) in enumerate(part):
                end = len(prompt) + len(answer)
                ids[place, :end], mask[place, :end] = torch.tensor(prompt + answer), 1
                labels[place, len(prompt) : end] = torch.tensor(answer)
            plain(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        adam.step()
        adam.zero_grad()

    multiplied, told = Multiplied.of(plain), int(batch.mask.sum())
    every = read_tokens(batch, False)
    rate = matmul_rate(plain, cpu, plain.dtype)
    taken = by_turns(job["repeats"], ours, theirs)
    rate = max(rate, matmul_rate(plain, cpu, plain.dtype))
    flops = {
        "ours": multiplied.update_flops(read_tokens(batch, settings.share_prompts), told),
        "theirs": 6.0 * (multiplied.body * every + multiplied.head * told),
    }
    return {"rate": rate} | {name: [flops[name] / (one * rate) for one in values] for name, values in taken.items()}


JOBS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {one.__name__: one for one in (ppo_ours, ppo_trl, generation, utilisation)}


if __name__ == "__main__":
    raise SystemExit(main(JOBS))
