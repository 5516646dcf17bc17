"""Does the method stage (Auto Evol-Instruct) find a better method? How many evolutions fail by the first and the last one, on fresh parents.

    python scripts/auto_evolve.py [--simulated] [--seed 0]          no model: see below
    python scripts/auto_evolve.py CONFIG [key.sub=value ...]        the method stage of a config, with its real teacher

The simulation is of the search, not of language models: it shows that the stage finds, compares and keeps what is better where better
templates exist and some proposals are good. The evolver changes symbolic problems, whose programs are known; it fails in five ways, each in
35 % of evolutions where the template does not ask for the one sentence that prevents it, and in 3 % where it does. The optimiser names a
failure that it was shown (one in five times another), and then writes that sentence in, or spoils the template: drops a sentence, writes
nothing, copies an example, changes nothing. The search starts from a template that asks for nothing. Both rates are then measured on 200
problems that the stage never saw, against the truth as well as by the stage's rules. The judge and the answerer tell the truth here, so the
rules can only be wrong in how they read them; real ones err.

Prints how many evolutions fail before and after with 95 % intervals, and as its last line all numbers as one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_models.statistics import wilson
from rlef import pipeline, prompts
from rlef.config import Config
from rlef.errors import UserError
from rlef.evolution.chat import ChatTeacher
from rlef.evolution.method import FAILURES, failure_rate, try_out
from rlef.evolution.operations import Templates, read_operations
from rlef.load_config import load_config
from rlef.records import Problem, write_jsonl
from rlef.rollout.remote import ChatModel
from rlef.stages import method
from rlef.stages.context import StageContext
from rlef.symbolic import SymbolicTeacher, make_problems
from rlef.symbolic.programs import Program
from rlef.symbolic.teacher import as_problem
from rlef.tracking import Tracker

OPERATION = "up.add_step"
POOR = "Rewrite this.\n\n{question}"
# What the evolver fails at -> the sentence that mostly prevents it, and the rule that should notice.
SENTENCES = {
    "same": ("Its solution must take one more step than before.", "no_information_gain"),
    "other": ("Keep what the given problem says.", "lost_information"),
    "incomplete": ("State every quantity that is needed.", "asks_back"),
    "no_question": ("End with one clear question.", "no_question"),
    "chatter": ("Write nothing but the new problem.", "leaked_prompt"),
}
FAILS_UNASKED, FAILS_ASKED = 0.35, 0.03
MISTAKEN = 0.2  # share of analyses that name another failure
QUOTES = 0.15  # share of analyses that quote an example, which the template then copies
_ASKED_SAME = re.compile(re.escape(prompts.SAME_PROBLEM).replace(r"\{first\}", "(.*?)").replace(r"\{second\}", "(.*?)"), re.DOTALL)


@dataclass(frozen=True)
class Made:
    """An evolved text, and how it really failed (a key of SENTENCES or useless; None: it did not)."""

    problem: Problem
    failed: str | None


class SimulatedChat(ChatModel):
    """Evolver, judge, answerer and optimiser of symbolic problems; what it made stands in `made`."""

    name = "simulated"

    def __init__(self, known: Sequence[Problem]) -> None:
        self.known = {problem.question: problem for problem in known}
        self.made: dict[str, Made] = {}
        self.teacher = SymbolicTeacher(flaw_rate=0.0)

    def complete(self, conversations: Any, *, temperature: float, max_tokens: int, seed: int, schema: Any = None) -> list[str | None]:
        texts = [messages[-1]["content"] for messages in conversations]
        return [self._answer(text, seed + place if temperature else 0) for place, text in enumerate(texts)]

    def expected_digit(self, conversations: Any, opening: str) -> list[float] | None:
        return None

    def _answer(self, text: str, seed: int) -> str:
        rng = random.Random(f"{seed}/{text}")
        if asked := _ASKED_SAME.fullmatch(text):
            return "Yes" if self.made[asked[2]].failed == "same" else "No"
        if text.startswith(prompts.METHOD_ANALYSE[:20]):
            return self._analysis(text, rng)
        if text.startswith(prompts.METHOD_REWRITE[:20]):
            return _rewritten(text, rng)
        if text in self.made:
            made = self.made[text]
            return "Could you please provide the missing number?" if made.failed == "incomplete" else f"#### {made.problem.answer}"
        return self._evolved(text, seed, rng)

    def _evolved(self, text: str, seed: int, rng: random.Random) -> str:
        parent = next(problem for question, problem in self.known.items() if question in text)
        failed = next(
            (key for key, (sentence, _) in SENTENCES.items() if rng.random() < (FAILS_ASKED if sentence in text else FAILS_UNASKED)), None
        )
        child = self.teacher.evolve([parent], ["up.concretise" if failed == "same" else OPERATION], round=1, seed=seed)[0]
        if child is None:
            return ""
        if child.answer is None:  # a copy, a refusal: the symbolic teacher has failures of its own
            failed = "useless"
        elif failed in ("incomplete", "no_question"):
            assert child.truth is not None
            flaw = "missing_quantity" if failed == "incomplete" else "no_question"
            child = as_problem(Program.from_json(child.truth.program), flaw=flaw)
        question = child.question
        if failed == "other":
            question = f"A tram runs {rng.randint(20, 60)} km an hour. Where is it at noon?"
        if failed == "chatter":
            question = f"#Rewritten Prompt#: {question}"
        self.made.setdefault(question, Made(child, failed))
        return question

    def _analysis(self, text: str, rng: random.Random) -> str:
        shown = [key for key, (_, rule) in SENTENCES.items() for _ in range(text.count(FAILURES[rule]))]
        key = rng.choice(list(SENTENCES)) if not shown or rng.random() < MISTAKEN else rng.choice(shown)
        quoted = next((question for question in self.known if question in text), "")
        return f"Rewrites fail: {key}. Demand this: {SENTENCES[key][0]}" + (f' Not like "{quoted}"' if rng.random() < QUOTES else "")


def _rewritten(text: str, rng: random.Random) -> str:
    template, _, advice = text.partition("Template:\n")[2].partition("\n\nAdvice: ")
    head = template.removesuffix("\n\n{question}")
    sentence = next(sentence for sentence, _ in SENTENCES.values() if sentence in advice)
    if quoted := re.search(r'Not like "(.*)"', advice):
        return f"{head} For example: {quoted[1]}\n\n{{question}}"
    kind = rng.choices(("add", "drop", "empty", "same"), weights=(5, 2, 1, 2))[0]
    if kind == "add" and sentence not in head:
        return f"Template: {head} {sentence}\n\n{{question}}"
    if kind == "drop":
        present = [one for one, _ in SENTENCES.values() if one in head]
        return head.replace(f" {rng.choice(present)}" if present else "Rewrite", "") + "\n\n{question}"
    return "" if kind == "empty" else template


def simulated(seed: int) -> dict[str, Any]:
    """The stage with the simulated model, and then the truth on problems that it never saw."""
    stage = {"kind": "method", "operations": [f"math.{OPERATION}"], "steps": 10, "patience": 3}
    teacher_section = {"kind": "openai", "model": "simulated", "base_url": "http://localhost/v1"}  # never asked: the teacher is handed over
    config = Config.model_validate(
        {"run": {"seed": seed}, "model": {"random": {}}, "teacher": teacher_section, "stages": {"method": stage}}
    )
    drawn = make_problems(800, depths=(1, 3), seed=seed, split="train")
    seeds, new = drawn[:600], drawn[600:]
    chat = SimulatedChat(drawn)
    start: Templates = read_operations()
    start = {**start, "math": {**start["math"], OPERATION: POOR}}
    teacher = ChatTeacher(chat, config.model, temperature=0.7, max_tokens=256, templates=start)
    with tempfile.TemporaryDirectory() as folder:
        write_jsonl(Path(folder) / "seeds.jsonl", seeds)
        context = StageContext("method", config, config.stages["method"], {"problems": Path(folder)}, Path(folder), Tracker.null())
        result = method.improve(context, teacher)
        found = read_operations(Path(folder) / "operations.yaml")
    truth = {name: _truth(chat, teacher.with_templates(templates), new, seed) for name, templates in (("before", start), ("after", found))}
    return {"simulated": True, "seed": seed, **result, "truth": truth, "template": found["math"][OPERATION]}


def _truth(chat: SimulatedChat, teacher: ChatTeacher, parents: Sequence[Problem], seed: int) -> dict[str, Any]:
    """What really failed among evolutions of these parents, and what the rules say of it."""
    trials = try_out(teacher, parents, [OPERATION] * len(parents), seed=10**9 + seed)
    failed = [not trial.child or chat.made[trial.child].failed is not None for trial in trials]
    return {
        "n": len(trials),
        "failure_rate": sum(failed) / len(failed),
        "ci95": list(wilson(sum(failed), len(failed))),
        "by_rules": failure_rate(trials)["failure_rate"],
        "missed_by_rules": sum(real and trial.failure is None for real, trial in zip(failed, trials, strict=True)),
        "wrongly_failed": sum(not real and trial.failure is not None for real, trial in zip(failed, trials, strict=True)),
    }


def real(file: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The method stage of a config, after the stage that gives its problems; what is done is not done again."""
    config = load_config(file, overrides)
    name = next((name for name, stage in config.stages.items() if stage.kind == "method"), None)
    if name is None:
        raise UserError(f"{file}: no stage of kind method", fix="add one after the problems stage")
    for one in [*pipeline.resolve_inputs(config, name).values(), name]:
        if one in config.stages:
            run = pipeline.run(config, only=one)
    manifest = run.manifest(name)
    assert manifest is not None
    return {"simulated": False, "teacher": config.teacher.model or config.model.path, "seconds": manifest.seconds, **manifest.result}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", help="YAML file with a method stage; without one, the simulation")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation; a config has run.seed")
    options = parser.parse_args()
    if options.simulated and options.config is not None:
        parser.error("--simulated takes no config")
    try:
        found = real(options.config, options.overrides) if options.config is not None else simulated(options.seed)
    except UserError as error:
        parser.error(str(error))
    for name in ("before", "after"):
        for title, row in ((f"{name}, by the rules", found[name]), (f"{name}, in truth", found.get("truth", {}).get(name))):
            if row is not None:
                low, high = row["ci95"]
                print(f"{title:22} {row['failure_rate']:6.1%} of {row['n']} evolutions fail ({low:.1%} to {high:.1%})")
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
