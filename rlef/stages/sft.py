"""Supervised fine-tuning on answers by TRL: loss on the answer alone, stopped when held-back loss no longer falls."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, TrainerCallback

from reward_models import resuming
from reward_models.data import SortedSteps
from rlef.config import SftStage, TrainSettings
from rlef.engines import dist
from rlef.engines.deepspeed_engine import full_state
from rlef.errors import UserError
from rlef.models import (
    Tokenizer,
    load_policy,
    load_tokenizer,
    model_folder,
    pick_device,
    prompt_ids,
    random_policy,
    resolve_path,
)
from rlef.prompts import answer_text
from rlef.records import Problem, Solution, read_jsonl
from rlef.run_dir import CHECKPOINTS
from rlef.stages.context import StageContext

STAGE_VERSION = 3
BEST_LOOK, BEST_WEIGHTS = "best.json", "best.safetensors"  # in a checkpoint
IGNORED = -100  # the label of a token that is not trained on
HELD_BACK = 0.1  # share of the data whose loss decides when to stop


@dataclass(frozen=True)
class Example:
    """A prompt and its answer as tokens, EOS included."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def run(ctx: StageContext) -> dict:
    """Train on seeds, evolved answers or both. Writes model/."""
    settings: SftStage = ctx.settings
    dist.init(ctx.config.launch.device)
    texts = training_texts(ctx, settings)
    model, tokenizer = _start(ctx, texts)
    examples, dropped = _examples(texts, tokenizer, ctx, settings.max_length)
    random.Random(ctx.seed).shuffle(examples)
    held_back = examples[: max(1, int(len(examples) * HELD_BACK))]
    result = fine_tune(
        ctx, settings, model, tokenizer, examples[len(held_back) :], held_back,
        prefix="sft", max_steps=settings.max_steps, eval_every=settings.eval_every, patience=settings.patience,
    )  # fmt: skip
    return result | {"rows": len(examples), "dropped_rows": dropped}


def training_texts(ctx: StageContext, settings: SftStage) -> list[tuple[str, str]]:
    """(question, answer) pairs."""
    model, texts = ctx.config.model, []
    if settings.data in ("seeds", "both"):
        for problem in read_jsonl(ctx.inputs["problems"] / "seeds.jsonl", Problem):
            if problem.solution and problem.answer is not None and problem.domain == "math":
                texts.append((problem.question, answer_text(problem.solution, problem.answer, model)))
            elif problem.solution:  # general instructions and code: the answer is the text itself
                texts.append((problem.question, model.step_delimiter.join(problem.solution)))
    if settings.data in ("evolved", "both"):
        if "responses" not in ctx.inputs:
            if settings.data == "evolved":
                raise UserError(f"stages.{ctx.name}.data: evolved, but no respond stage comes before", fix="add one, or set data: seeds")
        else:
            for solution in read_jsonl(ctx.inputs["responses"] / "solved.jsonl", Solution, may_be_empty=True):
                if solution.answer is not None:
                    answer = answer_text(solution.steps, str(solution.answer), model)
                else:  # no math: the text as it was written, which imported rows may have as steps alone
                    answer = solution.text or model.step_delimiter.join(solution.steps)
                texts.append((solution.question, answer))
    if len(texts) < 2:
        raise UserError(f"{ctx.name}: {len(texts)} solved problems to train on", fix="give seeds with solutions, or a respond stage")
    return texts


def _start(ctx: StageContext, texts: Sequence[tuple[str, str]]) -> tuple[PreTrainedModel, Tokenizer]:
    """The model of `init`, else the config's model: from a path, or random with a tokenizer made for this run's text."""
    section = ctx.config.model
    if "init" in ctx.inputs or section.path is not None:
        folder = str(model_folder(ctx.inputs["init"])) if "init" in ctx.inputs else resolve_path(str(section.path))
        gguf = None if "init" in ctx.inputs else section.gguf_file
        tokenizer = load_tokenizer(folder, gguf_file=gguf, trust_remote_code=section.trust_remote_code)
        return load_policy(folder, dtype=section.dtype, gguf_file=gguf, trust_remote_code=section.trust_remote_code), tokenizer
    assert section.random is not None
    corpus = [part for pair in texts for part in pair]
    if "evolved" in ctx.inputs:
        corpus += [problem.question for problem in read_jsonl(ctx.inputs["evolved"] / "evolved.jsonl", Problem)]
    return random_policy(section.random, corpus, seed=ctx.seed)


def _examples(texts: Sequence[tuple[str, str]], tokenizer: Tokenizer, ctx: StageContext, max_length: int) -> tuple[list[Example], int]:
    """Tokenised pairs, and how many were too long. A cut answer would teach to stop in the middle, so they are left out."""
    examples, dropped = [], 0
    for question, answer in texts:
        prompt = tuple(prompt_ids(tokenizer, question, ctx.config.model))
        tokens = (*tokenizer.encode(answer, add_special_tokens=False), int(tokenizer.eos_token_id))
        if len(prompt) + len(tokens) > max_length:
            dropped += 1
        else:
            examples.append(Example(prompt, tokens))
    if len(examples) < 2:
        raise UserError(
            f"{ctx.name}: {dropped} of {len(texts)} rows are longer than max_length={max_length} tokens", fix="raise max_length"
        )
    return examples, dropped


class _BestWeights(TrainerCallback):
    """Keeps the weights of the lowest held-back loss; stops after `patience` looks without a lower one.

    Without `patience` the last weights stay. The last step is always looked at. Every rank sees the same loss, so all agree.
    """

    def __init__(self, patience: int | None) -> None:
        self.patience, self.waited, self.stopped = patience, 0, False
        self.loss: float | None = None  # of the weights that will be saved
        self.weights: dict[str, torch.Tensor] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = resuming.folder_of(args, state)
        if state.global_step and (folder / BEST_LOOK).is_file():
            self.loss, self.waited = json.loads((folder / BEST_LOOK).read_text())
            if self.patience is not None:
                self.weights = load_file(folder / BEST_WEIGHTS) if state.is_world_process_zero else {}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.loss is not None:
            folder = resuming.folder_of(args, state)
            (folder / BEST_LOOK).write_text(json.dumps([self.loss, self.waited]))
            if self.weights is not None:
                save_file(self.weights, folder / BEST_WEIGHTS)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            control.should_evaluate = True

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], model: Any, **kwargs: Any) -> None:
        loss = metrics["eval_loss"]
        if self.patience is None or self.loss is None or loss < self.loss or math.isnan(self.loss):
            self.loss, self.waited = loss, 0
            if self.patience is not None:
                self.weights = full_state(model)
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.stopped = control.should_training_stop = True


def fine_tune(
    ctx: StageContext,
    settings: TrainSettings,
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    train: Sequence[Example],
    held_back: Sequence[Example],
    *,
    prefix: str,
    max_steps: int,
    eval_every: int,
    patience: int | None,
) -> dict[str, Any]:
    """Train `model` in place and save it to ctx.folder/model; loss over answer tokens, normalised over the whole step."""
    # TRL takes 8 s to import: not before it is needed.
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    world = dist.world()
    micro = max(1, min(settings.micro_batch_size, settings.batch_size // world))
    eval_every = min(eval_every, max_steps)
    best = _BestWeights(patience)
    arguments = SFTConfig(
        output_dir=str(ctx.folder / CHECKPOINTS),
        max_steps=max_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=2 * micro,
        gradient_accumulation_steps=max(1, settings.batch_size // (micro * world)),
        eval_strategy="steps" if held_back else "no",
        eval_steps=eval_every,
        logging_steps=min(25, eval_every),
        save_strategy="no",
        report_to=[],
        seed=ctx.seed,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        use_cpu=pick_device(ctx.config.launch.device).type == "cpu",
        deepspeed=ctx.config.launch.deepspeed,
        disable_tqdm=True,
    )

    class SortedTrainer(SFTTrainer, resuming.Resumable):
        """TRL's trainer on micro-batches of like lengths; its loss is normalised over the whole optimiser step.

        TRL tiles the LM head, which saves memory on a GPU; its form for CPUs has it over the prompts too, and twice.
        """

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            if self.args.device.type != "cpu" or return_outputs:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            labels = inputs["labels"]
            loss, right = answer_loss(model, inputs["input_ids"], inputs["attention_mask"], labels)
            count = (labels != IGNORED).sum()
            looks = self._metrics["train" if model.training else "eval"]
            looks["mean_token_accuracy"].append(float(right / count.clamp(min=1)))
            if num_items_in_batch is None:
                return loss / count.clamp(min=1)
            return loss / num_items_in_batch * self.accelerator.num_processes  # the count is of all ranks, and ranks are averaged

        def _get_train_sampler(self, train_dataset: Any = None) -> SortedSteps:
            return SortedSteps([len(example.prompt) + len(example.answer) for example in train], settings.batch_size, ctx.seed)

    trainer = SortedTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([_row(example) for example in train]),
        eval_dataset=Dataset.from_list([_row(example) for example in held_back]) if held_back else None,
        processing_class=tokenizer,
        callbacks=[*([best] if held_back else []), ctx.tracker.trainer_callback(prefix)],
    )
    trainer.remove_callback(PrinterCallback)
    result = resuming.train(trainer, save_every=settings.save_every, keep=ctx.config.run.keep_checkpoints, of={})
    trained: Any = trainer.accelerator.unwrap_model(trainer.model)
    weights = full_state(trained) if best.loss is None or best.patience is None else best.weights
    if dist.is_main():
        trained.save_pretrained(ctx.folder / "model", state_dict=weights)
        tokenizer.save_pretrained(ctx.folder / "model")
    dist.barrier()
    return {
        "steps": result.global_step,
        "loss": result.training_loss,
        "eval_loss": best.loss,
        "stopped_early": best.stopped,
        "train_seconds": round(result.metrics["train_runtime"], 2),
    }


def answer_loss(model: Any, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of -log p over the answers' tokens, and how many of them are the likeliest. All (B, T); labels IGNORED outside answers."""
    first = int((labels != IGNORED).any(0).nonzero()[0, 0])  # no earlier logits are made
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=ids.shape[1] - first + 1).logits[:, :-1]
    logits, labels = logits.flatten(0, 1), labels[:, first:].flatten()
    right = (logits.detach().argmax(-1) == labels).sum()
    return cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum"), right


def _row(example: Example) -> dict[str, list[int]]:
    return {"input_ids": [*example.prompt, *example.answer], "labels": [IGNORED] * len(example.prompt) + list(example.answer)}
