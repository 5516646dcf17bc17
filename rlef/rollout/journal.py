"""The journal of an endpoint's calls: what was about to be sent, what came back, what it cost. It outlives the process, however that ends.

An attempt is written before it is sent and settled afterwards, its answer in the same transaction and before anybody uses it. So an answer
that is here is never asked for again, and an attempt that was never settled is one that nobody knows to be paid or not.

A damaged file is told of when it is opened. An answer that is not as it was written is dropped, and asked for again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import sqlite3
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rlef.errors import UserError

LOG_HEADER, FRAME_HEADER = 32, 24  # bytes
BUSY_S = 60.0  # how long one process waits for another's transaction; ours take less than a millisecond
# The totals follow by triggers: a sum over 100,000 attempts before each call would cost more than the call's own overhead.
SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, text TEXT, finish TEXT NOT NULL, sha256 TEXT NOT NULL
) WITHOUT ROWID;
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
    Raises UserError where the file is damaged or cannot be used, or the disk is full.
    """

    def __init__(self, path: Path | None) -> None:
        self._lock, self._path = threading.Lock(), path
        if path is not None and lost_frames(path.with_name(path.name + "-wal")):
            _tell(path, "the last calls in its log are lost, and sent again where they are needed")
        with self._told():
            self._database = sqlite3.connect(path or ":memory:", timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")
        with self._transaction():
            damage, changed = self._damage(), self._drop_changed()
        if damage is not None:
            raise self._unusable(damage)
        if changed:
            _tell(path, f"{changed} answers are not as they were written, and are asked for again where they are needed")

    def _damage(self) -> str | None:
        """What is wrong with the file's structure or its sums."""
        (found,) = self._database.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            return " ".join(found.split())
        columns = "state, count(*), sum(prompt_tokens), sum(completion_tokens)"
        added = set(self._database.execute(f"SELECT {columns} FROM attempts GROUP BY state"))
        kept = set(self._database.execute("SELECT * FROM totals WHERE calls + prompt_tokens + completion_tokens != 0"))
        return None if added == kept else "its attempts do not add up to its totals"

    def _drop_changed(self) -> int:
        """Remove answers that are not as they were written. Returns how many."""
        rows = self._database.execute("SELECT key, text, finish, sha256 FROM answers")
        wrong = [key for key, text, finish, sha256 in rows if sha256 != answer_digest(key, text, finish)]
        self._database.executemany("DELETE FROM answers WHERE key = ?", [(key,) for key in wrong])
        return len(wrong)

    def answer(self, key: str) -> Answer | None:
        with self._lock, self._told():
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
            row = self._database.execute(
                "UPDATE attempts SET state = 'answered', prompt_tokens = coalesce(?, prompt_tokens), "
                "completion_tokens = coalesce(?, completion_tokens), note = ? WHERE id = ? RETURNING key",
                (*tokens, None if used else "usage not told", attempt),
            ).fetchone()
            if row is None:
                raise sqlite3.DatabaseError("a call that was sent is gone from it")
            return self._keep(row[0], answer) if answer is not None else None

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
        with self._lock, self._told():
            return self._account()

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def _keep(self, key: str, answer: Answer) -> Answer:
        self._database.execute(
            "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)",
            (key, answer.text, answer.finish, answer_digest(key, answer.text, answer.finish)),
        )
        return Answer(*self._database.execute("SELECT text, finish FROM answers WHERE key = ?", (key,)).fetchone())

    def _account(self) -> Account:
        rows = {state: Calls(*counts) for state, *counts in self._database.execute("SELECT * FROM totals")}
        if not rows.keys() >= {"sent", "answered", "rejected"}:
            raise sqlite3.DatabaseError("its totals are gone")
        return Account(rows["answered"], rows["sent"], rows["rejected"].calls)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._told():
            self._database.execute("BEGIN IMMEDIATE")  # a lock taken at the first write could fail half-way when two processes write
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:  # a full disk ends it by itself
                    self._database.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What SQLite cannot do, in the user's words."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the second where SQLite's own message quotes what is no text
            raise self._unusable(str(error), full=getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL) from None

    def _unusable(self, why: str, *, full: bool = False) -> UserError:
        return UserError(
            f"{self._path}: the journal of the teacher's calls cannot be used ({why})",
            fix="free space on that disk; the same command goes on"
            if full
            else "where run.dir is on no local disk, set it to one; else put a copy of the journal back, or move it away: then what "
            "unfinished stages ask is sent, and paid, again",
        )


def answer_digest(key: str, text: str | None, finish: str) -> str:
    return hashlib.sha256(json.dumps([key, text, finish]).encode()).hexdigest()


def lost_frames(log: Path) -> bool:
    """Whether SQLite's write-ahead log holds what SQLite will not read: it goes by the checksums as far as they agree, and says nothing.

    Behind that place another transaction ends, or the file does within a frame. (https://sqlite.org/fileformat2.html, section 4)
    """
    data = log.read_bytes() if log.is_file() else b""
    if len(data) < LOG_HEADER:
        return bool(data)
    order, page, salts = ("<" if data[3] % 2 == 0 else ">"), int.from_bytes(data[8:12], "big"), data[16:24]
    sums, frame, place = _log_sums(data[:24], (0, 0), order), FRAME_HEADER + page, LOG_HEADER
    if struct.pack(">2I", *sums) != data[24:32]:
        return True
    while place + frame <= len(data) and data[place + 8 : place + 16] == salts:
        sums = _log_sums(data[place : place + 8] + data[place + FRAME_HEADER : place + frame], sums, order)
        if struct.pack(">2I", *sums) != data[place + 16 : place + 24]:
            break
        place += frame
    behind = range(place, len(data) - frame + 1, frame)
    ends = any(data[one + 8 : one + 16] == salts and data[one + 4 : one + 8] != bytes(4) for one in behind)
    return ends or (len(data) - LOG_HEADER) % frame != 0


def _log_sums(data: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    one, two = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return one, two


def _tell(path: Path | None, what: str) -> None:
    print(f"warning: {path}: the journal of the teacher's calls is damaged; {what}", file=sys.stderr, flush=True)
