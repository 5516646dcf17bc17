"""Where fuzz.py throws: every door that a model's text or a file comes in by. A door returns what it ended with, or raises what is a fault.

A door of answers must take any text. A door of files may refuse one by a UserError, as a command does with exit code 2. Of both, what goes
to the terminal may hold no control character, and what goes into a page no markup.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import wandb
import yaml

from reward_models import checkpoints, pages
from reward_models.charts import line_chart
from reward_models.errors import UserError as RewardModelsError
from reward_models.formats.files import read_labels
from reward_models.process import StepScores
from reward_models.records import RankedItem, RankedList, SteppedSolution
from reward_models.steps import split_steps, until_answer
from reward_models.values import finite
from rlef import answers, cli
from rlef.config import EvolveStage, ModelSection, RandomInit
from rlef.errors import UserError
from rlef.evolution.arithmetic import check_equations
from rlef.evolution.chat import ChatTeacher
from rlef.evolution.labels import exact_labels, perturbed
from rlef.evolution.method import propose, try_out
from rlef.evolution.operations import read_operations, write_operations
from rlef.evolution.sieve import Sieve
from rlef.models import load_policy, load_tokenizer, prompt_ids, random_policy, save_policy, stop_ids
from rlef.prompts import split_answer
from rlef.records import Eliminated, Lineage, Problem, Rollout, Solution, problem_id, read_jsonl, write_jsonl
from rlef.report.page import scripts, write_report
from rlef.rl.difficulty import pass_rate
from rlef.rl.groups import rewards_of
from rlef.rl.monitor import sample_metrics
from rlef.rl.reward import STEP_REWARDS, RewardFunction, place_rewards
from rlef.rl.sampling import Prompt, Sample
from rlef.rollout.base import Completion
from rlef.rollout.journal import Answer, Calls, Journal
from rlef.rollout.remote import _wait, read_body
from rlef.run_dir import RunDir
from rlef.sources import as_problem, read_problems
from rlef.tracking import Tracker, mend
from rlef.views import tables
from rlef.views.charts import interval_chart

TOKENS = 2_000  # of a policy's answer at most: no config of ours lets one be longer
GOLDS = ("18", "\\frac{3}{4}+x")
QUESTION = "Ann has 2 eggs and buys 3. What percent are new?"
SECTION = ModelSection(random=RandomInit())
# What acts in a terminal: controls but tab and newline, marks that turn the line round, halves of characters.
ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
TAGS = {
    "html", "meta", "title", "style", "body", "nav", "h1", "h2", "h3", "p", "ul", "li", "a", "table", "tr", "th", "td", "div", "span", "mark", "br", "svg", "line",
    "text", "polyline", "circle", "rect", "b", "head", "main", "section", "h4", "thead", "tbody", "figure", "figcaption", "small", "button", "i", "strong",
    "details", "summary", "del", "script",
}  # fmt: skip


class Fault(Exception):
    """A door did what it must not."""


class Harmless(HTMLParser):
    """Finds what is not of our own pages; `scripts`: all code that a page may hold. Data for it is JSON without a <."""

    def __init__(self, scripts: Sequence[str] = ()) -> None:
        super().__init__()
        self.scripts = scripts
        self.inside: str | None = None  # of a script: its text so far
        self.code = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        acting = [
            name
            for name, value in attrs
            if name.startswith("on") or name in ("src", "srcdoc") or (name == "href" and not str(value).startswith("#"))
        ]
        if tag not in TAGS or acting:
            raise Fault(f"a page holds <{tag} {attrs}>")
        if tag == "script":
            self.inside, self.code = "", dict(attrs).get("type") != "application/json"

    def handle_data(self, data: str) -> None:
        if self.inside is not None:
            self.inside += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            text, self.inside = self.inside or "", None
            if self.code and text not in self.scripts:
                raise Fault(f"a page runs {text[:200]!r}")
            if not self.code:
                json.loads(text)
                if "<" in text:
                    raise Fault(f"data of a page holds a tag: {text[:200]!r}")

    handle_startendtag = handle_starttag

    def handle_comment(self, data: str) -> None:
        raise Fault("a page holds a comment")


def harmless(page: str) -> None:
    reader = Harmless(scripts())
    reader.feed(page)
    reader.close()


def quiet(text: str) -> None:
    if found := ACTS.search(text):
        raise Fault(f"the terminal gets {found[0]!r}: {text[max(0, found.start() - 40) : found.start() + 40]!r}")


@contextlib.contextmanager
def heard() -> Iterator[io.StringIO]:
    """What is printed meanwhile, which must not act."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield said
    quiet(said.getvalue())


def command(*words: str) -> int:
    """The exit code of `rlef`: 0, or 2 with a message."""
    with heard() as said:
        try:
            code = cli.main(list(words))
        except SystemExit as end:
            code = int(str(end.code))
    if code not in (0, 2) or (code == 2 and "error:" not in said.getvalue()):
        raise Fault(f"`rlef {words[0]}` ended with {code}: {said.getvalue()[:500]}")
    return code


def refused(work: Callable[[], Any]) -> str:
    """ "taken", or "refused" where it raised a user's mistake with a message that does not act."""
    try:
        with heard():
            work()
    except (UserError, RewardModelsError) as error:
        if not str(error).strip():
            raise Fault("refused without a message") from error
        return "refused"
    return "taken"


class Echo:
    """A chat model that always says the same."""

    name = "echo"

    def __init__(self, text: str) -> None:
        self.text = text

    def complete(self, conversations: Any, **_: Any) -> list[str | None]:
        return [self.text for _ in conversations]

    def answers(self, conversations: Any, **_: Any) -> list[Answer]:
        return [Answer(self.text, "stop") for _ in conversations]

    def expected_digit(self, conversations: Any, opening: str) -> None:
        return None


class AnswerDoors:
    """Everywhere that a text of a policy, a teacher or a judge goes. Each takes the text as it arrives: through an endpoint's JSON."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.root.mkdir(parents=True, exist_ok=True)
        _, self.tokenizer = random_policy(RandomInit(vocab_size=400, hidden_size=8, layers=1, heads=1), [QUESTION, "#### 7\n1+1=2"], seed=0)
        self.stop = int(self.tokenizer.eos_token_id)
        self.templates = read_operations()
        self.seed = Problem(id=problem_id(QUESTION), question=QUESTION, answer="60")
        self.tests = [
            Problem(id=problem_id(text), question=text)
            for text in (QUESTION + " And old?", "Ben has 7 pens and loses 2. How many pens does Ben have now, if he finds 1 more?")
        ]
        self.doors: dict[str, Callable[[str], Any]] = {
            "endpoint": self.endpoint, "grader": self.grader, "steps": self.steps, "reward": self.reward, "evolution": self.evolution, "judge": self.judge,
            "method": self.method, "records": self.records, "report": self.report, "pages": self.pages, "terminal": self.terminal, "tracking": self.tracking,
        }  # fmt: skip

    def endpoint(self, text: str) -> None:
        """A server's reply: read, counted, kept in the journal and found there; what it says of itself, too."""
        rng = random.Random(len(text))
        counts = [3, 10**30, -(2**70), True, None, "9", float("nan"), [], text[:50]]
        usage = rng.choice([{"prompt_tokens": rng.choice(counts), "completion_tokens": rng.choice(counts)}, None, [], text[:50]])
        choices = rng.choice(
            [
                [{"message": {"content": text}, "finish_reason": rng.choice(["stop", None, text[:99], 3])}],
                text,
                [text],
                [],
                {},
                [{"message": text}],
                [{"message": {"content": [text]}}],
            ]
        )
        journal = Journal(None)
        answer, used = read_body(json.loads(json.dumps({"choices": choices, "usage": usage})))
        attempt = journal.intend("key", Calls(1, 9, 9), lambda _: None)
        kept = journal.settle(attempt, used, answer)
        if kept is not None and journal.answer("key") != kept:
            raise Fault("the journal gives back another answer")
        journal.account()
        journal.close()
        if not 0 <= _wait({"retry-after": text[:99]}, 0) <= 700:
            raise Fault("an endpoint is waited for without a limit")

    def grader(self, text: str) -> None:
        text = self.arrived(text)
        found = answers.extract_answer(text)
        question, gold = text[:5_000], GOLDS[len(text) % 2]
        for given in dict.fromkeys([found or "", text[:150], text]):
            if answers.same_answer(given, gold, question) and len(given) > answers.LONGEST:
                raise Fault(f"{given[:50]!r} is taken for {gold}")
            answers.canonical(given, question)

    def steps(self, text: str) -> None:
        text = self.arrived(text)
        for delimiter in ("\n", "\n\n"):
            found = until_answer(split_steps(text, delimiter), "####")
        split_answer(text, SECTION)
        equations = [check_equations(step.text) for step in found[:64]] + [check_equations(text)]
        exact_labels(equations, True)
        perturbed(text, text, random.Random(0))

    def reward(self, text: str) -> None:
        tokens = (*self.tokenizer.encode(self.arrived(text)[: 4 * TOKENS], add_special_tokens=False)[:TOKENS], self.stop)
        completion = Completion(tuple(tokens), (-1.0,) * len(tokens), True)
        function = RewardFunction(prm=_Half(), irm=None, tokenizer=self.tokenizer, model=SECTION, stops=[self.stop], use_answers=True)
        (score,) = function.score([self.seed], [completion])
        for mode in ("min_terminal", *STEP_REWARDS):
            if abs(sum(place_rewards(score, len(tokens), mode=mode))) > 1e6:  # type: ignore[arg-type]
                raise Fault(f"a reward without a limit in {mode}")
        rewards_of(score, len(tokens), "process")
        sample_metrics([Sample(Prompt(self.seed, (1,), "60"), 0, completion, score)])
        pass_rate([score.extracted, "7", "7"], [1.0, 0.5, 1.0], question=text[:5_000])

    def evolution(self, text: str) -> None:
        """What a teacher makes of a parent, and what it makes of that again; through the sieve, onto the disk and back."""
        teacher = ChatTeacher(Echo(self.arrived(text)), SECTION, temperature=1.0, max_tokens=9)
        sieve = Sieve(EvolveStage(kind="evolve"), teacher, self.tests, [self.seed], "cpu")
        (child,) = teacher.evolve([self.seed], ["up.add_constraint"], round=1, seed=0)
        kept = sieve.pass_on([(self.seed, child, False)])
        if child is not None:
            sieve.pass_on([(child, again, False) for again in teacher.evolve([child], ["up.add_constraint"], round=2, seed=0)])
        write_jsonl(self.root / "evolved.jsonl", kept)
        if kept and list(read_jsonl(self.root / "evolved.jsonl", Problem)) != kept:
            raise Fault("a problem is read otherwise than it was written")
        for problem in [self.seed, *([child] if child is not None else [])]:
            write_jsonl(self.root / "solved.jsonl", teacher.respond([problem], 2, seed=0)[0])

    def judge(self, text: str) -> None:
        teacher = ChatTeacher(Echo(self.arrived(text)), SECTION, temperature=1.0, max_tokens=9)
        for quality in [*teacher.judge_instructions([self.seed], seed=0), *teacher.judge_list([self.seed, self.seed], [[0, 1]], seed=0)[0]]:
            total = quality.total() if quality is not None else None
            if total is not None and not 0 <= total <= 3:
                raise Fault(f"a judge gave {total}")
        for labels in teacher.judge_steps([self.seed], [["a", "b", "c"]], seed=0):
            if len(labels) != 3:
                raise Fault("a judge's labels do not fit the steps")
        teacher.judge_same([(QUESTION, text)])

    def method(self, text: str) -> None:
        """The search for a method: evolutions that are tried out, and a template that is proposed, written and read."""
        teacher = ChatTeacher(Echo(self.arrived(text)), SECTION, temperature=1.0, max_tokens=9)
        trials = try_out(teacher, [self.seed], ["up.add_constraint"], seed=0)
        for candidate in propose(teacher, "math", "up.add_constraint", trials, count=1, temperature=1.0, max_tokens=9, seed=0):
            if candidate.reason is None:
                file = self.root / "operations.yaml"
                write_operations(file, {"math": {"up.add_constraint": candidate.template}})
                if read_operations(file)["math"]["up.add_constraint"] != candidate.template:
                    raise Fault("a template is read otherwise than it was written")

    def records(self, text: str) -> None:
        text = self.arrived(text)
        for row in (
            {"question": text, "answer": text},
            {"instruction": text, "output": text},
            {"problem": QUESTION, "solution": text, "answer": text},
        ):
            with contextlib.suppress(ValueError):
                as_problem(row, "fuzz")
        lists = RankedList(seed_id="a", items=(RankedItem(text=text, rank=0, kind=text), RankedItem(text="b", rank=1)), labeller=text)
        steps = SteppedSolution(problem_id="p", question=text, steps=(text,), labels=(0.0,), labeller=text)
        for name, row in (("lists", lists), ("steps", steps)):
            write_jsonl(self.root / f"{name}.jsonl", [row])
            if read_jsonl(self.root / f"{name}.jsonl", type(row))[0] != row:
                raise Fault("a label is read otherwise than it was written")

    def report(self, text: str) -> None:
        run = self.root / "run"
        made_run(run, self.arrived(text))
        harmless(write_report(run).read_text(encoding="utf-8"))

    def pages(self, text: str) -> None:
        text = self.arrived(text)
        interval = {"mean": 0.5, "ci95": [0.4, 0.6]}
        result = {
            "step_auroc": 0.5,
            text[:5_000]: 0.25,
            "by_flaw": {text: 0.5},
            "by_gap": {text[:9]: 0.1},
            "probes": {text[:99]: {"solutions": 1, "before": 0.1, "after": 0.2, "change": interval, "raised": 0.5}},
        }
        harmless(pages.page(text[:999], result))
        for table in pages.tables(result):
            quiet(pages.as_text(table))
            pages.as_markdown(table)
        harmless(line_chart(text[:999], {text[:99]: [(1, 0.5), (2, 0.7)], "b": [(1, 0.1), (2, 0.2)]}, text[:99]))
        harmless(interval_chart(text[:999], {text: (0.1, 0.0, 0.2)}))

    def terminal(self, text: str) -> None:
        """The tables of `rlef evolve` and `rlef label`, and a message that quotes the text."""
        text, folder = self.arrived(text), self.root / "shown"
        child = Problem(id="c", question=text, lineage=_lineage(self.seed.id, "up.add_step"))
        write_jsonl(folder / "seeds.jsonl", [self.seed])
        write_jsonl(folder / "evolved.jsonl", [child])
        write_jsonl(folder / "eliminated.jsonl", [Eliminated(problem=child, rule="refusal", detail=text[:99])])
        lists = RankedList(seed_id="a", items=(RankedItem(text=text, rank=0), RankedItem(text=text, rank=1)), labeller=text[:99])
        write_jsonl(folder / "rankings.jsonl", [lists])
        write_jsonl(
            folder / "steps.jsonl",
            [SteppedSolution(problem_id="p", question=text, steps=(text, text), labels=(1.0, None), labeller=text[:99])],
        )
        result = {"made": 1, "kept": 1, "eliminated": {text[:99]: 1}, "renumbered": 0, "teacher": {text[:99]: text[:99]}}
        quiet(tables.evolve_table(result, folder, [folder]))
        quiet(tables.label_table({"labels": text[:99], "ranking": {text[:99]: 0.5}}, folder))
        command("check", str(self.root / "none.yaml"), f"{text.replace(chr(0), '')[:200]}=1")

    def tracking(self, text: str) -> None:
        """A row of metrics and a table of W&B."""
        file = self.root / "metrics.jsonl"
        file.unlink(missing_ok=True)
        tracker = Tracker("ppo", file, quiet=True)
        tracker.log({"reward/total": float("nan"), text[:99]: float("inf")}, 1)
        mend(file, {})
        json.loads(file.read_text(encoding="utf-8") or "{}")
        table = wandb.Table(columns=["question", "answer"], data=[[self.arrived(text), 0.5]])
        json.dumps(table.data).encode()

    def arrived(self, text: str) -> str:
        """The text as it comes out of an endpoint's reply."""
        answer, _ = read_body({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})
        return (answer.text if answer is not None else None) or "-"


class _Half:
    """A process reward model that is never sure."""

    def score(self, questions: Any, steps: Any, batch_size: int) -> list[StepScores]:
        return [StepScores((0.5,) * len(one)) for one in steps]


def _lineage(parent: str, operation: str) -> Lineage:
    return Lineage(parent=parent, root=parent, operation=operation, round=1, teacher="t")


def made_run(folder: Path, text: str) -> None:
    """A run directory of which the report shows all, with the text wherever a model's stands."""
    kinds = ("problems", "evolve", "irm", "prm", "sft", "ppo", "evaluate", "report")
    policy = {
        "n": 10,
        "pass@1": 0.5,
        "ci95": [0.2, 0.8],
        "extraction_failures": 0.0,
        "by_depth": {"1": 0.5},
        "gain": {"over": "sft", "mean": 0.2, "ci95": [0.1, 0.3]},
    }
    results: dict[str, Any] = {
        "evolve": {
            "made": 4,
            "kept": 2,
            "eliminated": {"refusal": 1, text[:99]: 1},
            "operations": {"up.add_step": 2, text[:99]: 1},
            "rounds": {"1": {"pass_rate": 0.1, "in_band": 0.5}},
        },
        "irm": {"pair_accuracy": 0.9, "by_flaw": {text: 0.8}},
        "prm": {"step_auroc": 0.8, "by_depth": {text[:99]: 0.9}},
    }
    for kind in kinds:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        _write(
            folder / kind / "manifest.json",
            {"fingerprint": {"stage version": "1"}, "files": {}, "seconds": 3.0, "result": results.get(kind, {})},
        )
    (folder / "config.yaml").write_text(yaml.safe_dump({"stages": {kind: {"kind": kind} for kind in kinds}}), encoding="utf-8")
    seed = Problem(id="s", question=QUESTION, depth=1)
    child = Problem(id="c", question=text, lineage=_lineage("s", "up.add_step"), depth=2)
    again = Problem(id="d", question=f"{text} {text[::-1]}", lineage=_lineage("c", "up.add_step"), depth=3)
    write_jsonl(folder / "problems" / "seeds.jsonl", [seed])
    write_jsonl(folder / "evolve" / "evolved.jsonl", [child, again])
    write_jsonl(folder / "evolve" / "eliminated.jsonl", [Eliminated(problem=again, rule=text[:99])])
    rollout = Rollout(
        problem_id="c", iteration=1, sample=0, question=text, text=text, step_scores=(0.9, 0.1), instruction=0.5, answer=0.1, total=0.05, length=9, finished=True,
    )  # fmt: skip
    write_jsonl(folder / "ppo" / "rollouts.jsonl", [rollout])
    rows = [{"stage": "ppo", "step": step, "time": 0, "reward/total": step / 10, text[:99]: 1.0} for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    _write(folder / "evaluate" / "results.json", {"ppo": policy, text[:200]: policy})
    _write(folder / "run.json", {"wandb": {}})


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(finite(value), indent=2), encoding="utf-8")


# --------------------------------------------------------------------------------------------------- files

SMALL = {
    "run": {"seed": 0},
    "model": {"random": {"vocab_size": 300, "hidden_size": 32, "layers": 1, "heads": 1}},
    "teacher": {"kind": "symbolic"},
    "tracking": {"wandb": "disabled"},
    "stages": {"problems": {"seeds": 8, "held_out": 4}, "evolve": {"rounds": 1, "per_round": 6}},
}
OF = {"seed": "0"}


class FileDoors:
    """Everything that is read from a disk: each makes its files in an empty folder, has one damaged, and reads them as a command does."""

    def __init__(self, root: Path, repository: Path) -> None:
        """`repository`: whose configs are damaged."""
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.configs = [repository / "configs" / name for name in ("quickstart.yaml", "wizardmath_7b.yaml")]
        self.deepspeed = sorted((repository / "configs" / "deepspeed").glob("*.json"))
        (root / "small.yaml").write_text(yaml.safe_dump(SMALL, sort_keys=False), encoding="utf-8")
        if command("run", str(root / "small.yaml"), f"run.dir={root / 'ran'}"):
            raise Fault("the small run does not run")
        self.model = root / "model"
        model, tokenizer = random_policy(
            RandomInit(vocab_size=300, hidden_size=8, layers=1, heads=1, intermediate_size=8), [QUESTION], seed=0
        )
        save_policy(model, tokenizer, self.model)
        self.doors: dict[str, Callable[[Path, Callable[[Path], Any]], str]] = {
            "config": self.config, "problems": self.problems, "labels": self.labels, "convert": self.convert, "checkpoint": self.checkpoint,
            "journal": self.journal, "run directory": self.run, "report": self.report, "DeepSpeed": self.zero, "model": self.load,
        }  # fmt: skip

    def config(self, folder: Path, damage: Callable[[Path], Any]) -> str:
        file = folder / "config.yaml"
        shutil.copy(random.Random(folder.name).choice(self.configs), file)
        damage(file)
        return "refused" if command("check", str(file)) else "taken"

    def problems(self, folder: Path, damage: Callable[[Path], Any]) -> str:
        file = folder / "problems.jsonl"
        rows = [{"question": f"{QUESTION} {n}", "answer": f"1+1=2\n#### {n}"} for n in range(4)] + [
            {"instruction": "Say it.", "input": "x", "output": "It."}
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        damage(file)
        refused(lambda: read_problems(file, skip_broken=True))
        return refused(lambda: read_problems(file))

    def labels(self, folder: Path, damage: Callable[[Path], Any]) -> str:
        """What stages hand on, and label files of both kinds."""
        file, kind = folder / "rows.jsonl", random.Random(folder.name).choice(["prm", "irm", "problem", "solution"])
        rows: list[Any] = {
            "prm": [
                SteppedSolution(problem_id=str(n), question=QUESTION, steps=("a", "b"), labels=(1.0, None), labeller="x") for n in range(3)
            ],
            "irm": [
                RankedList(seed_id=str(n), items=(RankedItem(text="a", rank=0), RankedItem(text="b", rank=1)), labeller="x")
                for n in range(3)
            ],
            "problem": [Problem(id=str(n), question=QUESTION, answer="1", lineage=_lineage("a", "up.x")) for n in range(3)],
            "solution": [Solution(problem_id=str(n), question=QUESTION, steps=("a",), text="a", writer="x") for n in range(3)],
        }[kind]
        write_jsonl(file, rows)
        damage(file)
        if kind in ("prm", "irm"):
            refused(lambda: read_jsonl(file, type(rows[0]), strict=False))
            return refused(lambda: read_labels(file, kind))  # type: ignore[arg-type]
        return refused(lambda: read_jsonl(file, type(rows[0])))

    def convert(self, folder: Path, damage: Callable[[Path], Any]) -> str:
        rng = random.Random(folder.name)
        of, rows, to = rng.choice(
            [("processbench", [{"id": "a", "problem": QUESTION, "steps": ["a", "b"], "label": 1, "final_answer_correct": False}], "steps"),
             ("alpaca", [{"instruction": "Say it.", "input": "", "output": "It."}], "messages"),
             ("messages", [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}], "sharegpt"),
             ("preference", [{"prompt": "a", "chosen": "b", "rejected": "c"}], "ultrafeedback_pairs")]
        )  # fmt: skip
        file = folder / "source.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows * 3), encoding="utf-8")
        damage(file)
        named = [] if rng.random() < 0.5 else ["--from", of]
        return "refused" if command("convert", str(file), str(folder / "target.jsonl"), "--to", to, *named) else "taken"

    def checkpoint(self, folder: Path, damage: Callable[[Path], Any]) -> str:
        """The newest is damaged: that one or the one before it is used, each only as it was written."""
        whole = {}
        for number in (1, 2):
            partial = checkpoints.begin(folder, number)
            shutil.copy(self.model / "model.safetensors", partial)
            (partial / "trainer_state.json").write_text(json.dumps({"global_step": number, "log_history": []}))
            (partial / "optimizer.pt").write_bytes(bytes([number]) * 64)
            whole[checkpoints.finish(partial, OF, keep=2)] = number
        digests = {place: _digest(place) for place in whole}
        damage(random.Random(folder.name).choice(sorted(checkpoints.place(folder, 2).iterdir())))
        with heard() as said:
            newest = checkpoints.newest(folder, OF)
        if newest is None or _digest(newest) != digests[newest] or (whole[newest] == 1 and "damaged" not in said.getvalue()):
            raise Fault(f"goes on from {newest}, having said {said.getvalue()!r}")
        return "taken" if whole[newest] == 2 else "passed over"

    def journal(self, folder: Path, damage: Callable[[Path], Any]) -> str:
        file = folder / "journal.sqlite"
        journal = Journal(file)
        for number in range(40):
            journal.settle(
                journal.intend(f"key{number}", Calls(1, 9, 9), lambda _: None), Calls(1, 5, 5), Answer("answer " * number, "stop")
            )
        journal.close()
        damage(file)

        def use() -> None:
            again = Journal(file)
            try:
                for number in range(40):
                    again.answer(f"key{number}")
                again.reject(again.intend("new", Calls(1, 9, 9), lambda _: None), "note")
                again.settle(again.intend("key7", Calls(1, 9, 9), lambda _: None), None, Answer("x", "stop"))
                again.account()
            finally:
                with contextlib.suppress(sqlite3.Error):
                    again.close()

        return refused(use)

    def run(self, folder: Path, damage: Callable[[Path], Any]) -> str:
        """A file of the frame in the directory of a finished run: the run is looked at, and gone on with."""
        run = folder / "run"
        shutil.copytree(self.root / "ran", run)
        frame = [file for file in sorted(run.rglob("*")) if file.is_file() and file.name != ".lock"]
        damage(random.Random(folder.name).choice(frame))
        words = [str(self.root / "small.yaml"), f"run.dir={run}"]
        return "refused" if max(command("check", *words), command("run", *words)) else "taken"

    def report(self, folder: Path, damage: Callable[[Path], Any]) -> str:
        run = folder / "run"
        made_run(run, "So. How many?")
        damage(random.Random(folder.name).choice([file for file in sorted(run.rglob("*")) if file.is_file()]))
        code = command("report", str(run))
        if not code:
            harmless((run / "report.html").read_text(encoding="utf-8"))
        mend(run / "metrics.jsonl", {"ppo": run / "ppo"})
        Tracker("ppo", run / "metrics.jsonl", quiet=True).restore(run / "ppo")
        refused(lambda: [RunDir(run).manifest(name) for name in ("ppo", "prm")])
        return "refused" if code else "taken"

    def zero(self, folder: Path, damage: Callable[[Path], Any]) -> str:
        file, rng = folder / "zero.json", random.Random(folder.name)
        shutil.copy(rng.choice(self.deepspeed), file)
        damage(file)
        words = ["plan", str(self.configs[0]), "--gpu-memory", "80"] if rng.random() < 0.5 else ["check", str(self.configs[0])]
        return "refused" if command(*words, f"launch.deepspeed={file}") else "taken"

    def load(self, folder: Path, damage: Callable[[Path], Any]) -> str:
        """A model's folder: tokenizer, weights, and what both say of themselves."""
        shutil.copytree(self.model, folder / "model")
        damage(random.Random(folder.name).choice(sorted((folder / "model").iterdir())))

        def use() -> None:
            tokenizer = load_tokenizer(folder / "model")
            model = load_policy(folder / "model")
            stop_ids(tokenizer, model)
            prompt_ids(tokenizer, QUESTION, SECTION)

        command("check", str(self.root / "small.yaml"), "model.random=null", f"model.path={folder / 'model'}")
        return refused(use)


def _digest(folder: Path) -> str:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != checkpoints.MANIFEST)
    return hashlib.sha256(b"".join(file.name.encode() + b"\0" + file.read_bytes() for file in files)).hexdigest()
