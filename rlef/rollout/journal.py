"""The journal of an endpoint's calls: what was about to be sent, what came back, what it cost. It outlives the process, however that ends.

An attempt is written before it is sent and settled afterwards, its answer in the same transaction and before anybody uses it. So an answer
that is here is never asked for again, and an attempt that was never settled is one that nobody knows to be paid or not.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rlef.errors import UserError

BUSY_S = 60.0  # how long one process waits for another's transaction; ours take less than a millisecond
# The totals follow by triggers: a sum over 100,000 attempts before each call would cost more than the call's own overhead.
SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT, finish TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attempts (
    id TEXT PRIMARY KEY, key TEXT NOT NULL, number INTEGER NOT NULL, state TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, at REAL NOT NULL, note TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS attempts_of_key ON attempts (key);
CREATE TABLE IF NOT EXISTS totals (
    state TEXT PRIMARY KEY, calls INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL
) WITHOUT ROWID;
INSERT OR IGNORE INTO totals VALUES ('sent', 0, 0, 0), ('answered', 0, 0, 0), ('rejected', 0, 0, 0);
CREATE TRIGGER IF NOT EXISTS attempt_added AFTER INSERT ON attempts BEGIN
    UPDATE totals SET calls = calls + 1, prompt_tokens = prompt_tokens + new.prompt_tokens,
        completion_tokens = completion_tokens + new.completion_tokens WHERE state = new.state;
END;
CREATE TRIGGER IF NOT EXISTS attempt_settled AFTER UPDATE ON attempts BEGIN
    UPDATE totals SET calls = calls - 1, prompt_tokens = prompt_tokens - old.prompt_tokens,
        completion_tokens = completion_tokens - old.completion_tokens WHERE state = old.state;
    UPDATE totals SET calls = calls + 1, prompt_tokens = prompt_tokens + new.prompt_tokens,
        completion_tokens = completion_tokens + new.completion_tokens WHERE state = new.state;
END;
"""


@dataclass(frozen=True)
class Answer:
    """What a call is worth keeping for; `text` is None where the model refused or never gave a usable answer."""

    text: str | None
    finish: str  # the endpoint's finish_reason, or refusal, or unusable


@dataclass(frozen=True)
class Calls:
    """A number of attempts and their tokens."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Calls) -> Calls:
        return Calls(self.calls + other.calls, self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens)


@dataclass(frozen=True)
class Account:
    """All attempts of a journal. `possibly_paid`: timed out, reset, cut, in flight at a kill or now; at the most they can cost."""

    paid: Calls
    possibly_paid: Calls
    rejected: int  # turned down without a bill, or never reached the server


class Journal:
    """One SQLite file, for any number of threads and processes. `path` None: in memory, for as long as the object lives.

    Killing the process loses nothing. After a power cut the last seconds may be missing (synchronous=NORMAL), never the whole file.
    Raises UserError where the file cannot be used, sqlite3.Error where the disk fails later.
    """

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.Lock()
        try:
            self._database = sqlite3.connect(path or ":memory:", timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")
        except sqlite3.Error as error:
            raise UserError(
                f"{path}: the journal of the teacher's calls cannot be used ({error})", fix="set run.dir to a folder on a local disk"
            ) from None

    def answer(self, key: str) -> Answer | None:
        with self._lock:
            row = self._database.execute("SELECT text, finish FROM answers WHERE key = ?", (key,)).fetchone()
        return Answer(*row) if row else None

    def intend(self, key: str, most: Calls, allowed: Callable[[Account], None]) -> str:
        """Write that `key` is about to be sent, at the most it can cost; the attempt's id. Nothing is written where `allowed` raises."""
        attempt = secrets.token_hex(8)
        with self._transaction():
            (before,) = self._database.execute("SELECT count(*) FROM attempts WHERE key = ?", (key,)).fetchone()
            self._database.execute(
                "INSERT INTO attempts VALUES (?, ?, ?, 'sent', ?, ?, ?, NULL)",
                (attempt, key, before + 1, most.prompt_tokens, most.completion_tokens, time.time()),
            )
            allowed(self._account())
        return attempt

    def settle(self, attempt: str, used: Calls | None, answer: Answer | None) -> Answer | None:
        """It was answered, and is paid: with the tokens `used`, None where the server does not say and the most stands.

        `answer` None: nothing to keep. The answer that is now the key's; another process may have been first.
        """
        tokens = (used.prompt_tokens, used.completion_tokens) if used else (None, None)
        with self._transaction():
            (key,) = self._database.execute(
                "UPDATE attempts SET state = 'answered', prompt_tokens = coalesce(?, prompt_tokens), "
                "completion_tokens = coalesce(?, completion_tokens), note = ? WHERE id = ? RETURNING key",
                (*tokens, None if used else "usage not told", attempt),
            ).fetchone()
            if answer is None:
                return None
            return self._keep(key, answer)

    def reject(self, attempt: str, note: str) -> None:
        """It was turned down, or never got there: it costs nothing."""
        with self._transaction():
            self._database.execute(
                "UPDATE attempts SET state = 'rejected', prompt_tokens = 0, completion_tokens = 0, note = ? WHERE id = ?", (note, attempt)
            )

    def keep(self, key: str, answer: Answer) -> Answer:
        """An answer that no single attempt gave."""
        with self._transaction():
            return self._keep(key, answer)

    def account(self) -> Account:
        with self._lock:
            return self._account()

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def _keep(self, key: str, answer: Answer) -> Answer:
        self._database.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", (key, answer.text, answer.finish))
        return Answer(*self._database.execute("SELECT text, finish FROM answers WHERE key = ?", (key,)).fetchone())

    def _account(self) -> Account:
        rows = {state: Calls(*counts) for state, *counts in self._database.execute("SELECT * FROM totals")}
        return Account(rows["answered"], rows["sent"], rows["rejected"].calls)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")  # a lock taken at the first write could fail half-way when two processes write
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")
