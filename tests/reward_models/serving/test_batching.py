"""Rows of many requests in one forward, a queue with an end, and one request's fault that is not the others'."""

from __future__ import annotations

import threading
import time

import pytest

from reward_models.serving.batching import Batcher, BatchLimits, NotReady, QueueFull


@pytest.fixture
def started(halving):
    """(batcher, model) by limits; the model is held up in a first forward of the row "0" until its gate opens."""
    batchers = []

    def start(**limits):
        model = halving()
        batcher = Batcher(lambda: {"a": model}, BatchLimits(**({"wait_s": 0.0} | limits)))
        batcher.start()
        batchers.append(batcher)
        while not batcher.models:
            time.sleep(0.001)
        model.gate.clear()
        first = batcher.submit("a", ["0"])
        assert model.inside.wait(10)
        return batcher, model, first

    yield start
    for batcher in batchers:
        batcher.close()


def test_what_waits_while_a_forward_runs_goes_into_the_next_together(started):
    batcher, model, first = started(rows=8)
    answers = [batcher.submit("a", [str(n), str(n + 1)]) for n in range(5)]
    model.gate.set()
    assert [answer.result(10) for answer in answers] == [[n / 2, (n + 1) / 2] for n in range(5)] and first.result() == [0.0]
    assert [len(rows) for rows in model.forwards] == [1, 8, 2]


def test_a_forward_waits_a_little_for_company(halving):
    model = halving()
    batcher = Batcher(lambda: {"a": model}, BatchLimits(rows=3, wait_s=30.0))
    batcher.start()
    while not batcher.models:
        time.sleep(0.001)
    answers = [batcher.submit("a", [str(n)]) for n in range(3)]  # full after three: not after 30 seconds
    assert [answer.result(10) for answer in answers] == [[0.0], [0.5], [1.0]] and model.forwards == [["0", "1", "2"]]
    batcher.close()


def test_padding_counts_in_the_token_budget_and_order_is_kept(started):
    batcher, model, _ = started(rows=8, tokens=12)
    rows = ["111", "222", "333333333", "444", "5555555555555555"]
    answer = batcher.submit("a", rows)
    model.gate.set()
    assert answer.result(10) == [int(row) / 2 for row in rows]
    assert model.forwards[1:] == [rows[:2], rows[2:3], rows[3:4], rows[4:]]  # the last is longer than the budget: alone


def test_the_queue_has_an_end_and_who_left_is_not_scored(started):
    batcher, model, _ = started(queue_rows=4)
    kept, left = batcher.submit("a", ["1", "2"]), batcher.submit("a", ["3", "4"])
    assert batcher.waiting == 4
    with pytest.raises(QueueFull):
        batcher.submit("a", ["5"])
    assert left.cancel()
    model.gate.set()
    assert kept.result(10) == [0.5, 1.0] and batcher.submit("a", []).result(10) == []
    assert model.forwards == [["0"], ["1", "2"]]


def test_one_row_that_fails_takes_no_other_request_with_it(started):
    batcher, model, _ = started()
    asked = [["2"], ["4", "boom"], ["?", "6"], ["8"]]
    answers = [batcher.submit("a", rows) for rows in asked]
    model.gate.set()
    assert answers[0].result(10) == [1.0] and answers[3].result(10) == [4.0]
    with pytest.raises(RuntimeError, match="boom"):
        answers[1].result(10)
    with pytest.raises(ValueError, match="unreadable"):
        answers[2].result(10)
    assert batcher.submit("a", ["3"]).result(10) == [1.5]


def test_a_model_that_loses_a_result_fails_its_requests_and_the_others_go_on(halving):
    class Losing(halving):
        def score(self, read):
            return super().score(read)[: -1 if "13" in read else None]

    batcher = Batcher(lambda: {"a": Losing()}, BatchLimits(wait_s=0.0))
    batcher.start()
    while not batcher.models:
        time.sleep(0.001)
    with pytest.raises(ValueError, match="shorter"):
        batcher.submit("a", ["1", "13"]).result(10)
    assert batcher.submit("a", ["1"]).result(10) == [0.5]
    batcher.close()


def test_the_end_does_not_wait_for_a_load():
    may = threading.Event()
    batcher = Batcher(lambda: {"loaded": may.wait(30)}, BatchLimits())
    batcher.start()
    ending = threading.Thread(target=batcher.close)
    ending.start()
    ending.join(10)
    assert not ending.is_alive()
    may.set()


def test_the_end_answers_what_waits_and_takes_no_more(started):
    batcher, model, _ = started(rows=2)
    answers = [batcher.submit("a", [str(n)]) for n in range(5)]
    ending = threading.Thread(target=batcher.close)
    ending.start()
    while not batcher._closed:
        time.sleep(0.001)
    with pytest.raises(NotReady):
        batcher.submit("a", ["1"])
    model.gate.set()
    ending.join(10)
    assert [answer.result(0) for answer in answers] == [[n / 2] for n in range(5)]


def test_models_that_do_not_load_are_told():
    def load():
        raise LookupError("no such model")

    told = threading.Event()
    batcher = Batcher(load, BatchLimits())
    batcher.start(told.set)
    assert told.wait(10) and isinstance(batcher.failure, LookupError)
    with pytest.raises(NotReady):
        batcher.submit("a", ["1"])
    batcher.close()


def test_kinds_take_turns_by_who_waits_longest(halving):
    order, gate, inside = [], threading.Event(), threading.Event()

    class Named(halving):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def score(self, read):
            inside.set()
            assert gate.wait(30)
            order.append((self.name, list(read)))
            return list(read)

    batcher = Batcher(lambda: {name: Named(name) for name in "ab"}, BatchLimits(wait_s=0.0))
    batcher.start()
    while not batcher.models:
        time.sleep(0.001)
    batcher.submit("a", ["0"])
    assert inside.wait(10)
    answers = [batcher.submit(kind, [row]) for kind, row in (("b", "1"), ("a", "2"), ("b", "3"))]
    gate.set()
    for answer in answers:
        answer.result(10)
    assert order == [("a", ["0"]), ("b", ["1", "3"]), ("a", ["2"])]
    batcher.close()
