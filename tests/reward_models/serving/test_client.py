"""Several servers share the load in order; what fails is done by another or ends with a message, and never becomes a score."""

from __future__ import annotations

import json
import socket
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reward_models import client
from reward_models.client import RewardServers, ServedInstructionModel, ServedProcessModel, pieces_of, served_digest
from reward_models.config import ProcessModelConfig
from reward_models.errors import UserError
from reward_models.process import SETTINGS, ProcessRewardModel

NUMBERS = [str(number / 128) for number in range(128)]
HALVES = [number / 256 for number in range(128)]
HEALTH = {"status": "ready", "models": {"irm": {"digest": "d"}, "prm": {"digest": "d"}}, "limits": {"rows": 9, "body_bytes": 10**6}}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(client, "LONGEST_WAIT_S", 0.05)
    monkeypatch.delenv(client.TOKEN_ENV, raising=False)


@pytest.fixture
def nobody():
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def scripted():
    """scripted(answers) -> address of a server that gives these (status, headers, answer) in turn, the last one for ever."""
    servers = []

    def start(*answers, health=HEALTH):
        left = list(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(200, {}, health)

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                self.reply(*(left.pop(0) if len(left) > 1 else left[0]))

            def reply(self, code, headers, answer):
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(code)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_two_servers_share_and_the_order_is_that_of_the_rows(serve, halving):
    models = [halving(), halving()]
    with serve(lambda: {"irm": models[0]}) as (one, _), serve(lambda: {"irm": models[1]}) as (other, _):
        for rows in (128, 3, 1, 0):
            assert ServedInstructionModel([one, other + "/"]).score(NUMBERS[:rows]) == HALVES[:rows]
            done = [sum(len(forward) for forward in model.forwards) for model in models]
            assert sum(done) == rows and abs(done[0] - done[1]) <= 1
            for model in models:
                model.forwards.clear()


def test_a_dead_servers_share_goes_to_the_others(serve, halving, nobody, capsys):
    model = halving()
    with serve(lambda: {"irm": model}) as (alive, _):
        scorer = ServedInstructionModel([nobody, alive])
        assert nobody in capsys.readouterr().err
        assert scorer.score(NUMBERS) == HALVES and scorer.score(NUMBERS) == HALVES
        assert sum(len(forward) for forward in model.forwards) == 256


def test_one_that_dies_later_or_fails_is_replaced(serve, halving, scripted):
    for failure in [(500, {}, {"error": "out of memory"}), (502, {}, b"<html>"), (503, {"Retry-After": "0"}, {"error": "full"})]:
        with serve(lambda: {"irm": halving("d")}) as (alive, _):
            assert ServedInstructionModel([scripted(failure), alive]).score(NUMBERS) == HALVES


def test_what_fails_for_good_is_a_message_and_no_score(serve, halving, scripted):
    with serve(lambda: {"irm": halving("d")}) as (url, _):
        scorer = ServedInstructionModel([url, scripted((500, {}, {"error": "out of memory"}))], retries=2)
    with pytest.raises(UserError, match=r"(?s)no scores after 3 tries .*refused.*500 .*out of memory") as told:
        scorer.score(NUMBERS)
    assert url in str(told.value) and "fix:" in str(told.value)


def test_a_full_or_starting_server_is_waited_for(scripted):
    full, answer = (503, {"Retry-After": "1"}, {"error": "full"}), (200, {}, {"scores": [0.5], "model": "d"})
    assert ServedInstructionModel([scripted(full, full, answer)], retries=2).score(["1"]) == [0.5]


@pytest.mark.parametrize(
    "answer",
    [
        {"scores": [0.5, 0.5], "model": "d"},
        {"scores": [], "model": "d"},
        {"scores": [float("nan")], "model": "d"},
        {"scores": [1.5], "model": "d"},
        {"scores": [None], "model": "d"},
        {"scores": [0.5]},
        ["scores"],
        b"<html>",
    ],
)
def test_an_answer_that_is_none_is_no_score(scripted, answer):
    with pytest.raises(UserError, match="something else than scores"):
        ServedInstructionModel([scripted((200, {}, answer))]).score(["1"])


def test_trap_16_a_server_that_hangs_is_given_up_after_its_time_in_any_thread():
    """No alarm signal, which is for the main thread alone."""
    told, found = json.dumps(HEALTH).encode(), []
    answer = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(told) + told
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def healthy_once():
            connection, _ = listening.accept()
            connection.recv(4096)
            connection.sendall(answer)
            connection.close()

        def ask():
            scorer = ServedInstructionModel([f"http://127.0.0.1:{listening.getsockname()[1]}"], timeout_s=0.2, retries=1)
            with pytest.raises(UserError, match=r"no scores after 2 tries .*timed out"):
                scorer.score(["1"])
            found.append(True)

        threads = [threading.Thread(target=one) for one in (healthy_once, ask)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert found


def test_step_scores_must_fit_the_steps(scripted):
    def answer(**result):
        return 200, {}, {"results": [{"step_scores": [0.5], "truncated": False} | result], "model": "d"}

    assert ServedProcessModel([scripted(answer())]).score(["q"], [["a"]])[0].scores == (0.5,)
    for wrong in (answer(step_scores=[0.5, 0.5]), answer(truncated=True), answer(step_scores=[])):
        with pytest.raises(UserError, match=r"scores for 1 steps"):
            ServedProcessModel([scripted(wrong)]).score(["q"], [["a"]])


def test_an_outcome_model_gives_one_score_in_all(serve, model_folders, tmp_path):
    from reward_models.serving.models import load

    for file in Path(model_folders["prm"]).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / SETTINGS).write_text(ProcessModelConfig(max_length=96, outcome=True).model_dump_json())
    steps = [["Ben 3+4=7", "#### 7"], ["a"], []]
    local = ProcessRewardModel.load(tmp_path).score(["q"] * 3, steps)
    with serve(partial(load, None, str(tmp_path), "cpu")) as (url, _):
        served = ServedProcessModel([url]).score(["q"] * 3, steps)
    assert [len(one.scores) for one in served] == [1, 1, 0]
    assert [one.scores for one in served] == [pytest.approx(one.scores, abs=1e-5) for one in local]


def test_an_address_or_a_token_that_is_none_is_a_mistake(monkeypatch):
    for address in ("http://my host:1", "http://h:port"):
        with pytest.raises(UserError, match="no server of the process reward model answers"):
            ServedProcessModel([address])
    for token in ("s€cret", "two\nlines"):
        monkeypatch.setenv(client.TOKEN_ENV, token)
        with pytest.raises(UserError, match=client.TOKEN_ENV) as told:
            ServedProcessModel(["http://h:1"])
        assert token not in str(told.value)


def test_another_model_than_at_the_start_is_told(serve, halving, scripted):
    url = scripted((200, {}, {"scores": [0.5], "model": "d"}), (200, {}, {"scores": [0.5], "model": "e"}))
    scorer = ServedInstructionModel([url])
    assert scorer.score(["1"]) == [0.5]
    with pytest.raises(UserError, match="another instruction reward model"):
        scorer.score(["1"])
    with serve(lambda: {"irm": halving("one")}) as (one, _), serve(lambda: {"irm": halving("two")}) as (two, _):
        with pytest.raises(UserError, match="hold different instruction reward models"):
            served_digest([one, two], "irm")
        assert served_digest([one], "irm") == "one"
        with pytest.raises(UserError, match="serves no process reward model"):
            served_digest([one], "prm")


def test_nobody_answers(nobody, scripted):
    with pytest.raises(UserError, match=r"(?s)no server .* answers .*refused.*python -m reward_models serve --prm"):
        RewardServers([nobody], "prm")
    with pytest.raises(UserError, match="something else answers there"):
        RewardServers([scripted((200, {}, {}), health=["no"])], "prm")


def test_the_token_comes_from_the_environment(serve, halving, monkeypatch):
    with serve(lambda: {"irm": halving()}, token="s3cret") as (url, _):
        with pytest.raises(UserError, match=client.TOKEN_ENV):
            ServedInstructionModel([url]).score(["1"])
        monkeypatch.setenv(client.TOKEN_ENV, "s3cret")
        assert ServedInstructionModel([url]).score(["1"]) == [0.5]


def test_rejected_rows_are_no_scores(serve, halving):
    from reward_models.serving.app import RequestLimits

    with serve(lambda: {"irm": halving()}, limits=RequestLimits(rows=8, characters=10)) as (url, _):
        assert ServedInstructionModel([url]).score(NUMBERS[:3] * 7) == HALVES[:3] * 7  # in pieces of 8 rows
        with pytest.raises(UserError, match=r"(?s)rejects what it is asked .*more than 10 characters"):
            ServedInstructionModel([url]).score(["1" * 11])


def test_pieces():
    rows = ["aa", "aa", "aa", "é" * 50, "aa"]
    assert pieces_of(rows, 2, 100) == [rows[:2], rows[2:3], rows[3:4], rows[4:]]
    assert pieces_of(rows, 2, 102) == [rows[:2], rows[2:4], rows[4:]]
    assert pieces_of([], 2, 5) == [] and pieces_of(["long"], 2, 1) == [["long"]]


def test_served_steps_are_those_of_the_model_in_this_process(serve, model_folders):
    from reward_models.serving.models import load

    questions = [f"Ann has {number} pens." for number in range(40)]
    steps = [["Ben 3+4=7"] * (number % 5) for number in range(39)] + [["naïve — 数学"] * 60]
    local = ProcessRewardModel.load(model_folders["prm"]).score(questions, steps)
    with (
        serve(partial(load, None, model_folders["prm"], "cpu")) as (one, _),
        serve(partial(load, None, model_folders["prm"], "cpu")) as (two, _),
    ):
        served = ServedProcessModel([one, two]).score(questions, steps, 128)
    assert [one.truncated for one in served] == [one.truncated for one in local] == [False] * 39 + [True]
    for ours, theirs in zip(served, local, strict=True):
        assert ours.scores == pytest.approx(theirs.scores, abs=1e-5)
