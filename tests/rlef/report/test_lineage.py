"""The evolution trees: what changed in a text, and which problems go into the page."""

from __future__ import annotations

import yaml

from rlef.records import Eliminated, Lineage, Problem, write_jsonl
from rlef.report.data import Run
from rlef.report.lineage import CHARACTERS, GONE, MOST, NEW, SAME, TREE, as_json, differences, forest


def test_a_rewrite_is_told_in_kept_new_and_lost_words():
    assert differences("Ann has 2 eggs. How many?", "Ann has 3 eggs. She eats 1. How many?") == [
        (SAME, "Ann has "),
        (GONE, "2"),
        (NEW, "3"),
        (SAME, " "),
        (SAME, "eggs. "),
        (NEW, "She eats 1."),
        (SAME, " "),
        (SAME, "How many?"),
    ]


def test_without_its_lost_words_it_is_the_text_to_the_letter():
    for parent, child in (("a b c d", "  a x\n\tb c d \n"), ("a b", "a b"), ("a", ""), ("", "new"), ("a b c", "a b c d e")):
        assert "".join(text for kind, text in differences(parent, child) if kind != GONE) == child


def test_another_problem_and_one_too_long_to_compare_are_not_marked():
    assert differences("Ann has two eggs", "How far is the moon") == [(SAME, "How far is the moon")]
    parts = differences("word " * 1000, "new " + "word " * 1000)
    assert [kind for kind, _ in parts] == [SAME]


def test_marks_that_turn_a_line_round_stand_as_codes():
    assert differences("a", "b \u202e c") == [(SAME, "b \\u202e c")]


def made(tmp_path, seeds, evolved, eliminated=()):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"stages": {"problems": {"kind": "problems"}, "evolve": {"kind": "evolve"}}}))
    write_jsonl(tmp_path / "problems" / "seeds.jsonl", seeds)
    write_jsonl(tmp_path / "evolve" / "evolved.jsonl", evolved)
    write_jsonl(tmp_path / "evolve" / "eliminated.jsonl", eliminated)
    return Run(tmp_path)


def child(name, parent, number=1):
    return Problem(
        id=name, question=f"{name}?", lineage=Lineage(parent=parent, root="s", operation="up.add_step", round=number, teacher="symbolic")
    )


def test_trees_hold_parents_before_children_and_what_was_eliminated(tmp_path):
    seeds = [Problem(id=name, question=f"{name}?") for name in ("s", "childless", "t")]
    same = Eliminated(problem=child("s", "s"), rule="no_information_gain", detail="x")  # has its parent's id, and no tree of its own
    run = made(tmp_path, seeds, [child("a", "s"), child("b", "a", 2), child("c", "t")], [same])
    nodes, trees = forest(run)
    assert trees == 2
    assert [(node.problem.id, node.parent, node.rule) for node in nodes] == [
        ("s", -1, None),
        ("a", 0, None),
        ("s", 0, "no_information_gain"),
        ("b", 1, None),
        ("t", -1, None),
        ("c", 4, None),
    ]
    rows = as_json(nodes)["nodes"]
    assert rows[2] == {"p": 0, "t": [(SAME, "s?")], "o": "up.add_step", "r": 1, "w": "no_information_gain", "wd": "x"}
    assert "o" not in rows[0]


def test_parents_in_a_circle_end(tmp_path):
    run = made(tmp_path, [Problem(id="s", question="s?")], [child("a", "b"), child("b", "a"), child("a", "s")])
    assert [node.problem.id for node in forest(run)[0]] == ["s", "a", "b"]


def test_of_many_trees_some_from_all_over_are_shown_and_of_a_large_one_its_upper_part(tmp_path):
    seeds = [Problem(id=f"s{number}", question=f"{number}?") for number in range(400)]
    evolved = [child(f"c{number}.{copy}", f"s{number}") for number in range(400) for copy in range(20)]
    nodes, trees = forest(made(tmp_path, seeds, evolved))
    assert trees == 50 and len(nodes) == 50 * 21 <= MOST * 1.1
    roots = [node.problem.id for node in nodes if node.parent < 0]
    assert roots[0] == "s0" and roots[-1] == "s399"
    nodes, trees = forest(made(tmp_path, seeds[:1], [child(f"c{number}", "s0") for number in range(3000)]))
    assert (len(nodes), trees) == (TREE, 1)


def test_long_problems_are_fewer(tmp_path):
    seeds = [Problem(id=f"s{number}", question="word " * 700) for number in range(40)]
    evolved = [
        child(f"c{number}.{copy}", f"s{number}").model_copy(update={"question": "x " * 1750}) for number in range(40) for copy in range(20)
    ]
    nodes, trees = forest(made(tmp_path, seeds, evolved))
    assert 0 < trees < 20 and sum(len(node.problem.question) for node in nodes) <= CHARACTERS


def test_a_run_without_children_has_no_tree(tmp_path):
    assert forest(made(tmp_path, [Problem(id="s", question="s?")], [])) == ([], 0)
