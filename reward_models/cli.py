"""`python -m reward_models {train,score,best,evaluate,convert,serve}`: heavy imports come after parsing."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from reward_models import disk, stopping
from reward_models.arguments import Parser
from reward_models.config import FormName
from reward_models.errors import UserError
from reward_models.gate import failure, mistakes
from reward_models.terminal import inert

if TYPE_CHECKING:
    from reward_models.process import ProcessRewardModel

KINDS = ("irm", "prm", "orm")
KIND = "instruction, process or outcome reward model"
FORMS = get_args(FormName)
TOLD = "how a published process reward model is written to, where neither a file of ours nor process_form.json says it"


def parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser, and that of each command."""
    main = Parser(
        prog="python -m reward_models",
        description="Instruction (irm), process (prm) and outcome (orm) reward models.",
        epilog="example: python -m reward_models train prm --labels math_shepherd.jsonl --init Qwen/Qwen2.5-1.5B --out my_prm",
    )
    commands = main.add_subparsers(dest="command", required=True)
    train = commands.add_parser(
        "train",
        help="train on a label file",
        epilog="example: python -m reward_models train irm --labels rankings.jsonl --init Qwen/Qwen2.5-1.5B --out my_irm --epochs 2",
    )
    train.add_argument("kind", choices=KINDS, help=KIND)
    train.add_argument(
        "--labels", required=True, help="JSONL of ranked lists (irm), judged solutions (prm) or solutions that are `correct` or not (orm)"
    )
    train.add_argument("--init", required=True, help="folder or hub id of the policy or base model")
    train.add_argument("--out", required=True, help="folder of the model")
    train.add_argument("--learning-rate", type=_above_zero(float), default=1e-4, help="of AdamW, at its height")
    train.add_argument("--epochs", type=_above_zero(float), default=1.0, help="passes over the rows")
    train.add_argument(
        "--batch-size",
        type=_above_zero(int),
        default=32,
        help="lists, or problems with all their solutions, an optimiser step",
    )
    train.add_argument("--micro-batch-size", type=_above_zero(int), default=8, help="rows of a forward")
    train.add_argument("--max-length", type=_above_zero(int), default=512, help="tokens, at least 8")
    train.add_argument("--threshold", type=float, help="prm: label anew, right where more than this share of a step's completions was")
    train.add_argument(
        "--neutral", choices=["keep", "right", "wrong", "mask"], help="prm: what a label between 0 and 1 becomes (default: keep)"
    )
    train.add_argument("--seed", type=int, default=0, help="of shuffling and initialisation")
    train.add_argument("--deepspeed", help="DeepSpeed JSON, e.g. configs/deepspeed/zero2.json")
    train.add_argument("--lora-rank", type=_above_zero(int), help="train adapters of this rank and the head (default: all weights)")
    train.add_argument("--lora-alpha", type=_above_zero(int), default=32, help="adapters are scaled by alpha / rank")
    train.add_argument("--bf16", action="store_true", help="products in bfloat16; weights and losses stay in fp32")
    train.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
    train.add_argument("--save-every", type=_above_zero(int), help="steps between checkpoints, from which the same command goes on")
    train.add_argument("--eval-every", type=_above_zero(int), help="steps between looks at a tenth of the rows; the best weights are kept")
    train.add_argument("--patience", type=_above_zero(int), help="looks without improvement after which training ends")
    score = commands.add_parser(
        "score",
        help='add "score" (irm: r_I; prm: step scores and r_A) to JSONL rows',
        epilog="example: python -m reward_models score prm --model my_prm --input solutions.jsonl --output scored.jsonl",
    )
    score.add_argument("kind", choices=KINDS, help=KIND)
    score.add_argument("--model", required=True, help="folder or hub id of the reward model")
    score.add_argument("--input", required=True, help='JSONL: irm {"text"}; prm {"question", "steps"} or {"question", "text"}')
    score.add_argument("--output", required=True, help="JSONL; cut off, the same command goes on from it")
    score.add_argument("--delimiter", default="\n", help="what ends a step in `text` (default: a line break)")
    score.add_argument("--answer-marker", help="steps of `text` after the first with this are not scored, as in RL (default: all are)")
    score.add_argument("--form", choices=FORMS, help=TOLD)
    score.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    score.add_argument("--batch-size", type=_above_zero(int), default=64, help="rows of a forward")
    score.add_argument(
        "--part-rows",
        type=_above_zero(int),
        default=512,
        help="lines scored at once by a rank: what a kill loses, what memory holds",
    )
    best = commands.add_parser(
        "best",
        help="best-of-N and weighted votes over several answers to each question",
        epilog="example: python -m reward_models best --prm my_prm --input completions.jsonl --output chosen.jsonl",
    )
    best.add_argument("--prm", required=True, metavar="DIR", help="process or outcome reward model")
    best.add_argument("--irm", metavar="DIR", help="instruction reward model: r_I of each question stands beside")
    best.add_argument("--input", required=True, help='JSONL of {"question", "completions": [text, ..]}')
    best.add_argument("--output", required=True, help="the rows with scores, best, weighted_vote, majority")
    best.add_argument("--delimiter", default="\n", help="what ends a step")
    best.add_argument("--answer-marker", default="####", help="what stands before the final answer")
    best.add_argument("--form", choices=FORMS, help=TOLD)
    best.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    best.add_argument("--batch-size", type=_above_zero(int), default=64, help="completions of a forward")
    evaluate = commands.add_parser(
        "evaluate",
        help="measure on the held-out rows of a label file, or on all rows of a benchmark",
        epilog="example: python -m reward_models evaluate prm --model my_prm --labels processbench.jsonl --curves --out found",
    )
    evaluate.add_argument("kind", choices=KINDS, help=KIND)
    evaluate.add_argument("--model", required=True, help="folder or hub id of the reward model")
    evaluate.add_argument("--labels", required=True, help="label file; prm also ProcessBench, PRM800K, ..; irm also RewardBench")
    threshold = evaluate.add_mutually_exclusive_group()
    threshold.add_argument("--threshold", type=float, help="prm: first step under it is the first error (default: as training fixed it)")
    threshold.add_argument("--threshold-from", metavar="FILE", help="prm: fix the threshold on this label file, which must be another")
    evaluate.add_argument(
        "--require", nargs="+", action="extend", default=[], type=_requirement, metavar="NAME=VALUE", help="exit 2 where a metric is worse"
    )
    evaluate.add_argument("--curves", action="store_true", help="print tables, curves and probes before the last line")
    evaluate.add_argument("--out", metavar="DIR", help="write evaluation.json and evaluation.html, a page with pictures")
    evaluate.add_argument("--form", choices=FORMS, help=TOLD)
    convert = commands.add_parser(
        "convert",
        help="a published process reward model with one logit, which plain transformers loads",
        epilog="example: python -m reward_models convert peiyi9979/math-shepherd-mistral-7b-prm --form math_shepherd --out my_prm",
    )
    convert.add_argument("model", help="folder or hub id")
    convert.add_argument("--out", required=True, help="folder of what is written")
    convert.add_argument("--form", choices=FORMS, help=TOLD)
    serve = commands.add_parser(
        "serve", help="answer over HTTP (needs rlef[serve])", epilog="example: python -m reward_models serve --irm my_irm --prm my_prm"
    )
    serve.add_argument("--irm", metavar="DIR", help="instruction reward model")
    serve.add_argument("--prm", metavar="DIR", help="process reward model")
    serve.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for other machines (default: this machine alone)")
    serve.add_argument("--port", type=int, default=8500, help="0: any that is free")
    serve.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    serve.add_argument("--token-env", metavar="NAME", help="environment variable with the token that clients must send (default: none)")
    serve.add_argument("--batch-size", type=_above_zero(int), default=64, help="rows of a forward, over all requests")
    serve.add_argument("--batch-tokens", type=_above_zero(int), default=16384, help="tokens of a forward, padding included")
    serve.add_argument("--wait-ms", type=_above_zero(float), default=5.0, help="a forward waits so long for more rows")
    serve.add_argument("--queue", type=_above_zero(int), default=4096, help="rows that wait at most; above it clients get 503")
    serve.add_argument("--max-rows", type=_above_zero(int), default=1024, help="rows of a request")
    serve.add_argument("--max-body", type=_above_zero(int), default=8 * 2**20, help="bytes of a request (default: 8 MiB)")
    return main, dict(commands.choices)


def _above_zero(kind: type[int] | type[float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    read.__name__ = kind.__name__  # argparse's message for what is no number at all
    return read


def _requirement(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    with contextlib.suppress(ValueError):
        return name, float(value)
    raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE, e.g. step_auroc=0.8")


def parse(arguments: list[str]) -> argparse.Namespace:
    """What no argument takes is told with the nearest option of the command."""
    main, commands = parser()
    options, rest = main.parse_known_args(arguments)
    if rest:
        commands[options.command].unrecognized(rest)
    return options


def main(arguments: list[str] | None = None) -> int:
    """0 done; 2 a user's mistake, or a metric below what is required; 75 stopped by SIGTERM (run again to go on); 130 by Ctrl-C."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    from reward_models.quiet import quiet

    quiet()
    before = stopping.listen() if options.command == "train" else None
    try:
        commands = {"train": _train, "score": _score, "best": _best, "evaluate": _evaluate, "convert": _convert, "serve": _serve}
        with disk.told(vars(options).get("out") or vars(options).get("output") or "."):
            result = commands[options.command](options)
    except UserError as error:
        print(inert(f"error: {error}"), file=sys.stderr)
        return 2
    except stopping.Stopped:
        print("stopped by SIGTERM; the same command goes on from the last checkpoint, if there is one", file=sys.stderr)
        return stopping.EXIT_CODE
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from what is saved", file=sys.stderr)
        return 130
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    from reward_models.values import finite

    if result:  # only the first rank has something to tell
        print(json.dumps(finite(result)))
    told = failure(options.kind, dict(options.require), result) if options.command == "evaluate" else None
    if told is not None:
        print(f"error: {options.model}: {told}\n  fix: train a better one, or lower --require", file=sys.stderr)
    return 2 if told else 0


def _train(options: argparse.Namespace) -> dict[str, Any]:
    if options.max_length < 8:
        raise UserError(f"--max-length {options.max_length}: too short", fix="give at least 8 tokens")
    if options.batch_size % min(options.micro_batch_size, options.batch_size):
        raise UserError(
            f"--batch-size {options.batch_size} is no multiple of --micro-batch-size {options.micro_batch_size}", fix="change one of them"
        )
    if options.deepspeed is not None and not Path(options.deepspeed).is_file():
        raise UserError(f"--deepspeed {options.deepspeed}: no such file", fix="give a DeepSpeed JSON, e.g. configs/deepspeed/zero2.json")
    if options.threshold is not None and not (options.kind == "prm" and 0 <= options.threshold < 1):
        raise UserError(f"--threshold {options.threshold:g}: for a prm, from 0 to below 1", fix="change it or leave it out")
    if options.neutral is not None and options.kind != "prm":
        raise UserError(f"--neutral {options.neutral}: for a prm", fix="leave it out")
    if options.patience is not None and options.eval_every is None:
        raise UserError(f"--patience {options.patience}: without looks", fix="say --eval-every, or leave it out")
    _is_folder(options.out)
    from reward_models.config import InstructionModelConfig, LoraSettings, ProcessModelConfig
    from reward_models.progress import Progress
    from reward_models.train import TrainOptions, train_instruction, train_process

    names = ("learning_rate", "batch_size", "micro_batch_size", "seed", "deepspeed", "bf16", "gradient_checkpointing")
    names = (*names, "save_every", "eval_every", "patience")
    lora = LoraSettings(rank=options.lora_rank, alpha=options.lora_alpha) if options.lora_rank is not None else None
    how = TrainOptions(**{name: getattr(options, name) for name in names}, lora=lora, callbacks=[Progress()])
    if options.kind == "irm":
        settings = InstructionModelConfig(epochs=options.epochs, max_length=options.max_length)
        return train_instruction(options.labels, options.init, options.out, settings, how)
    process = ProcessModelConfig(
        epochs=options.epochs,
        max_length=options.max_length,
        threshold=options.threshold,
        neutral=options.neutral or "keep",
        outcome=options.kind == "orm",
    )
    return train_process(options.labels, options.init, options.out, process, how)


def _score(options: argparse.Namespace) -> dict[str, Any]:
    _is_writable(options)
    from reward_models.instruction import InstructionRewardModel
    from reward_models.scoring import ScoreOptions, score_file

    def load(device: str) -> InstructionRewardModel | ProcessRewardModel:
        return InstructionRewardModel.load(options.model, device) if options.kind == "irm" else _load(options, device)

    names = ("kind", "model", "delimiter", "answer_marker", "part_rows", "batch_size", "device")
    files = {"input": Path(options.input), "output": Path(options.output)}
    return score_file(ScoreOptions(**files, **{name: getattr(options, name) for name in names}), load)


def _best(options: argparse.Namespace) -> dict[str, Any]:
    _is_writable(options)
    from reward_models.choosing import choose_file
    from reward_models.instruction import InstructionRewardModel
    from reward_models.process import ProcessRewardModel
    from reward_models.serving.models import pick_device

    device = pick_device(options.device)
    prm = ProcessRewardModel.load(options.prm, device, form=options.form)
    irm = InstructionRewardModel.load(options.irm, device) if options.irm else None
    how = {"delimiter": options.delimiter, "marker": options.answer_marker, "batch_size": options.batch_size}
    return choose_file(Path(options.input), Path(options.output), prm, irm, **how)


def _is_writable(options: argparse.Namespace) -> None:
    if Path(options.output).is_dir() or not Path(options.output).absolute().parent.is_dir():
        raise UserError(f"--output {options.output}: no file can be written there", fix="give a file in a folder that exists")
    for name in ("delimiter", "answer_marker"):
        if getattr(options, name) == "":
            raise UserError(f"--{name.replace('_', '-')}: empty", fix="give a text, or leave it out")


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    wrong = mistakes(options.kind, dict(options.require))
    if wrong:
        raise UserError("--require " + "; ".join(wrong), fix="name metrics and values that they can have")
    if options.kind == "irm" and (options.threshold is not None or options.threshold_from is not None):
        raise UserError("--threshold: an irm has none", fix="leave it out")
    if options.out is not None and Path(options.out).is_file():
        raise UserError(f"--out {options.out}: a file", fix="give a folder")
    from reward_models.formats.files import read_labels

    rows = "irm" if options.kind == "irm" else "prm"  # an orm reads and is read as a prm is
    labels = read_labels(options.labels, rows)
    held_out = _held_out(labels, options)
    if not held_out:
        raise UserError(
            f"{options.labels}: none of {len(labels.rows)} rows is held out", fix='set "split": "held_out" on the rows to measure on'
        )
    fixed_on = read_labels(options.threshold_from, rows).rows if options.threshold_from is not None else None
    from reward_models.evaluate import evaluate_instruction, evaluate_process
    from reward_models.instruction import InstructionRewardModel
    from reward_models.labels import made_ready

    if options.kind == "irm":
        result = evaluate_instruction(InstructionRewardModel.load(options.model), held_out)
    else:
        model = _load(options)
        held_out = made_ready(held_out, model.settings)
        other = made_ready(fixed_on, model.settings) if fixed_on is not None else None
        result = evaluate_process(model, held_out, threshold=_threshold(options, model, other, held_out))
    result |= {"shape": labels.shape, "set_aside": len(labels.set_aside), "set_aside_first": labels.set_aside[:5]}
    _show(options, result)
    return result


def _held_out(labels: Any, options: argparse.Namespace) -> list[Any]:
    """Rows to measure on: of our own files, and of the very one that the model was trained on, those held out; of a benchmark all."""
    from reward_models.formats.files import OWN
    from reward_models.records import file_digest, is_held_out

    benchmark = labels.shape != OWN and file_digest(options.labels) != _stored(options.model).get("labels_sha256")
    return [row for row in labels.rows if benchmark or is_held_out(row)]


def _stored(model: str) -> dict[str, Any]:
    """What training measured."""
    file = Path(model, "metrics.json")
    return json.loads(file.read_text()) if file.is_file() else {}


def _threshold(options: argparse.Namespace, model: Any, fixed_on: list[Any] | None, held_out: list[Any]) -> float:
    """Of the first error: given, fixed on another file, as training fixed it, or 0.5."""
    from reward_models.evaluate import fit_threshold

    if options.threshold is not None:
        return options.threshold
    if fixed_on is not None:
        known = {(row.question, row.steps) for row in held_out}
        other = [row for row in fixed_on if (row.question, row.steps) not in known]
        if not other:
            raise UserError(
                f"--threshold-from {options.threshold_from}: holds the very solutions that are measured", fix="give another split"
            )
        return fit_threshold(model, other)
    return _stored(options.model).get("threshold") or 0.5


def _show(options: argparse.Namespace, result: dict[str, Any]) -> None:
    from reward_models.pages import as_text, page, tables
    from reward_models.values import finite

    if options.curves:
        for table in tables(result):
            print(as_text(table) + "\n")
    if options.out is not None:
        out = Path(options.out)
        out.mkdir(parents=True, exist_ok=True)
        Path(out, "evaluation.json").write_text(json.dumps(finite(result), indent=2))
        Path(out, "evaluation.html").write_text(page(f"{options.kind} on {Path(options.labels).name}", result), encoding="utf-8")


def _convert(options: argparse.Namespace) -> dict[str, Any]:
    _is_folder(options.out)
    if Path(options.out).resolve() == Path(options.model).resolve():
        raise UserError(f"--out {options.out}: is the model itself", fix="give another folder")
    from reward_models.forms import save_published

    model = _load(options)
    if model.form is None:
        raise UserError(f"{options.model}: has one logit and our own form already", fix="use it as it is")
    save_published(model.model, model.tokenizer, model.form, options.out)
    return {"form": model.form.form, "output": options.out}


def _load(options: argparse.Namespace, device: str = "cpu") -> ProcessRewardModel:
    from reward_models.process import ProcessRewardModel

    model = ProcessRewardModel.load(options.model, device, form=options.form)
    if options.command != "convert" and options.kind == "orm" and not model.settings.outcome:
        raise UserError(f"{options.model}: a process reward model", fix="say prm, or give an outcome reward model")
    return model


def _is_folder(out: str) -> None:
    if Path(out).exists() and not Path(out).is_dir():
        raise UserError(f"--out {out}: a file", fix="give a folder")


def _serve(options: argparse.Namespace) -> dict[str, Any]:
    from reward_models.serving.batching import BatchLimits
    from reward_models.serving.server import ServeOptions, serve

    names = ("irm", "prm", "host", "port", "device", "token_env", "max_rows")
    batch = BatchLimits(options.batch_size, options.batch_tokens, options.wait_ms / 1000, options.queue)
    serve(ServeOptions(**{name: getattr(options, name) for name in names}, batch=batch, max_body_bytes=options.max_body))
    return {"stopped": True}
