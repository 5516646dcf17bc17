"""The templates of all domains, a user's own, and which operation each parent gets."""

from __future__ import annotations

import re

import pytest

from rlef.cli import main
from rlef.config import ModelSection, RandomInit
from rlef.errors import UserError
from rlef.evolution.chat import ChatTeacher
from rlef.evolution.elimination import eliminated_by
from rlef.evolution.operations import choose_operations, line_of, operations_of, read_operations
from rlef.records import Problem, problem_id
from rlef.rollout.remote import ChatModel

PARENT = "Sort a list of 9 names."
# What each template must ask for, in words of its own.
ASKS = {
    ("general", "up.add_constraint"): "one constraint",
    ("general", "up.deepen"): "in more depth",
    ("general", "up.concretise"): "specific one",
    ("general", "up.add_step"): "several thoughts",
    ("general", "up.complicate_input"): "table",
    ("general", "breadth.new_topic"): "less often",
    ("code", "up.add_requirement"): "one more requirement",
    ("code", "up.rarer_requirement"): "rarer",
    ("code", "up.add_step"): "reasoning more",
    ("code", "up.misleading_code"): "is wrong",
    ("code", "up.tighten_limits"): "time or memory",
    ("math", "up.add_constraint"): "one condition",
    ("math", "up.concretise"): "definite quantity",
    ("math", "up.add_step"): "one more step",
    ("math", "down.easier_revision"): "easier to solve",
    ("math", "down.easier_topic"): "another topic that is easier",
    ("math", "breadth.new_topic"): "as hard as the example",
}
TEMPLATES = [(domain, name) for domain, known in read_operations().items() for name in known]


class Echo(ChatModel):
    """A chat model that writes one text and remembers what it was asked."""

    name = "echo"

    def __init__(self, answer):
        self.answer, self.seen = answer, []

    def complete(self, conversations, **_):
        self.seen += [messages[0]["content"] for messages in conversations]
        return [self.answer] * len(conversations)


def evolve(domain, operation, answer="Sort 9 names by their length.", templates=None):
    parent = Problem(id=problem_id(PARENT), question=PARENT, domain=domain)
    chat = Echo(answer)
    teacher = ChatTeacher(chat, ModelSection(random=RandomInit()), temperature=0.7, max_tokens=64, templates=templates)  # type: ignore[arg-type]
    return chat.seen, teacher.evolve([parent], [operation], round=1, seed=0)[0]


def test_there_is_a_test_of_every_template():
    assert set(TEMPLATES) == set(ASKS)


@pytest.mark.parametrize("domain,operation", ASKS)
def test_a_template_asks_for_its_operation(domain, operation):
    template = read_operations()[domain][operation]
    assert template.count("{question}") == 1
    heading = template.splitlines()[-1]
    seen, child = evolve(domain, operation, answer=f"**{heading}** Sort 9 names by length.")
    assert child is not None and (child.question, child.domain) == ("Sort 9 names by length.", domain)
    assert seen == [template.replace("{question}", PARENT)] and ASKS[domain, operation] in seen[0]


@pytest.mark.parametrize("domain,operation", ASKS)
def test_a_template_that_leaks_is_caught(domain, operation):
    template = read_operations()[domain][operation]
    parts = [part for part in re.split(r"(?<=[.:])\s+|; |\n|\{question\}", template) if len(part.split()) >= 6]
    assert len(parts) >= 2
    for part in parts:
        assert eliminated_by(PARENT, f"{part} Sort 9 names.", template=template) == "leaked_prompt", part
        assert eliminated_by(PARENT + part, f"{part} Sort 9 names.", template=template) is None  # the parent's own words
    assert eliminated_by(PARENT, f"Sort 9 names.\n{template.splitlines()[-1]} Sort 8.") == "leaked_prompt"
    assert eliminated_by(PARENT, "Sort 9 names by length, then tell which is the most common first letter.", template=template) is None


def test_own_operations_are_added_and_replace(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("code:\n  up.add_step: 'Mine: {question}'\n  breadth.port: 'Port it: {question}'\n")
    templates = read_operations(file)
    assert set(templates["code"]) == set(read_operations()["code"]) | {"breadth.port"} and templates["math"] == read_operations()["math"]
    assert evolve("code", "up.add_step", templates=templates)[0] == [f"Mine: {PARENT}"]
    assert operations_of("hf", file)["code"][-1] == "breadth.port"


@pytest.mark.parametrize(
    "text,words",
    [
        ("maths: {up.x: 'a {question}'}", ["maths", "known: math, code, general"]),
        ("math: {sideways.x: 'a {question}'}", ["math.sideways.x", "up, down, breadth"]),
        ("math: {up: 'a {question}'}", ["math.up", "line.name"]),
        ("math: {up.x: 'a question'}", ["math.up.x", "{question}"]),
        ("math: {up.x: 3}", ["math.up.x", "text"]),
        ("math: [up.x]", ["math", "mapping"]),
        ("- math", ["mapping"]),
        ("math: {up.x: 'a {question}', up.x: 'b {question}'}", ["line 1", "given twice"]),
        ("math: {up.x: no, up: no}", ["2 mistake(s)", "math.up.x", "math.up:"]),
    ],
)
def test_mistakes_in_a_file_are_told_before_the_run(tmp_path, monkeypatch, capsys, text, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(text)
    (tmp_path / "rows.jsonl").write_text('{"question": "Sort.", "answer": "1"}\n')
    (tmp_path / "run.yaml").write_text(
        "model: {random: {}}\nteacher: {kind: openai, model: m, base_url: 'http://127.0.0.1:9'}\n"
        "stages:\n  problems: {source: jsonl, path: rows.jsonl, held_out_path: rows.jsonl}\n  evolve: {operations_file: my.yaml}\n"
    )
    assert main(["check", "run.yaml"]) == 2
    shown = capsys.readouterr().err
    assert all(word in shown for word in ("my.yaml", "fix:", *words)), shown


NAMES = {"math": ("up.a", "up.b", "down.c"), "code": ("up.d",)}


def share(drawn, start):
    return sum(name.startswith(start) for name in drawn) / len(drawn)


def test_operations_follow_the_weights():
    drawn = choose_operations(["math"] * 4000, NAMES, {"up": 3, "down": 1}, seed="s")
    assert 0.72 < share(drawn, "up") < 0.78 and set(drawn) == set(NAMES["math"])
    assert drawn == choose_operations(["math"] * 4000, NAMES, {"up": 3, "down": 1}, seed="s")
    for weights in ({"breadth": 1.0}, {"up": 0.0}, {"up": 1.0, "up.x": 1.0}):
        with pytest.raises(UserError, match=r"evolve\.weights"):
            choose_operations(["math"], NAMES, weights, seed="s")


def test_one_operation_may_have_its_own_weight():
    drawn = choose_operations(["math"] * 4000, NAMES, {"up": 1, "up.a": 2, "down": 1}, seed="s")
    assert 0.46 < share(drawn, "up.a") < 0.54 and 0.22 < share(drawn, "up.b") < 0.28
    assert "up.a" not in choose_operations(["math"] * 400, NAMES, {"up": 1, "up.a": 0}, seed="s")


def test_each_parent_gets_an_operation_of_its_domain():
    domains = ["math", "code"] * 200
    drawn = choose_operations(domains, NAMES, {"up": 1, "down": 1}, seed="s")
    assert all(name in NAMES[domain] for domain, name in zip(domains, drawn, strict=True)) and set(drawn) == {
        "up.a",
        "up.b",
        "up.d",
        "down.c",
    }
    with pytest.raises(UserError, match="domain code"):
        choose_operations(domains, NAMES, {"down": 1}, seed="s")


def test_feedback_gives_the_line_and_weights_the_operation_in_it():
    rates = [0.0, 0.19, 0.2, 0.5, 0.8, 0.81, 1.0]
    assert [line_of(rate, (0.2, 0.8)) for rate in rates] == ["down", "down", "breadth", "breadth", "breadth", "up", "up"]
    known = operations_of("openai", None)
    domains = ["math"] * 300 + ["code"] * 300 + ["general"] * 300
    lines = ["up", "down", None] * 300
    chosen = choose_operations(domains, known, {"up": 1, "down": 1, "breadth": 1, "up.add_step": 2}, seed="s", lines=lines)
    taken = {(domain, line): {one.split(".")[0] for one, *rest in zip(chosen, domains, lines, strict=True) if rest == [domain, line]}
             for domain in known for line in ("up", "down")}  # fmt: skip
    # Code has no easier line and no breadth, the general domain no easier line: the nearest there is.
    assert taken == {
        ("math", "up"): {"up"}, ("math", "down"): {"down"}, ("code", "up"): {"up"}, ("code", "down"): {"up"},
        ("general", "up"): {"up"}, ("general", "down"): {"breadth"},
    }  # fmt: skip
    math_up = [one for one, domain, line in zip(chosen, domains, lines, strict=True) if (domain, line) == ("math", "up")]
    assert 55 <= math_up.count("up.add_step") <= 80  # two of three
    # A line without weight is not taken even by what calls for it.
    assert set(choose_operations(["math"] * 50, known, {"up": 1, "down": 0}, seed="s", lines=["down"] * 50)) <= {
        name for name in known["math"] if name.startswith("up.")
    }
