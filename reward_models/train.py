"""Trains both reward models: from a label file to weights, calibration, held-out metrics and a model card."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, PreTrainedModel

from reward_models.card import model_card
from reward_models.config import InstructionModelConfig, ProcessModelConfig
from reward_models.data import collate_lists, collate_steps, instruction_rows, step_rows, step_trees
from reward_models.early_stopping import BestWeights
from reward_models.errors import UserError
from reward_models.evaluate import (
    evaluate_instruction,
    evaluate_process,
    fit_threshold,
    list_measures,
    score_lists,
    score_solutions,
    step_measures,
)
from reward_models.formats.files import Labels, read_labels
from reward_models.instruction import Calibration, InstructionRewardModel, fit_slope, save_calibration, score_texts
from reward_models.labels import made_ready, relabelled
from reward_models.losses import IGNORE, cross_seed_loss, language_loss, pairwise_ranking_loss, plackett_luce_loss, step_loss
from reward_models.model import language_head, load
from reward_models.process import SETTINGS, ProcessRewardModel
from reward_models.records import RankedList, file_digest, is_development, is_held_out
from reward_models.trainer import CHECKPOINTS, Start, TrainOptions, fit
from reward_models.values import finite

ANCHORS = 2  # items of other seeds compared with each list


def lists_loss(model: Any, inputs: dict[str, Any], *, settings: InstructionModelConfig) -> torch.Tensor:
    """Sum over the lists of a batch; each item is forwarded once."""
    batch = {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids")}
    scores = model(**batch, use_cache=False).logits[:, 0]
    loss, start = scores.sum() * 0, 0
    for (own, total), ranks, quality, label in zip(inputs["sizes"], inputs["ranks"], inputs["quality"], inputs["labels"], strict=True):
        if label == IGNORE:
            start += total
            continue
        mine, others = scores[start : start + own], scores[start + own : start + total]
        ranks, quality = ranks.to(scores.device), quality.to(scores.device)
        if settings.loss == "listwise":
            loss = loss + plackett_luce_loss(mine, ranks)[0]
        else:
            loss = loss + pairwise_ranking_loss(mine, ranks, margin=settings.margin)[0]
        if total > own:
            loss = loss + settings.cross_seed_weight * cross_seed_loss(mine, quality[:own], others, quality[own:])
        else:
            loss = loss + 0.01 * mine.mean().square()  # nothing to compare with: keep each list centred
        start += total
    return loss


def steps_loss(
    model: Any, inputs: dict[str, Any], *, balance: tuple[float, float], head: torch.Tensor | None = None, language_weight: float = 0.0
) -> torch.Tensor:
    """Sum over the judged steps of a batch. `head` (V, H): the LM head of the language loss; None: without it."""
    batch = {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids")}
    seen = batch["attention_mask"]
    if seen.dim() == 4:  # of trees; made additive here, for SDPA does it anew in each layer and keeps all copies until the backward pass
        dtype = next(model.parameters()).dtype
        batch["attention_mask"] = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
    output = model(**batch, use_cache=False, output_hidden_states=head is not None)
    loss = step_loss(output.logits[..., 0], inputs["labels"], balance=balance)
    if head is not None:
        hidden = output.hidden_states[-1]
        loss = loss + language_weight * language_loss(
            hidden, head.to(hidden.device), inputs["input_ids"], inputs["language"], inputs.get("parents")
        )
    return loss


def train_instruction(
    labels: str | Path,
    init: str | Path,
    out: str | Path,
    settings: InstructionModelConfig,
    options: TrainOptions,
) -> dict[str, Any]:
    """Train on ranked lists, calibrate and evaluate on held-out ones, save to `out`. Returns the metrics, also in out/metrics.json.

    Raises UserError where either side of the split is empty.
    """
    read = read_labels(labels, "irm")
    train, held_out = _split(read.rows, labels)
    train, development = _development(train, labels, options)
    torch.manual_seed(options.seed)
    start = Start("instruction", init)
    model, tokenizer = start.build()
    anchors = ANCHORS if settings.cross_seed_weight > 0 else 0
    data = instruction_rows(train, tokenizer, max_length=settings.max_length, anchors=anchors, seed=options.seed)
    pad_id = int(tokenizer.pad_token_id)
    unscaled = Calibration((0.0,), 1.0, settings.floor, settings.max_length)

    def look(trained: PreTrainedModel) -> float:
        return list_measures(score_lists(InstructionRewardModel(trained, tokenizer, unscaled), development))["pair_accuracy"]

    loss, collate = partial(lists_loss, settings=settings), partial(collate_lists, pad_id=pad_id)
    identity = {"labels": file_digest(labels), "init": start.init, "settings": settings}
    main, looks = fit(start, model, tokenizer, data, collate, loss, settings.epochs, out, options, look, identity)
    if not main:
        return {}
    device = model.device
    del model  # two copies at once might not fit
    model = load(AutoModelForSequenceClassification, out, device, trained=True)
    texts = sorted({item.text for row in train for item in row.items})
    references = random.Random(options.seed).sample(texts, min(settings.references, len(texts)))
    reference_scores = tuple(score_texts(model, tokenizer, references, settings.max_length))
    half = max(1, len(held_out) // 2)  # the slope is fitted on one half of the held-out lists and judged on the other
    probe = InstructionRewardModel(model, tokenizer, Calibration(reference_scores, 1.0, settings.floor, settings.max_length))
    calibration = Calibration(reference_scores, fit_slope(_differences(probe, held_out[:half])), settings.floor, settings.max_length)
    save_calibration(calibration, out)
    result = evaluate_instruction(InstructionRewardModel(model, tokenizer, calibration), held_out)
    judged = evaluate_instruction(InstructionRewardModel(model, tokenizer, calibration), held_out[half:] or held_out)
    result |= {"ece": judged["ece"], "reliability": judged["reliability"], "train_lists": len(train), "slope": calibration.slope}
    result["labels_sha256"] = identity["labels"]
    result["intervals"]["ece"] = judged["intervals"]["ece"]
    result |= _looked(looks, "pair_accuracy", development) | _unread(read)
    return _saved(result, out, model_card("irm", init, labels, read.rows, result))


def train_process(
    labels: str | Path,
    init: str | Path,
    out: str | Path,
    settings: ProcessModelConfig,
    options: TrainOptions,
) -> dict[str, Any]:
    """Train on judged steps, evaluate on held-out solutions, save to `out`. Returns the metrics, also in out/metrics.json.

    Rows that are too long or carry no label are dropped and counted. Raises UserError where nothing is left.
    """
    read = read_labels(labels, "prm")
    rows = made_ready(relabelled(read.rows, settings.threshold), settings)
    train, held_out = _split(rows, labels)
    train, development = _development(train, labels, options)
    torch.manual_seed(options.seed)
    start = Start("process", init, settings.separator)
    model, tokenizer = start.build()
    data, dropped = step_rows(
        train,
        tokenizer,
        separator=settings.separator,
        max_length=settings.max_length,
        mask_after_first_error=settings.mask_after_first_error,
    )
    if not data:
        raise UserError(f"{labels}: no usable solution (dropped: {dropped})", fix="raise max_length or give labelled steps")
    judged_rows = [row for row in train if any(label is not None for label in row.labels)]
    judged = [label for row in data for label in row["labels"] if label != IGNORE]
    right = max(1e-6, min(1 - 1e-6, sum(judged) / len(judged)))
    balance = (0.5 / (1 - right), 0.5 / right) if settings.balance_classes else (1.0, 1.0)
    head = language_head(init) if settings.language_weight > 0 else None
    loss = partial(steps_loss, balance=balance, head=head, language_weight=settings.language_weight)
    pad_id = int(tokenizer.pad_token_id)
    # Other kernels take no mask of a tree.
    trees = step_trees(data, settings.max_length) if model.config._attn_implementation == "sdpa" else data

    def look(trained: PreTrainedModel) -> float:
        scorer = ProcessRewardModel(trained, tokenizer, settings)
        return step_measures(score_solutions(scorer, development, options.micro_batch_size), 0.5)["step_auroc"]

    collate = partial(collate_steps, pad_id=pad_id)
    identity = {"labels": file_digest(labels), "init": start.init, "settings": settings}
    main, looks = fit(start, model, tokenizer, trees, collate, loss, settings.epochs, out, options, look, identity)
    if not main:
        return {}
    device = model.device
    del model  # two copies at once might not fit
    model = load(AutoModelForTokenClassification, out, device, trained=True)
    Path(out, SETTINGS).write_text(
        ProcessModelConfig(**{name: getattr(settings, name) for name in ProcessModelConfig.model_fields}).model_dump_json()
    )
    scorer = ProcessRewardModel(model, tokenizer, settings)
    threshold = fit_threshold(scorer, judged_rows[:400])
    result = evaluate_process(scorer, held_out, threshold=threshold, batch_size=options.micro_batch_size)
    result |= {"train_solutions": len(data), "dropped": dropped, "right_steps": right, "labels_sha256": identity["labels"]}
    result |= _looked(looks, "step_auroc", development) | _unread(read)
    kind = "orm" if settings.outcome else "prm"
    return _saved(result, out, model_card(kind, init, labels, rows, result, separator=settings.separator))


def _looked(looks: BestWeights | None, metric: str, development: Sequence[Any]) -> dict[str, Any]:
    if looks is None:
        return {}
    found = [{"step": step, "measured": value} for step, value in looks.looks.items()]
    return {"early_stopping": {"metric": metric, "rows": len(development), "looks": found, "best_step": looks.best_step}}


def _unread(read: Labels) -> dict[str, Any]:
    return {"set_aside": len(read.set_aside), "set_aside_first": read.set_aside[:5]} if read.set_aside else {}


def _development(train: list[Any], path: str | Path, options: TrainOptions) -> tuple[list[Any], list[Any]]:
    """Rows to train on, and those that early stopping looks at."""
    if options.eval_every is None:
        return train, []
    kept, development = [row for row in train if not is_development(row)], [row for row in train if is_development(row)]
    if not kept or not development:
        raise UserError(f"{path}: too few rows to take a tenth for early stopping", fix="give more, or leave eval_every out")
    return kept, development


def _split(rows: list[Any], path: str | Path) -> tuple[list[Any], list[Any]]:
    train, held_out = [row for row in rows if not is_held_out(row)], [row for row in rows if is_held_out(row)]
    if not train or not held_out:
        raise UserError(
            f"{path}: {len(train)} rows to train on, {len(held_out)} held out",
            fix="give rows of both kinds (`split` says which; without it the problem or seed decides)",
        )
    return train, held_out


def _differences(model: InstructionRewardModel, lists: Sequence[RankedList]) -> list[float]:
    """s_better - s_worse of all pairs."""
    out = []
    for row in lists:
        scores = model.raw_scores([item.text for item in row.items])
        out += [
            high - low
            for better, high in zip(row.items, scores, strict=True)
            for worse, low in zip(row.items, scores, strict=True)
            if better.rank < worse.rank
        ]
    return out


def _saved(values: dict[str, Any], out: str | Path, card: str) -> dict[str, Any]:
    Path(out, "metrics.json").write_text(json.dumps(finite(values), indent=2))
    Path(out, "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(Path(out, CHECKPOINTS), ignore_errors=True)
    return values
