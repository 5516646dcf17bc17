"""`rlef convert`: what it writes, what it sets aside by line, what it refuses, and the way from PRM800K to a trained reward model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlef import convert as module
from rlef.cli import main
from rlef.commands.convert import FORMATS as NAMED
from rlef.commands.convert import READ_ALONE
from rlef.convert import convert
from rlef.errors import UserError
from rlef.formats import FORMATS

ROOT = Path(__file__).parents[2]
ALPACA = {"instruction": "Say é.", "input": "", "output": "é\u2028\nsaid"}


def lines(file):
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def to_file(*rows, name="in.jsonl"):
        raw = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
        (tmp_path / name).write_bytes(b"\n".join(raw))
        return name

    return to_file


def session(number, *, wrong):
    """A PRM800K row about problem `number`."""
    steps = [
        {"completions": [{"text": "Ben 1+2=3", "rating": 1, "flagged": False}, {"text": "Ben 1+2=4", "rating": -1, "flagged": False}],
         "human_completion": None, "chosen_completion": 0},
        {"completions": [{"text": f"#### {4 if wrong else 3}", "rating": -1 if wrong else 1, "flagged": False}],
         "human_completion": None, "chosen_completion": None if wrong else 0},
    ]  # fmt: skip
    label = {"steps": steps, "total_time": 1, "finish_reason": "found_error" if wrong else "solution"}
    return {"labeler": "x", "question": {"problem": f"Ann has 1 pen, Ben {number}. How many?"}, "label": label}


def test_the_command_names_every_format():
    assert tuple(FORMATS) == NAMED and tuple(name for name, form in FORMATS.items() if form.write is None) == READ_ALONE


def test_rows_come_through_and_the_format_is_said(source, capsys):
    assert main(["convert", source(ALPACA, ALPACA), "out/chat.jsonl", "--to", "messages"]) == 0
    assert (
        lines("out/chat.jsonl")
        == [{"messages": [{"role": "user", "content": "Say é."}, {"role": "assistant", "content": "é\u2028\nsaid"}]}] * 2
    )
    assert sorted(file.name for file in Path("out").iterdir()) == ["chat.jsonl"]
    assert "2 rows (alpaca, as its first rows look)" in capsys.readouterr().out
    assert main(["convert", "out/chat.jsonl", "back.jsonl", "--from", "messages", "--to", "alpaca", "--limit", "1"]) == 0
    assert lines("back.jsonl") == [ALPACA]


@pytest.mark.parametrize(
    "bad,told",
    [
        (b"{broken", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"instruction": "\xff"}', "not JSON: 'utf-8'"),
        (b'{"instruction": "\\ud800", "output": "x"}', "not JSON: 'utf-8'"),
        (b'{"instruction": "a", "output": "x", "score": NaN}', "NaN is no JSON number"),
        (b'{"instruction": "a", "output": "x", "score": 1e999}', "1e999 is too large"),
        (b'{"instruction": "a", "output": "x", "output": "y"}', "the key 'output' stands there twice"),
        (b'{"a":' * 100_000, "not JSON"),
        (b'{"instruction": "a"}', "no output"),
        (b'{"instruction": "a", "output": 5}', "output is no text"),
    ],
)
def test_a_bad_row_is_set_aside_with_its_line(source, capsys, bad, told):
    assert (
        main(["convert", source(b"\xef\xbb\xbf" + json.dumps(ALPACA).encode() + b"\r", b"", bad, ALPACA), "out.jsonl", "--to", "messages"])
        == 0
    )
    assert len(lines("out.jsonl")) == 2
    (aside,) = lines("out.bad.jsonl")
    assert (aside["file"], aside["line"]) == ("in.jsonl", 3) and told in aside["error"]
    assert aside["text"].encode("utf-8") == bad or b"\xff" in bad
    shown = capsys.readouterr().out
    assert "1 rows set aside" in shown and "in.jsonl, line 3" in shown


def test_what_the_target_cannot_hold_is_set_aside_and_can_be_read_again(source):
    talk = {"messages": [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]}
    source(talk, {"messages": talk["messages"][:2], "id": 7})
    done = convert("in.jsonl", "out.jsonl", to="alpaca")
    assert (done.rows, done.written, done.aside) == (2, 1, 1)
    assert lines("out.jsonl") == [{"instruction": "x", "input": "", "output": "x", "id": 7}]
    (aside,) = lines("out.bad.jsonl")
    assert "3 turns" in aside["error"] and json.loads(aside["text"]) == talk


def test_of_several_solutions_in_a_row_those_that_can_go_do(source):
    row = session(1, wrong=True)
    row["label"]["steps"][0]["completions"][1]["rating"] = 0
    done = convert(source(row), "out.jsonl", to="trl_stepwise")
    assert (done.rows, done.written, done.aside) == (1, 1, 1)
    assert (
        lines("out.bad.jsonl")[0]["error"]
        == "1 of the 2 rows that it makes: step 1 has the soft label 0.5, and the format has right and wrong alone"
    )


def test_a_mixed_file_is_what_most_of_its_first_rows_are(source):
    done = convert(source({"messages": []}, ALPACA, ALPACA), "out.jsonl", to="sharegpt")
    assert done.source.name == "alpaca" and done.recognised and (done.written, done.aside) == (2, 1)


@pytest.mark.parametrize(
    "words,told",
    [
        (["in.jsonl", "out.jsonl", "--to", "mesages"], "did you mean `messages`"),
        (["in.jsonl", "out.jsonl", "--to", "messages", "--from", "alpacca"], "--from alpacca: no such format; did you mean `alpaca`"),
        (["in.jsonl", "out.jsonl", "--to", "steps"], "alpaca (conversations) cannot become steps (judged steps)"),
        (["nowhere", "out.jsonl", "--to", "steps", "--from", "alpaca"], "alpaca can become: problems, solved, alpaca, sharegpt, messages"),
        (["in.jsonl", "out.jsonl", "--to", "prm800k"], "can be read, not written"),
        (["in.jsonl", "strange.jsonl", "--to", "messages"], "strange.jsonl: there already"),
        (["in.jsonl", "./in.jsonl", "--to", "messages", "--force"], "source and target are one file"),
        (["in.jsonl", "old.jsonl", "--to", "messages"], "old.bad.jsonl: there already"),
        (["in.jsonl", "folder", "--to", "messages", "--force"], "folder: there already"),
        (["none.jsonl", "out.jsonl", "--to", "messages"], "none.jsonl: no such file"),
        (["folder", "out.jsonl", "--to", "messages"], "folder"),
        (["in.jsonl", "in.jsonl/out.jsonl", "--to", "messages"], "in.jsonl"),
        (["strange.jsonl", "out.jsonl", "--to", "messages"], "no known format (its first row has a, b)"),
        (["empty.jsonl", "out.jsonl", "--to", "messages"], "none of its first 20 lines is a JSON object"),
        (["array.jsonl", "out.jsonl", "--to", "messages"], "jq -c"),
        (["in.jsonl", "out.jsonl", "--to", "messages", "--from", "sharegpt"], "no row can become messages (line 1: no conversations)"),
    ],
)
def test_mistakes(source, capsys, words, told):
    source(ALPACA)
    source({"a": 1, "b": 2}, name="strange.jsonl")
    source(b"", name="empty.jsonl")
    source(b"[", b"{}]", name="array.jsonl")
    source(ALPACA, name="old.bad.jsonl")
    Path("folder").mkdir()
    assert main(["convert", *words]) == 2
    shown = capsys.readouterr().err
    assert told in shown and "fix:" in shown
    assert not Path("out.jsonl").exists() and not list(Path().glob("*.partial"))


@pytest.mark.parametrize("words", [["--limit", "0"], ["stray"], ["a=b"], ["--bogus"]])
def test_what_the_command_does_not_know(source, words):
    with pytest.raises(SystemExit) as end:
        main(["convert", source(ALPACA), "out.jsonl", "--to", "messages", *words])
    assert end.value.code == 2


def test_force_replaces_both_files(source):
    convert(source(ALPACA, b"x"), "out.jsonl", to="messages")
    convert(source(ALPACA), "out.jsonl", to="alpaca", force=True)
    assert lines("out.jsonl") == [ALPACA] and not Path("out.bad.jsonl").exists()


def test_where_no_row_can_go_no_file_is_left(source):
    with pytest.raises(UserError, match="no row can become"):
        convert(source({"messages": 1}, ALPACA | {"output": 3}), "out.jsonl", to="messages", of="alpaca")
    assert not Path("out.jsonl").exists() and not Path("out.bad.jsonl").exists()


def test_one_row_is_held_at_a_time(source, monkeypatch):
    source(*[ALPACA] * 100)
    read, written = 0, []

    def counted(lines, *rest):
        def one_by_one():
            nonlocal read
            for line in lines:
                read += 1
                yield line

        return stream(one_by_one(), *rest)

    stream, converted = module._stream, module._converted
    monkeypatch.setattr(module, "_stream", counted)
    monkeypatch.setattr(module, "_converted", lambda *given: written.append(read) or converted(*given))
    convert("in.jsonl", "out.jsonl", to="messages")
    assert written == list(range(1, 101))


def test_a_data_set_folder(source):
    import datetime

    from datasets import Dataset, DatasetDict

    rows = [{"messages": [{"role": "user", "content": "q", "name": None}]}] * 2
    DatasetDict(
        {"test": Dataset.from_list(rows), "odd": Dataset.from_list([r | {"at": datetime.date(2024, 1, 1)} for r in rows[:1]])}
    ).save_to_disk("d")
    assert convert("d", "out.jsonl", to="messages", split="test").written == 2
    assert lines("out.jsonl") == rows
    with pytest.raises(UserError, match="none of its first"):
        convert("d", "odd.jsonl", to="messages", split="odd")
    with pytest.raises(UserError, match="split train"):
        convert("d", "no.jsonl", to="messages")


def test_the_command_loads_no_torch(source):
    source(ALPACA)
    code = "import sys; from rlef.cli import main; code = main(sys.argv[1:]); print(code, [n for n in ('torch', 'trl', 'transformers', 'datasets') if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code, "convert", "in.jsonl", "out.jsonl", "--to", "problems"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "rlef", "convert", "in.jsonl", "out.jsonl", "--to", "problems"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2 and done.stderr.startswith("error: out.jsonl: there already") and "Traceback" not in done.stderr


def test_converted_problems_are_problems_of_a_run(source):
    from rlef.sources import read_problems

    math = {"instruction": "2+3?", "output": "2+3=<<2+3=5>>5\n#### 5"}
    convert(source(math, ALPACA), "problems.jsonl", to="problems")
    first, second = read_problems("problems.jsonl")[0]
    assert (first.question, first.solution, first.answer, first.domain, first.depth) == ("2+3?", ("2+3=5",), "5", "math", 1)
    assert (second.solution, second.answer, second.domain) == ((ALPACA["output"],), None, "general")


def test_from_prm800k_to_a_reward_model(source, tiny_folder, capsys):
    from reward_models.cli import main as reward_models

    source(*[session(number, wrong=number % 2 == 0) for number in range(40)])
    assert main(["convert", "in.jsonl", "steps.jsonl", "--to", "steps"]) == 0
    assert "40 rows (prm800k" in capsys.readouterr().out and len(lines("steps.jsonl")) == 80
    train = [
        "train",
        "prm",
        "--labels",
        "steps.jsonl",
        "--init",
        str(tiny_folder),
        "--out",
        "prm",
        "--batch-size",
        "8",
        "--micro-batch-size",
        "8",
    ]
    assert reward_models(train) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["train_solutions"] + result["held_out_solutions"] == 80 and result["held_out_solutions"]
    assert reward_models(["evaluate", "prm", "--model", "prm", "--labels", "steps.jsonl"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"]
