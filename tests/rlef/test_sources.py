"""Rows of the shapes that users bring."""

from __future__ import annotations

import json

import pytest

from rlef.errors import UserError
from rlef.records import Problem, read_jsonl
from rlef.sources import read_problems

GSM8K = {
    "question": "Natalia sold 48 clips, then half as many. How many in all?",
    "answer": "She sold 48/2 = <<48/2=24>>24 in May.\nShe sold 48+24 = <<48+24=72>>72 in all.\n#### 1,072",
}


def read(tmp_path, *rows):
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return read_problems(file)


def test_gsm8k(tmp_path):
    (problem,), bad = read(tmp_path, GSM8K)
    assert problem.answer == "1072" and problem.depth == 2 and bad == []
    assert problem.solution == ("She sold 48/2 = 24 in May.", "She sold 48+24 = 72 in all.")


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(GSM8K).encode())
    assert len(read_problems(tmp_path / "p.jsonl")[0]) == 1


def test_other_shapes(tmp_path):
    rows, _ = read(
        tmp_path,
        {"problem": "1+1?", "solution": "One and one.\nIt is 2.", "answer": 2},
        {"question": "2+2?", "answer": "4"},
        {"instruction": "Name a colour.", "input": "warm", "output": "Red is a warm colour, and so is orange, as most painters say."},
        {"instruction": "Say hi.", "instances": [{"input": "", "output": "Hello to you and to everybody else who is here today."}]},
    )
    assert [row.answer for row in rows] == ["2", "4", None, None]
    assert rows[0].solution == ("One and one.", "It is 2.") and rows[1].solution is None
    assert rows[2].question == "Name a colour.\nwarm" and rows[2].domain == "general" and rows[3].domain == "general"


def test_numbers_are_answers_and_short_replies_to_instructions_are_not(tmp_path):
    rows, bad = read(
        tmp_path,
        {"question": "2+2?", "answer": 4},
        {"instruction": "Is it?", "output": "No"},
        {"instruction": "Sum 5 and 6.", "output": "11"},
        {"instruction": "a", "instances": ["text"]},
    )
    assert [row.answer for row in rows] == ["4", None, "11", None] and bad == []
    assert [row.domain for row in rows] == ["math", "general", "math", "general"] and rows[1].solution == ("No",)


def test_rows_of_our_own_keep_their_steps(tmp_path):
    rows, _ = read(
        tmp_path, {"question": "2+3?", "solution": ["2+3=5", "so 5"], "answer": "5"}, {"question": "Sort.", "solution": ["a\n b"]}
    )
    assert [(row.solution, row.answer, row.domain) for row in rows] == [(("2+3=5", "so 5"), "5", "math"), (("a\n b",), None, "general")]


def test_a_row_may_name_its_domain(tmp_path):
    rows, _ = read(tmp_path, {"question": "Sort.", "domain": "code"}, {"question": "2+2?", "answer": 4, "domain": "biology"})
    assert [row.domain for row in rows] == ["code", "math"]


POEM = "Two lines, then a blank:\n\n  indented <<so>>.\n#### A heading\nThe answer is: none."
CODE = "def f(x):\n    if x:\n        return 1\n\n    return 0"


def test_what_is_written_stays_whole_where_it_is_no_math(tmp_path):
    prose = "First thought.\n\n  - a point\n  - another point, indented"
    rows, _ = read(
        tmp_path,
        {"instruction": "Think.", "input": "", "output": prose + "\n"},
        {"instruction": "Rhyme.", "output": POEM, "domain": "general"},
        {"instruction": "Program.", "output": CODE, "domain": "code"},
        {"question": "Capital of France?", "answer": "Paris", "domain": "general"},
        GSM8K,
    )
    assert [row.solution for row in rows[:4]] == [(prose,), (POEM,), (CODE,), ("Paris",)] and rows[3].answer == "Paris"
    assert [row.domain for row in rows] == ["general", "general", "code", "general", "math"] and len(rows[4].solution) == 2
    given, _ = read_problems(tmp_path / "p.jsonl", domain="general")
    assert {row.domain for row in given} == {"general"} and given[4].solution == (GSM8K["answer"],) and given[4].depth is None


def test_rows_without_a_problem_are_counted_with_their_lines_and_set_aside(tmp_path):
    rows, bad = read(tmp_path, GSM8K, {"answer": "1"}, GSM8K)
    assert len(rows) == 1 and [row.line for row in bad] == [2, 3] and "repeats" in bad[1].error


@pytest.mark.parametrize("line", ["{broken", "[]", '{"question": "cut o'])
def test_a_broken_line_stops_unless_it_may_be_skipped(tmp_path, line):
    with pytest.raises(UserError, match="line 2.*\n.*skip_broken_lines"):
        read(tmp_path, GSM8K, line, GSM8K)
    rows, bad = read_problems(tmp_path / "p.jsonl", skip_broken=True)
    assert len(rows) == 1 and [row.line for row in bad] == [2, 3]


def test_a_datasets_folder(tmp_path):
    from datasets import Dataset, DatasetDict

    from rlef.sources import load_problems

    DatasetDict({"train": Dataset.from_list([GSM8K])}).save_to_disk(str(tmp_path / "d"))
    rows, _ = load_problems(str(tmp_path / "d"), subset=None, split="train")
    assert rows[0].answer == "1072"
    with pytest.raises(UserError, match="nowhere"):
        load_problems(str(tmp_path / "nowhere"), subset=None, split="train")


def test_an_empty_file_of_ours_is_allowed_only_where_it_may_be(tmp_path):
    from rlef.records import Solution, read_jsonl, write_jsonl

    write_jsonl(tmp_path / "solved.jsonl", [])
    assert read_jsonl(tmp_path / "solved.jsonl", Solution, may_be_empty=True) == []
    with pytest.raises(UserError, match="empty"):
        read_jsonl(tmp_path / "solved.jsonl", Solution)


@pytest.mark.parametrize("line", ["9" * 5000, "[" * 100_000, '{"question": ' + "9" * 5000 + "}"])
def test_json_that_no_number_or_nest_of_ours_can_hold_is_one_bad_line(tmp_path, line):
    file = tmp_path / "a.jsonl"
    file.write_text('{"question": "a?", "answer": "1"}\n' + line + "\n")
    problems, bad = read_problems(file, skip_broken=True)
    assert len(problems) == 1 and [row.line for row in bad] == [2]
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: not JSON"):
        read_problems(file)


def test_a_line_that_is_no_utf_8_is_one_bad_line_of_our_files(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"id": "a", "question": "\xff"}\n{"id": "b", "question": "c"}\n')
    rows = read_jsonl(file, Problem, strict=False)
    assert [row.id for row in rows] == ["b"] and [row.line for row in rows.bad] == [1]
    with pytest.raises(UserError, match=r"a\.jsonl, line 1"):
        read_jsonl(file, Problem)
