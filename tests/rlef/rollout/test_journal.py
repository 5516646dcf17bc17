"""The journal alone: what it holds after a process that never came back, and with several at once."""

from __future__ import annotations

import contextlib
import random
import shutil
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


def filled(file):
    """What a process that was killed leaves: 40 answers, in the file up to the last checkpoint of its log, then in that."""
    journal = Journal(file)
    for number in range(40):
        journal.settle(journal.intend(f"k{number}", MOST, anything), Calls(1, 2, 1), Answer(f"answer {number} " * 40, "stop"))
    return journal


def left(file, folder):
    folder.mkdir(exist_ok=True)
    for name in (file.name, file.name + "-wal"):
        shutil.copy(file.with_name(name), folder)
    return folder / file.name


def test_a_log_that_is_whole_or_of_an_unfinished_transaction_is_not_told_of(tmp_path, capsys):
    journal = filled(tmp_path / "journal.sqlite")
    Journal(left(tmp_path / "journal.sqlite", tmp_path / "killed"))
    journal._database.execute("PRAGMA wal_checkpoint(RESTART)")
    journal.keep("more", Answer("over the frames of before", "stop"))
    assert Journal(left(tmp_path / "journal.sqlite", tmp_path / "again")).answer("more") is not None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("seed", range(25))
def test_a_damaged_log_is_told_of_and_the_answers_before_it_stay(tmp_path, capsys, seed):
    filled(tmp_path / "journal.sqlite")
    file, rng = left(tmp_path / "journal.sqlite", tmp_path / "damaged"), random.Random(seed)
    log = file.with_name(file.name + "-wal")
    data = bytearray(log.read_bytes())
    place = rng.randrange(len(data) - 5000)  # the last transaction's own end may look like one that was never finished
    if seed % 2:
        del data[place:]
    else:
        data[place] ^= 1 << rng.randrange(8)
    log.write_bytes(data)
    kept = Journal(file)
    answers = [kept.answer(f"k{number}") for number in range(40)]
    found = sum(answer is not None for answer in answers)
    assert answers == [Answer(f"answer {number} " * 40, "stop") for number in range(found)] + [None] * (40 - found)
    said = capsys.readouterr().err
    assert found == 40 or "the last calls in its log are lost" in said or (seed % 2 and (len(data) - 32) % 4120 == 0)
    assert kept.account().paid.calls == found


@pytest.mark.parametrize("seed", range(25))
def test_a_flipped_bit_of_the_file_is_told_of_or_changes_nothing(tmp_path, capsys, seed):
    filled(tmp_path / "journal.sqlite").close()
    file, rng = tmp_path / "journal.sqlite", random.Random(seed)
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    try:
        journal = Journal(file)
    except UserError as error:
        assert "cannot be used" in error.problem and "put a copy" in str(error.fix)
        return
    answers = [journal.answer(f"k{number}") for number in range(40)]
    gone = [number for number, answer in enumerate(answers) if answer is None]
    assert all(answer in (None, Answer(f"answer {number} " * 40, "stop")) for number, answer in enumerate(answers))
    assert bool(gone) == ("not as they were written" in capsys.readouterr().err) and journal.account().paid.calls == 40


def test_a_file_whose_damage_sqlite_cannot_say_in_text_is_told_of_too(tmp_path):
    file = tmp_path / "journal.sqlite"
    filled(file).close()
    file.write_bytes(file.read_bytes().replace(b"CREATE TABLE", b"CREATE \xccABLE"))
    with pytest.raises(UserError, match="cannot be used"):
        Journal(file)


def test_a_changed_answer_is_asked_for_again_and_a_changed_sum_is_a_mistake(tmp_path, capsys):
    file = tmp_path / "journal.sqlite"
    filled(file).close()
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("UPDATE answers SET text = 'other' WHERE key = 'k7'")
    journal = Journal(file)
    assert journal.answer("k7") is None and journal.answer("k8") is not None
    assert "1 answers are not as they were written" in capsys.readouterr().err
    journal._database.execute("UPDATE totals SET prompt_tokens = 1 WHERE state = 'answered'")
    with pytest.raises(UserError, match="do not add up"):
        Journal(file)


def test_a_journal_that_is_damaged_later_or_whose_disk_is_full_is_told_and_what_it_holds_stays(tmp_path):
    file = tmp_path / "journal.sqlite"
    journal = Journal(file)
    journal.settle(journal.intend("a", MOST, anything), Calls(1, 2, 1), Answer("x", "stop"))
    journal._database.execute(f"PRAGMA max_page_count = {journal._database.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(UserError, match=r"journal\.sqlite: .*full[^$]*fix: free space"):
        journal.keep("b", Answer("y" * 10**6, "stop"))
    assert journal.answer("a") == Answer("x", "stop") and journal.answer("b") is None
    journal._database.execute("PRAGMA max_page_count = 100000")
    journal.keep("b", Answer("z", "stop"))
    journal._database.execute("DELETE FROM totals")
    with pytest.raises(UserError, match=r"journal\.sqlite: .*totals are gone"):
        journal.account()
    with pytest.raises(UserError, match="a call that was sent is gone"):
        journal.settle("never", None, Answer("x", "stop"))
