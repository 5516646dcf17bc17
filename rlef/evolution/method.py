"""Auto Evol-Instruct (arXiv 2406.00770) without files: which evolutions fail, what the optimiser is asked, which template wins."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from reward_models.statistics import wilson
from rlef import prompts
from rlef.evolution.chat import ChatTeacher
from rlef.evolution.decontamination import ngrams, plain
from rlef.evolution.elimination import LEAKED_RUN, REFUSAL_WORDS, STOP_WORDS, eliminated_by
from rlef.evolution.operations import flaw
from rlef.records import Problem

KEPT_SHARE = 0.3  # of the parent's words with a meaning, numbers among them, that a harder version still has
ACKNOWLEDGEMENT_WORDS = 40  # "Sure, .. ?" in a longer answer is a courtesy around an answer
SHOWN, SHOWN_CHARACTERS = 6, 400  # evolutions that the optimiser sees, and how much of each of their texts
# What the optimiser is told of a failure. The paper's three kinds: stagnant complexity (no_information_gain, only_acknowledges),
# insufficient qualification (asks_back) and loss of key information (lost_information, asks_back); the others are rules of elimination.
FAILURES = {
    "no_answer": "nothing was written",
    "stop_words": "nothing with a meaning was written",
    "refusal": "the rewrite was declined",
    "leaked_prompt": "words of the template stand in the rewrite",
    "no_question": "the rewrite asks nothing",
    "lost_information": "most of what was given is gone from the rewrite",
    "no_information_gain": "the rewrite asks for the same with the same difficulty",
    "no_response": "the rewrite got an empty answer",
    "refused": "the answer to the rewrite declines it",
    "only_acknowledges": "the answer to the rewrite only agrees and asks what to do",
    "asks_back": "the answer to the rewrite says that something needed is not given",
}
_ACKNOWLEDGES = re.compile(
    r"\W*(?:sure|of course|certainly|absolutely|understood|i understand|ok|okay|got it|great|thanks|thank you)\b", re.I
)
_ASKS_BACK = re.compile(
    r"\b(?:please|(?:could|can|would) you(?: please)?) (?:provide|specify|clarify|share|tell me|let me know|give me)\b"
    r"|\b(?:need|needs|require|requires) (?:some |to know )?(?:more|additional|further) (?:information|details?|context|data)\b"
    r"|\b(?:not|without) enough (?:information|details?|data)\b|\binsufficient (?:information|data)\b"
    r"|\b(?:information|quantity|number|value|price|amount|data) (?:is|are) (?:missing|not (?:given|specified|provided|stated))\b"
    r"|\b(?:cannot|can't|can not) be (?:determined|answered|solved)\b|\b(?:what|which|who)\b[^.?!]{0,40}\b(?:do|did) you mean\b",
    re.IGNORECASE,
)
_FENCED = re.compile(r"```\w*\n(.*?)```", re.DOTALL)
_HEADING = re.compile(r"^\W*(?:the )?(?:new |better |improved |changed )?template\W{0,3}:\W*?(?=\w|\{|\s)", re.IGNORECASE)
_PURPOSES = {"up": "a harder {noun} from it", "down": "an easier {noun} from it", "breadth": "another {noun} of its kind"}
_NOUNS = {"math": "problem", "code": "task", "general": "instruction"}


@dataclass(frozen=True)
class Trial:
    """One parent's evolution; `failure` is the rule that it failed by (a key of FAILURES), None where it succeeded."""

    parent: str
    child: str = ""
    response: str = ""  # empty where the child had failed before
    failure: str | None = None


@dataclass(frozen=True)
class Candidate:
    """A template that the optimiser wrote, and `reason` why it is no method (None: it is one)."""

    analysis: str
    template: str
    reason: str | None


@dataclass(frozen=True)
class Parents:
    """Seeds of one domain by use. `fresh` are the development parents again where seeds are too few: then only the noise is fresh."""

    development: list[Problem]
    fresh: list[Problem]
    pool: list[Problem]  # batches are drawn from it


# ----------------------------------------------------------------------------------------- failures


def failed_child(parent: Problem, child: str, operation: str, template: str) -> str | None:
    """The rule by which the evolved text alone fails: those of elimination, and for the line `up` the loss of what the parent says."""
    if not child:
        return "no_answer"
    rule = eliminated_by(parent.question, child, require_question=parent.domain == "math", template=template)
    if rule is None and operation.startswith("up."):
        said = _meaning(parent.question)
        if len(said & _meaning(child)) < KEPT_SHARE * len(said):
            return "lost_information"
    return rule


def _meaning(text: str) -> set[str]:
    """Its words with a meaning and its numbers; single letters in scripts that may not part words, where a clause would be one word."""
    return {part for token in plain(text) for part in (token if token[0] >= "\u0e00" else (token,))} - STOP_WORDS


def failed_response(response: str) -> str | None:
    """The rule by which an evolution fails that got this answer."""
    words = response.lower().split()
    if not words:
        return "no_response"
    if len(words) < REFUSAL_WORDS and any(word.startswith("sorry") for word in words):
        return "refused"
    if len(words) < ACKNOWLEDGEMENT_WORDS and _ACKNOWLEDGES.match(response) and response.rstrip().endswith("?"):
        return "only_acknowledges"
    return "asks_back" if _ASKS_BACK.search(response) else None


def try_out(teacher: ChatTeacher, parents: Sequence[Problem], operations: Sequence[str], *, seed: int) -> list[Trial]:
    """Evolve each parent by its operation; whether it failed. What fails by its text is neither judged nor answered: that would cost."""
    made = teacher.evolve(parents, operations, round=1, seed=seed)
    children = [child.question if child is not None else "" for child in made]
    failures = [
        failed_child(parent, child, operation, teacher.templates[parent.domain][operation])
        for parent, child, operation in zip(parents, children, operations, strict=True)
    ]
    alive = [place for place, failure in enumerate(failures) if failure is None]
    same = teacher.judge_same([(parents[place].question, children[place]) for place in alive])
    for place, judged in zip(alive, same, strict=True):
        failures[place] = "no_information_gain" if judged else None
    alive = [place for place in alive if failures[place] is None]
    # Without sampling: what is compared are templates, and equal children must get equal answers.
    responses = dict(zip(alive, teacher.ask([children[place] for place in alive], seed=seed, temperature=0.0), strict=True))
    for place, response in responses.items():
        failures[place] = failed_response(response)
    return [
        Trial(parent.question, child, responses.get(place, ""), failure)
        for place, (parent, child, failure) in enumerate(zip(parents, children, failures, strict=True))
    ]


def failure_rate(trials: Sequence[Trial]) -> dict[str, Any]:
    """n, failures by rule, their share and its 95 % interval (Wilson)."""
    failures = Counter(trial.failure for trial in trials if trial.failure is not None)
    failed = failures.total()
    return {
        "n": len(trials),
        "failures": dict(failures),
        "failure_rate": failed / len(trials),
        "ci95": list(wilson(failed, len(trials))),
    }


# ---------------------------------------------------------------------------------------- optimiser


def propose(
    teacher: ChatTeacher,
    domain: str,
    operation: str,
    trials: Sequence[Trial],
    *,
    count: int,
    temperature: float,
    max_tokens: int,
    seed: int,
) -> list[Candidate]:
    """`count` times: why did evolutions fail, and a template written by that analysis, checked."""
    template = teacher.templates[domain][operation]
    noun = _NOUNS[domain]
    line, _, name = operation.partition(".")
    parts = {"noun": noun, "purpose": _PURPOSES[line].format(noun=noun), "operation": name.replace("_", " "), "template": template}
    settings = {"temperature": temperature, "max_tokens": max_tokens}
    seen = trajectory(trials)
    analyses = teacher.ask([prompts.filled(prompts.METHOD_ANALYSE, **parts, trials=seen)] * count, seed=seed, **settings)
    asked = [prompts.filled(prompts.METHOD_REWRITE, **parts, analysis=analysis) for analysis in analyses]
    candidates: list[Candidate] = []
    for analysis, answer in zip(analyses, teacher.ask(asked, seed=seed + count, **settings), strict=True):
        written = parse_template(answer)
        known = [template, *(one.template for one in candidates)]
        candidates.append(Candidate(analysis, written, no_method(operation, written, known=known, trials=trials)))
    return candidates


def trajectory(trials: Sequence[Trial]) -> str:
    """The evolutions as the optimiser reads them: failed ones first, cropped."""
    lines = []
    for number, trial in enumerate(sorted(trials, key=lambda trial: trial.failure is None)[:SHOWN], 1):
        lines.append(f"{number}. Given: {trial.parent[:SHOWN_CHARACTERS]}")
        lines.append(f"Rewrite: {trial.child[:SHOWN_CHARACTERS]}")
        if trial.response:
            lines.append(f"Answer to the rewrite: {trial.response[:SHOWN_CHARACTERS]}")
        lines.append(f"Failed: {FAILURES[trial.failure]}.\n" if trial.failure else "Good.\n")
    return "\n".join(lines)


def parse_template(answer: str) -> str:
    """The template in an optimiser's answer: what is fenced, else all of it, without a heading. Small models forget where the given text
    goes: it then goes to the end."""
    fenced = _FENCED.search(answer)
    template = _HEADING.sub("", fenced[1] if fenced else answer).strip()
    return f"{template}\n\n{{question}}" if template and "{question}" not in template else template


def no_method(operation: str, template: str, *, known: Sequence[str], trials: Sequence[Trial]) -> str | None:
    """Why a proposed template is none: not_a_template (a user's would be an error, too), repeats one of `known`, copies_example: it has
    six words in a row of a parent or child (all of a shorter parent of three or more) that known[0], the template it improves, has not."""
    if flaw(operation, template) is not None:
        return "not_a_template"
    if any(template.split() == one.split() for one in known):
        return "repeats"
    tokens, own = plain(template), plain(known[0])
    for text, fewest in [(trial.parent, 3) for trial in trials] + [(trial.child, LEAKED_RUN) for trial in trials]:
        said = plain(text)
        size = min(LEAKED_RUN, len(said))
        if size >= fewest and ngrams(said, size) & (ngrams(tokens, size) - ngrams(own, size)):
            return "copies_example"
    return None


# ------------------------------------------------------------------------------------------- search


def split_parents(seeds: Sequence[Problem], *, development: int, batch: int, fresh: int, seed: str) -> Parents | None:
    """Disjoint parts of the seeds; None where there are fewer than development + batch."""
    if len(seeds) < development + batch:
        return None
    drawn = random.Random(seed).sample(list(seeds), len(seeds))
    head, rest = drawn[:development], drawn[development:]
    if len(rest) < batch + fresh:
        return Parents(head, head, rest)
    return Parents(head, rest[:fresh], rest[fresh:])


def winner(incumbent: int, candidates: Sequence[int]) -> int | None:
    """The place of the fewest failures, the first of equals; None where it is not below the incumbent's."""
    best = min(range(len(candidates)), key=lambda place: candidates[place], default=None)
    return best if best is not None and candidates[best] < incumbent else None


def goes_on(kept: Collection[bool], steps: int, patience: int) -> bool:
    """Whether another step follows those that did (True) or did not find something better."""
    return len(kept) < steps and (len(kept) < patience or any(list(kept)[-patience:]))
