"""The journal alone: what it holds after a process that never came back, and with several at once."""

from __future__ import annotations

import sqlite3
import threading

import pytest

from rlef.errors import UserError
from rlef.rollout.journal import Account, Answer, Calls, Journal

MOST = Calls(1, 100, 50)


def anything(account):
    pass


def test_an_attempt_is_possibly_paid_until_it_is_settled(tmp_path):
    file = tmp_path / "journal.sqlite"
    journal = Journal(file)
    lost, paid, free, silent = (journal.intend(key, MOST, anything) for key in ("a", "a", "b", "c"))
    assert journal.account() == Account(Calls(), Calls(4, 400, 200), 0) and journal.answer("a") is None
    assert journal.settle(paid, Calls(1, 7, 3), Answer("yes", "stop")) == Answer("yes", "stop")
    journal.reject(free, "429")
    assert journal.settle(silent, None, None) is None
    # Not closed: what a killed process leaves.
    again = Journal(file)
    assert again.answer("a") == Answer("yes", "stop") and again.answer("b") is again.answer("c") is None
    assert again.account() == Account(Calls(2, 107, 53), MOST, 1)
    rows = dict(sqlite3.connect(file).execute("SELECT id, number FROM attempts WHERE key = 'a'"))
    assert rows == {lost: 1, paid: 2}


def test_what_is_not_allowed_is_not_written():
    journal = Journal(None)
    journal.intend("a", MOST, anything)

    def forbid(account):
        assert account.possibly_paid.calls == 2
        raise UserError("too dear")

    with pytest.raises(UserError):
        journal.intend("b", MOST, forbid)
    assert journal.account() == Account(Calls(), MOST, 0)


def test_several_writers_lose_nothing_and_the_first_answer_stays(tmp_path):
    file = tmp_path / "journal.sqlite"
    got: list[list[Answer | None]] = []

    def work(name):
        journal = Journal(file)  # a connection of its own, as another process has
        answers = []
        for number in range(40):
            attempt = journal.intend(f"k{number}", MOST, anything)
            answers.append(journal.settle(attempt, Calls(1, 2, 1), Answer(f"{name}/{number}", "stop")))
        got.append(answers)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4 and got[0] == got[1] == got[2] == got[3]
    assert Journal(file).account() == Account(Calls(160, 320, 160), Calls(), 0)


def test_a_file_that_is_no_journal_is_a_users_mistake(tmp_path):
    (tmp_path / "journal.sqlite").write_text("not a database, but long enough to be read as one" * 100)
    with pytest.raises(UserError, match=r"journal\.sqlite"):
        Journal(tmp_path / "journal.sqlite")
