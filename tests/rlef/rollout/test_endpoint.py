"""The endpoint client, its journal and its money, against a server that keeps a log."""

from __future__ import annotations

import email.utils
import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlef.config import Config, Prices
from rlef.errors import UserError
from rlef.evolution.chat import QUALITY_SCHEMA, ChatTeacher
from rlef.evolution.teachers import overlapped
from rlef.records import Problem, Solution, problem_id, read_jsonl, write_jsonl
from rlef.rollout import remote
from rlef.rollout.journal import Answer, Journal
from rlef.rollout.remote import OpenAIChat
from rlef.run_dir import RunDir
from rlef.stages import respond
from rlef.stages.context import StageContext
from rlef.tracking import Tracker

KEY = "sk-a-secret-that-no-file-may-hold"


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setenv("RLEF_TEST_KEY", KEY)
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def client(tmp_path):
    opened: list[OpenAIChat] = []

    def start(server, **options):
        settings = {"model": "m", "base_url": server.url, "api_key_env": "RLEF_TEST_KEY", "concurrency": 4, "timeout_s": 30.0, "retries": 3}
        opened.append(OpenAIChat(**settings | {"journal": Journal(tmp_path / "journal.sqlite")} | options))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def ask(chat, *texts, temperature=0.5, **options):
    return chat.complete(
        [[{"role": "user", "content": text}] for text in texts], **{"temperature": temperature, "max_tokens": 9, "seed": 7} | options
    )


@pytest.mark.parametrize(
    "fault,answer,paid,possibly,rejected",
    [
        ("429", "echo: x", 1, 0, 1),
        ("500", "echo: x", 1, 0, 1),
        (502, "echo: x", 1, 1, 0),
        ("hang", "echo: x", 1, 1, 0),
        ("reset", "echo: x", 1, 1, 0),
        ("cut", "echo: x", 1, 1, 0),
        ("drip", "echo: x", 1, 1, 0),
        ("odd", "echo: x", 1, 1, 0),
        ("empty", "echo: x", 2, 0, 0),
        ("no usage", "echo: x", 1, 0, 0),
        ("refusal", None, 1, 0, 0),
        (400, None, 0, 0, 1),
    ],
)
def test_every_fault_is_accounted_for(endpoint, client, fault, answer, paid, possibly, rejected):
    server = endpoint(fault)
    chat = client(server, timeout_s=1.0 if fault in ("hang", "drip") else 30.0)
    assert ask(chat, "x") == [answer]
    account = chat.journal.account()
    assert (account.paid.calls, account.possibly_paid.calls, account.rejected) == (paid, possibly, rejected)
    assert sum(outcome.startswith("paid") for outcome, *_ in server.log.values()) == paid
    assert chat.account()["calls"] == len(server.log) == paid + possibly + rejected
    if fault != "no usage":
        tokens = [sum(column) for column in zip(*(row[1:] for row in server.log.values() if row[0].startswith("paid")), strict=True)]
        assert [account.paid.prompt_tokens, account.paid.completion_tokens] == (tokens or [0, 0])
    else:
        assert account.paid.completion_tokens == 9 and account.paid.prompt_tokens > 100  # the most it can have been


def test_the_first_trouble_is_said_at_once_and_the_others_are_not(endpoint, client, capsys):
    server = endpoint("empty", "500", "500")
    assert ask(client(server), "x") == ["echo: x"]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and server.url in said[0] and "try 3 of 4 in" in said[0]


def test_never_usable_is_one_rows_fault_and_is_not_paid_for_again(endpoint, client):
    server = endpoint(*["empty"] * 4)
    assert ask(client(server), "x") == [None] and len(server.seen) == 4
    assert ask(client(server), "x", "y") == [None, "echo: y"] and len(server.seen) == 5


def test_what_the_journal_holds_is_not_sent_again(endpoint, client):
    server = endpoint()
    assert ask(client(server), "x", "y") == ["echo: x", "echo: y"]
    chat = client(server)
    assert ask(chat, "x", "y") == ["echo: x", "echo: y"] and len(server.seen) == 2
    assert (chat.account()["calls"], chat.account()["journal_hits"], chat.account()["run_paid_calls"]) == (0, 2, 2)
    ask(chat, "x", temperature=0.6)
    ask(chat, "x", max_tokens=8)
    ask(chat, "x", seed=9)
    ask(chat, "z", schema={"type": "object"})
    ask(chat, "z")
    ask(client(server, model="n"), "x")
    assert len(server.seen) == 8


def test_how_an_answer_ended_is_told_now_and_from_the_journal(endpoint, client):
    server = endpoint(None, "refusal", answer=lambda body: body["messages"][0]["content"])
    asked = [[{"role": "user", "content": text}] for text in ("one two", "no", "one two three")]
    told = [Answer("one two", "stop"), Answer(None, "refusal"), Answer("one two three", "length")]
    for _ in range(2):
        assert client(server, concurrency=1).answers(asked, temperature=0.5, max_tokens=3, seed=0) == told and len(server.seen) == 3
    server.script = [400]
    assert client(server).answers(asked[:1], temperature=0.6, max_tokens=3, seed=0) == [Answer(None, "rejected")]


def test_without_sampling_a_question_is_asked_once_wherever_it_stands(endpoint, client):
    server = endpoint(seconds=(0.1, 0.1))
    chat = client(server)
    assert ask(chat, "x", "y", "x", temperature=0.0) == ["echo: x", "echo: y", "echo: x"] and len(server.seen) == 2
    assert ask(chat, "z", "x", temperature=0.0) == ["echo: z", "echo: x"] and len(server.seen) == 3


def test_the_cap_holds_with_calls_in_flight_and_raising_it_goes_on(endpoint, client):
    server = endpoint("hang", seconds=(0.02, 0.02))
    prices, texts = Prices(prompt=1, completion=100_000), [f"question {number}" for number in range(30)]
    with pytest.raises(UserError, match="max_cost_usd") as error:
        ask(client(server, prices=prices, cap_usd=3.0), *texts)
    billed = sum(prices.usd(prompt, completion) for outcome, prompt, completion in server.log.values() if outcome != "free")
    account = Journal(Path(client(server).journal._database.execute("PRAGMA database_list").fetchone()[2])).account()
    spent = sum(prices.usd(one.prompt_tokens, one.completion_tokens) for one in (account.paid, account.possibly_paid))
    assert 2.0 < billed <= spent <= 3.0 and "3 USD" in str(error.value) and "paid" in str(error.value)
    answered = sum(server.whole.values())
    chat = client(server, prices=prices, cap_usd=30.0)
    assert ask(chat, *texts) == [f"echo: {text}" for text in texts]
    assert chat.account()["journal_hits"] == answered and max(server.whole.values()) == 1
    assert chat.account()["run_paid_usd"] == pytest.approx(sum(prices.usd(*row[1:]) for row in server.log.values() if row[0] == "paid"))


@pytest.mark.parametrize("takes", [True, False])
def test_the_quality_judge_asks_for_json_where_the_server_can_be_held_to_it(endpoint, client, takes):
    server = endpoint(takes_schemas=takes, answer=lambda body: 'Sure! {"definition": 8, "precision": 10, "integrity": 3}')
    config = Config.model_validate({"model": {"random": {}}, "stages": {"problems": {"kind": "problems"}}})
    problems = [Problem(id=problem_id(text), question=text) for text in "abcdefgh"]
    teacher = ChatTeacher(client(server), config.model, temperature=0.7, max_tokens=64)
    qualities = teacher.judge_instructions(problems, seed=0)
    assert [quality.integrity for quality in qualities] == [0.3] * 8
    formats = [body.get("response_format") for body in server.seen]
    assert len(formats) == (8 if takes else 9) and sum(one is not None for one in formats) == (8 if takes else 1)
    assert next(one for one in formats if one)["json_schema"]["schema"] == QUALITY_SCHEMA
    again = ChatTeacher(client(server), config.model, temperature=0.7, max_tokens=64)
    assert again.judge_instructions(problems, seed=0) == qualities and len(server.seen) == len(formats)


def test_a_setting_that_the_server_does_not_take_is_told_early(endpoint, client):
    server = endpoint(*[400] * 100)
    with pytest.raises(UserError, match=r"first 2\d requests were rejected"):
        ask(client(server), *map(str, range(100)))
    assert len(server.seen) < 30


@pytest.mark.parametrize("fault", [400, 401, "500"])
def test_the_key_stands_in_no_file_and_no_message(endpoint, client, tmp_path, fault):
    chat = client(endpoint(*[fault] * 9))
    try:
        ask(chat, "x")
    except UserError as error:
        assert KEY not in str(error)
    assert any(b"***" in file.read_bytes() for file in tmp_path.iterdir())  # what the server said, without the key that it repeats
    assert not any(KEY.encode() in file.read_bytes() for file in tmp_path.iterdir())


def test_waits():
    waits = [[remote._wait({}, number) for _ in range(50)] for number in range(20)]
    for number, row in enumerate(waits):
        longest = min(30.0, 0.01 * 2**number)
        assert longest / 2 <= min(row) <= max(row) <= longest and len(set(row)) > 10
    date = email.utils.formatdate(time.time() + 50, usegmt=True)
    for asked, low, high in (("7", 7, 7.8), (date, 47, 56), ("86400", 600, 661), ("0", 0.005, 0.01), ("soon", 0.005, 0.01)):
        assert low <= remote._wait({"retry-after": asked}, 0) <= high


def test_side_by_side_calls_come_in_order_and_a_mistake_ends_them(endpoint, client):
    server = endpoint(seconds=(0.0, 0.02))
    config = Config.model_validate({"model": {"random": {}}, "stages": {"problems": {"kind": "problems"}}})
    teacher = ChatTeacher(client(server), config.model, temperature=0.7, max_tokens=64)
    calls = [lambda n=n: ask(teacher.chat, f"{n}a", f"{n}b") for n in range(12)]
    assert list(overlapped(teacher, calls, 2)) == [[f"echo: {n}a", f"echo: {n}b"] for n in range(12)]
    server.script = [401] * 1000
    with pytest.raises(UserError, match="teacher at"):
        list(overlapped(teacher, [lambda n=n: ask(teacher.chat, f"{n}c", f"{n}d") for n in range(200)], 2))
    assert len(server.seen) < 24 + 10


def test_a_run_whose_only_trace_is_what_it_paid_for_stays(tmp_path):
    run = RunDir(tmp_path / "run")
    run.create({})
    run.start("evolve", {})
    Journal(run.journal_file).close()
    run.fail("evolve", UserError("the teacher is gone"))
    assert run.journal_file.is_file() and not run.stage("evolve").exists()


def direct_load(server, bodies, concurrency):
    """The same requests by plain connections that each send the next as soon as they have an answer."""
    left, lock = list(reversed(bodies)), threading.Lock()

    def work():
        connection = http.client.HTTPConnection("127.0.0.1", server.http.server_port)
        while True:
            with lock:
                if not left:
                    return
                body = left.pop()
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Authorization": "none"})
            connection.getresponse().read()

    with ThreadPoolExecutor(concurrency) as pool:
        for job in [pool.submit(work) for _ in range(concurrency)]:
            job.result()


@pytest.mark.slow
def test_a_stage_keeps_the_server_as_busy_as_a_direct_load(endpoint, tmp_path):
    seconds, concurrency = (0.5, 1.5), 16
    server = endpoint(seconds=seconds, answer=lambda body: "1+1=2\n#### 2")
    teacher = {"kind": "openai", "model": "m", "base_url": server.url, "api_key_env": "RLEF_TEST_KEY", "concurrency": concurrency}
    stage = {"kind": "respond", "count": 10**6, "samples": 2}
    config = Config.model_validate({"model": {"random": {}}, "teacher": teacher, "stages": {"respond": stage}})
    questions = [f"What is 1+1, number {number}?" for number in range(128)]
    write_jsonl(tmp_path / "evolved.jsonl", [Problem(id=problem_id(text), question=text) for text in questions])
    inputs = {"prompts": tmp_path}
    ctx = StageContext("respond", config, config.stages["respond"], inputs, tmp_path, Tracker.null(), tmp_path / "journal.sqlite")
    direct = endpoint(seconds=seconds)
    bodies = [{"messages": [{"role": "user", "content": text}], "max_tokens": 512, "seed": seed} for text in questions for seed in (0, 1)]
    with ThreadPoolExecutor(1) as beside:  # at the same time, so that both get the same share of this machine
        load = beside.submit(direct_load, direct, bodies, concurrency)
        result = respond.run(ctx)
        load.result()
    assert result["solved"] == len(list(read_jsonl(tmp_path / "solved.jsonl", Solution))) == 128 and result["teacher"]["calls"] == 256
    ours, theirs = server.busy(concurrency), direct.busy(concurrency)
    print(f"busy: stage {ours:.3f}, direct load {theirs:.3f}")
    assert theirs > 0.8 and ours >= 0.9 * theirs


@pytest.mark.parametrize("count", [10**30, -1, 2.5, None, "9"])
def test_counts_that_no_server_can_mean_are_not_believed(count):
    answer, used = remote.read_body({"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": count, "completion_tokens": 1}})
    assert answer == Answer("x", "None") and used is None


def test_half_a_character_is_replaced_where_an_answer_comes_in(tmp_path):
    body = json.loads('{"choices": [{"message": {"content": "a\\ud800b \\ud83d\\ude00"}, "finish_reason": "stop\\udfff"}]}')
    answer, _ = remote.read_body(body)
    assert answer == Answer("a?b 😀", "stop?")
    assert Journal(tmp_path / "journal.sqlite").keep("k", answer) == answer


def test_what_a_server_says_does_not_act_in_the_terminal(endpoint, client, capsys):
    client(endpoint())._tell("\x1b]52;c;cm0=\x07", 0, 1.0)
    assert "\\x1b]52;c;cm0=\\x07" in capsys.readouterr().err
