"""Can a hostile answer or a damaged file hang, crash or run anything? Seeded cases through every door that texts and files come in by.

    python scripts/fuzz.py [--answers 1000] [--files 1000] [--seed 0] [--out runs/fuzz] [--only answer/17 file/3 ...]

An answer (towers of powers, deep nests, a million digits, other scripts, regex bombs, terminal escapes, markup, LaTeX, steps by the ten
thousand, controls, long lines, programs) goes through twelve doors, a damaged file (config, problems, labels, checkpoint, journal, run
directory, model, DeepSpeed JSON) through its own. Each case runs in a forked process that is killed at its limit. A fault is: over the
limit, any error but a user's mistake with a message, a control character on a terminal, markup in a page, a command or program that was
started, a connection. Cases with faults are written to OUT, and `--only` runs them again. Ends with a table; exit code 1 where there was a
fault.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz_cases import answer, damaged
from fuzz_doors import AnswerDoors, FileDoors

from reward_models.quiet import quiet
from rlef import answers

ROOT = Path(__file__).parents[1]
LIMIT_S = 1.0  # of processor time, a text and door
TOLD_EVERY = 1000  # cases
GRADER_S = 0.25  # that math-verify gets here for one comparison; a config's runs give it rlef.answers.TIME_LIMIT_S
# The grader compares up to three times, in a process of its own; evolution, method and terminal pass a text on eight times; a run is looked at and gone on with.
LIMITS_S = {"grader": 30.0, "reward": 10.0, "evolution": 4.0, "method": 3.0, "terminal": 2.0, "config": 2.0, "run directory": 5.0}
KILL_S = 120.0  # beyond the limit: another process may have the processor
MEMORY = 6 * 2**30  # bytes of a case


@dataclass(frozen=True)
class Case:
    """One text or file at one door."""

    kind: str  # answer or file
    number: int
    door: str

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.number}"


@dataclass(frozen=True)
class Result:
    """What became of a case: `fault` is None where all is well."""

    case: Case
    label: str  # the answer's family, the file's damages
    outcome: str  # taken, refused, ...
    seconds: float
    fault: str | None


class Cases:
    """Runs cases in a forked process, one after another; the parent hears of each, and kills what takes too long."""

    def __init__(self, folder: Path, seed: int, answer_doors: AnswerDoors, file_doors: FileDoors) -> None:
        self.folder, self.seed, self.answer_doors, self.file_doors = folder, seed, answer_doors, file_doors
        self.marker = folder / "canary"
        self.canary = f"touch {self.marker}"

    def all_of(self, cases: Sequence[Case]) -> Iterator[Result]:
        place = 0
        while place < len(cases):
            reading, writing = os.pipe()
            child = os.fork()
            if not child:
                os.close(reading)
                self._work(cases[place:], writing)
            os.close(writing)
            # Without a buffer of Python's: select would not see what lies in it.
            with os.fdopen(reading, "rb", buffering=0) as lines:
                while place < len(cases):
                    limit = LIMITS_S.get(cases[place].door, LIMIT_S)
                    ready, _, _ = select.select([lines], [], [], limit + KILL_S)
                    line = lines.readline() if ready else b""
                    if not line:
                        os.kill(child, signal.SIGKILL)
                        how = "was ended by the system, or took over three times its limit" if ready else f"took over {limit + KILL_S:g} s"
                        yield Result(cases[place], "", "", 3 * limit, how)
                        place += 1
                        break
                    yield Result(cases[place], **json.loads(line))
                    place += 1
            os.waitpid(child, 0)

    def _work(self, cases: Sequence[Case], writing: int) -> None:
        """In the child: a line a case."""
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        watch_for_programs()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        answers._worker = answers._Worker()  # the parent's process answers the parent alone
        if any(case.door in ("grader", "reward") for case in cases):
            answers.same_answer("x+1", "1+x")
        answers.TIME_LIMIT_S = GRADER_S
        for case in cases:
            limit = LIMITS_S.get(case.door, LIMIT_S)
            signal.setitimer(signal.ITIMER_PROF, 3 * limit)  # whatever it is at, the system ends this process then
            began = time.process_time()
            label, outcome, fault = self._run(case)
            seconds = time.process_time() - began
            if fault is None and seconds > limit:
                fault = f"took {seconds:.1f} s"
            if self.marker.exists():
                fault = "ran a command"
                self.marker.unlink()
            os.write(writing, json.dumps({"label": label, "outcome": outcome, "seconds": seconds, "fault": fault}).encode() + b"\n")
        if answers._worker._process is not None:
            answers._worker._process.kill()
        os._exit(0)

    def _run(self, case: Case) -> tuple[str, str, str | None]:
        """(label, outcome, fault)"""
        label = ""
        try:
            if case.kind == "answer":
                label, text = answer(self.seed, case.number, self.canary)
                self.answer_doors.doors[case.door](text)
                return label, "taken", None
            place = self.folder / f"{case.number}"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            done: list[str] = []
            rng = random.Random(f"{self.seed}/{case.name}")
            outcome = self.file_doors.doors[case.door](place, lambda file: done.append(f"{file.name} {damaged(rng, file, self.canary)}"))
            shutil.rmtree(place)
            return "; ".join(done), outcome, None
        except BaseException:  # whatever it is, it is the finding
            return label, "", traceback.format_exc(limit=-6)[-3000:]

    def keep(self, result: Result, out: Path) -> None:
        """Write down a case with a fault."""
        folder = out / f"{result.case.kind}_{result.case.number}_{result.case.door.replace(' ', '_')}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "fault.txt").write_text(f"{result.label}\n{result.fault}\n", encoding="utf-8", errors="backslashreplace")
        if result.case.kind == "answer":
            (folder / "answer.txt").write_text(
                answer(self.seed, result.case.number, self.canary)[1], encoding="utf-8", errors="surrogatepass"
            )
        elif (left := self.folder / f"{result.case.number}").is_dir():
            shutil.copytree(
                left,
                folder / "files",
                dirs_exist_ok=True,
                ignore=lambda at, names: [name for name in names if not is_file_or_folder(Path(at, name))],
            )


def is_file_or_folder(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode) or stat.S_ISDIR(path.lstat().st_mode)


class Started(BaseException):
    """Something was started, or called, that must not be. Not an Exception: nobody may take it for a failure and go on."""


def watch_for_programs() -> None:
    """From here on nothing may start a program or a connection, but math-verify's process and what asks for the code's version."""

    def heard(event: str, given: tuple[Any, ...]) -> None:
        if event in ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "socket.connect") or (
            event == "subprocess.Popen" and not _ours(given[1])
        ):
            raise Started(f"{event} {given!r:.300}")

    sys.addaudithook(heard)


def _ours(words: Sequence[str]) -> bool:
    return list(words[1:]) == ["-m", "rlef.answers"] or list(words)[:2] == ["git", "rev-parse"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--answers", type=int, default=1000)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="where cases with faults are kept")
    parser.add_argument("--only", nargs="+", metavar="KIND/NUMBER", help="these cases alone, e.g. answer/17")
    options = parser.parse_args(arguments)
    os.environ |= {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    quiet()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        answer_doors, file_doors = AnswerDoors(folder / "answers"), FileDoors(folder / "files", ROOT)
        doors = list(file_doors.doors)
        cases = [Case("answer", number, door) for number in range(options.answers) for door in answer_doors.doors]
        cases += [Case("file", number, doors[number % len(doors)]) for number in range(options.files)]
        if options.only:
            cases = [case for case in cases if case.name in options.only]
        runner, results = Cases(folder, options.seed, answer_doors, file_doors), []
        for result in runner.all_of(cases):
            results.append(result)
            if len(results) % TOLD_EVERY == 0:
                print(f"{len(results)} of {len(cases)} cases", flush=True)
            if result.fault is not None:
                runner.keep(result, options.out)
                print(f"{result.case.name} {result.case.door} ({result.label}): {result.fault.strip().splitlines()[-1][:200]}", flush=True)
    show(results, sum(os.times()[:4]))
    return 1 if any(result.fault for result in results) else 0


def show(results: Sequence[Result], seconds: float) -> None:
    """A row a door, then everything as JSON."""
    by_door: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_door[f"{result.case.kind}: {result.case.door}"].append(result)
    print(f"\n{'door':26}{'cases':>7}{'taken':>7}{'refused':>9}{'faults':>8}{'slowest, s':>12}{'all, s':>9}")
    for door, rows in by_door.items():
        ends = Counter(row.outcome for row in rows)
        faults = sum(row.fault is not None for row in rows)
        print(
            f"{door:26}{len(rows):7}{ends['taken']:7}{ends['refused'] + ends['passed over']:9}{faults:8}{max(row.seconds for row in rows):12.2f}{sum(row.seconds for row in rows):9.1f}"
        )
    counts = {kind: len({row.case.number for row in results if row.case.kind == kind}) for kind in ("answer", "file")}
    faults = sum(row.fault is not None for row in results)
    print(f"{counts['answer']} answers, {counts['file']} files, {len(results)} cases, {faults} faults, {seconds:.0f} s of a core")
    print(
        json.dumps(
            {"answers": counts["answer"], "files": counts["file"], "cases": len(results), "faults": faults, "seconds": round(seconds)}
        )
    )


if __name__ == "__main__":
    sys.exit(main())
