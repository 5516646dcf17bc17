"""Several machines that run one pipeline: node 0 tells the others which stage to start, and when one is lost, fails or stops, all do.

Each other node keeps one connection to node 0 (launch.rendezvous), over which go lines of JSON and a beat every BEAT_S either way. They
trust their network as torchrun does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from reward_models import stopping
from reward_models.errors import UserError as RewardModelsError
from rlef import __version__
from rlef.children import SAVE_S, Child, ChildFailed
from rlef.config import LaunchSection
from rlef.errors import UserError
from rlef.hosts import interface_of
from rlef.processes.launch import start_ranks
from rlef.run_dir import ERROR, FAILURE

BEAT_S = 1.0
MEET_S = 900.0  # machines of one job may come up one after another
HELLO_S = 10.0
SEEN_S = 60.0  # how long a network file system may hide what another node has written
UNWIND_S = 15.0  # what is left to this process when another node is lost
Message = dict[str, Any]


class Link:
    """A connection to another node."""

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        connection.settimeout(timeout_s)
        self.peer = connection.getpeername()[0]
        self._connection, self._lines, self._lock, self._over = connection, connection.makefile("rb"), threading.Lock(), False

    def send(self, message: Message) -> None:
        # That the other is gone is told where it is read.
        with self._lock, contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> Message:
        """The next message. Raises OSError where none comes (in time)."""
        line = self._lines.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError("its command is gone")
        message = json.loads(line)
        return message if isinstance(message, dict) else {}

    def follow(self, timeout_s: float, heard: Callable[[Message], None], lost: Callable[[str], None]) -> None:
        """From here on `heard` is called with each message, and `lost` with the reason why none comes any more, both in a thread."""
        self._connection.settimeout(timeout_s)
        # gloo would take the one that the machine's name stands for, which others may not reach.
        if (name := interface_of(self._connection.getsockname()[0])) is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)

        def beat() -> None:
            while not self._over:
                self.send({})
                time.sleep(BEAT_S)

        def read() -> None:
            try:
                while True:
                    if message := self.receive():
                        heard(message)
            except TimeoutError:
                why = f"no sign of life for {timeout_s:g} s"
            except OSError as error:
                why = error.strerror or str(error)
            except ValueError:
                why = "it said what no node says"
            if not self._over:
                lost(why)

        for work in (beat, read):
            threading.Thread(target=work, daemon=True).start()

    def close(self) -> None:
        self._over = True
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


class Lost(stopping.Stopped):
    """Another node is gone: ranks wait for it in vain, and nothing of theirs can be saved."""

    signum = signal.SIGUSR1


class _Node:
    """What both sides have: this node's ranks of a stage, which a thread that hears of another may end."""

    def __init__(self, launch: LaunchSection) -> None:
        self._launch, self._changed = launch, threading.Condition()
        self._child: Child | None = None
        self._leave: str | None = None
        self._over = False  # node 0 has told the end: whoever leaves now is not lost

    def _run(self, child: Child) -> int:
        """Its code. It may have been told to leave before it began."""
        with self._changed:
            self._child = child
            self._act()
        try:
            return child.wait()
        finally:
            with self._changed:
                self._child = None

    def _end_ranks(self, how: str) -> None:
        """stop: they save; kill: they wait for what does not come."""
        with self._changed:
            self._leave = "kill" if "kill" in (how, self._leave) else how
            self._act()

    def _act(self) -> None:
        if self._child is not None and self._leave is not None:
            (self._child.kill if self._leave == "kill" else self._child.stop)()

    def _at_last(self, why: str) -> None:
        """End this process, whatever it is busy with, if it does not end by itself."""

        def end() -> None:
            print(why, file=sys.stderr, flush=True)
            os._exit(stopping.EXIT_CODE)

        timer = threading.Timer(UNWIND_S, end)
        timer.daemon = True
        timer.start()


class Lead(_Node):
    """Node 0's side, a context manager: begins when all nodes are there, and tells them at the end with which code."""

    def __init__(self, launch: LaunchSection) -> None:
        super().__init__(launch)
        self._links: dict[int, Link] = {}
        self._names: dict[int, str] = {}
        self._ended: dict[int, Message] = {}
        self._left: set[int] = set()
        self._why: stopping.Stopped | None = None

    def __enter__(self) -> Lead:
        self._before = signal.signal(signal.SIGUSR1, self._interrupted)
        try:
            self._meet()
        except BaseException as error:
            self._close(error)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close(error)

    def start(self, stage: str, job: Path, port: int) -> None:
        """Have the other nodes start their ranks of a stage."""
        self._ended, self._leave = {}, None
        digest = hashlib.sha256(job.read_bytes()).hexdigest()
        self._tell({"stage": stage, "job": str(job.absolute()), "digest": digest, "folder": os.getcwd(), "port": port})

    def wait(self, child: Child) -> int:
        """The code of this node's ranks and the others', which end together: 0, 75 where they were told to stop, or another.

        Raises Lost, Stopped and, where a rank of another node found the user's mistake, ChildFailed.
        """
        code = self._run(child)
        if code != 0:
            self._tell({"leave": "stop" if code == stopping.EXIT_CODE or self._leave == "stop" else "kill"})
        with self._changed:
            self._changed.wait_for(lambda: self._why is not None or len(self._ended) == len(self._links), SAVE_S if code else None)
        if self._why is not None:
            raise self._why
        said = next((message["said"] for message in self._ended.values() if message["said"] is not None), None)
        if said is not None:
            raise ChildFailed(2, said)
        codes = [code, *(message["ended"] for message in self._ended.values())]
        return stopping.EXIT_CODE if stopping.EXIT_CODE in codes else next((code for code in codes if code != 0), 0)

    def _meet(self) -> None:
        host, port = self._launch.meeting
        nodes = set(range(len(self._launch.slots)))
        print(f"node 0 of {len(nodes)}: waiting for the others at {host}:{port}", flush=True)
        try:
            listener = socket.create_server(("", port))
        except OSError as error:
            raise UserError(f"launch.rendezvous: port {port} cannot be used ({error.strerror})", "give another one: HOST:PORT") from None
        until = time.monotonic() + MEET_S
        with listener:
            listener.settimeout(1.0)
            while missing := nodes - {0, *self._links}:
                if time.monotonic() > until:
                    told = ", ".join(map(str, sorted(missing)))
                    raise UserError(f"node {told} did not come to {host}:{port} within {MEET_S:g} s", "start the same command there too")
                with contextlib.suppress(TimeoutError):
                    self._admit(Link(listener.accept()[0], HELLO_S))

    def _admit(self, link: Link) -> None:
        """Take in a node that belongs to this run; tell another why not."""
        try:
            hello = link.receive()
        except (OSError, ValueError):
            return link.close()  # no node of any run
        node: int = hello.get("node", 0)
        ours = _shape(self._launch)
        refused = None
        if hello.get("shape") != ours:
            refused = f"it runs {hello.get('shape')}, node 0 {ours}"
        elif node not in range(1, len(self._launch.slots)) or node in self._links:
            refused = f"there is a node {node} already"
        link.send({"refused": refused})
        if refused is not None:
            print(f"refused {link.peer}: {refused}", file=sys.stderr, flush=True)
            return link.close()
        self._links[node], self._names[node] = link, f"node {node} ({hello.get('host')}, {link.peer})"
        link.follow(self._launch.timeout_s, lambda message: self._heard(node, message), lambda why: self._lost(node, why))

    def _tell(self, message: Message) -> None:
        for link in self._links.values():
            link.send(message)

    def _heard(self, node: int, message: Message) -> None:
        with self._changed:
            if "stopped" in message:
                self._left.add(node)
                self._break(stopping.Stopped(f"{self._names[node]} was told to stop"), "stop")
            elif "ended" in message:
                if message["failure"] is not None:
                    print(f"{self._names[node]}, {message['failure']}", file=sys.stderr, end="", flush=True)
                self._ended[node] = message
                self._changed.notify_all()
                if message["ended"] != 0:
                    self._end_ranks("stop" if message["ended"] == stopping.EXIT_CODE else "kill")

    def _lost(self, node: int, why: str) -> None:
        with self._changed:
            if node not in self._left and not self._over:
                self._break(Lost(f"{self._names[node]} is lost: {why}"), "kill")

    def _break(self, why: stopping.Stopped, how: str) -> None:
        """End what this node does: its ranks, or what the pipeline does in this process."""
        if isinstance(why, Lost):
            self._at_last(str(why))
        self._end_ranks(how)
        if self._why is None:
            self._why = why
            self._changed.notify_all()
            if self._child is None:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def _interrupted(self, signum: int, frame: Any) -> None:
        if self._why is not None and not self._over:
            raise self._why

    def _close(self, error: BaseException | None) -> None:
        code = next((code for kind, code in CODES.items() if isinstance(error, kind)), 0 if error is None else 1)
        with self._changed:
            self._over = True
        self._tell({"end": code, "why": str(error or "").partition("\n")[0]})
        for link in self._links.values():
            link.close()
        signal.signal(signal.SIGUSR1, self._before)


class Follower(_Node):
    """Another node's side: runs its ranks of each stage that node 0 starts."""

    def __init__(self, launch: LaunchSection, node: int) -> None:
        super().__init__(launch)
        self._node, self._told = node, queue.SimpleQueue[Message]()
        host, port = launch.meeting
        self._lead = f"node 0 ({host}:{port})"

    def run(self) -> int:
        """The code that node 0 ends with. Raises Lost where it does not come to that; UserError where it refuses this node."""
        link = self._call()
        link.follow(self._launch.timeout_s, self._heard, self._lost)
        print(f"node {self._node}: follows {self._lead}", flush=True)
        try:
            while "end" not in (message := self._told.get()):
                if "lost" in message:
                    raise Lost(f"{self._lead} is lost: {message['lost']}")
                if "job" in message:
                    print(f"node {self._node}: {message['stage']}", flush=True)
                    link.send(self._work(message))
        except (stopping.Stopped, KeyboardInterrupt):
            link.send({"stopped": True})
            raise
        finally:
            link.close()
        if message["why"]:
            print(f"{self._lead}: {message['why']}", file=sys.stderr, flush=True)
        return message["end"]

    def _call(self) -> Link:
        until = time.monotonic() + MEET_S
        while True:
            try:
                link = Link(socket.create_connection(self._launch.meeting, timeout=HELLO_S), HELLO_S)
                link.send({"node": self._node, "host": socket.gethostname(), "shape": _shape(self._launch)})
                refused = link.receive().get("refused")
            except (OSError, ValueError) as error:
                if time.monotonic() > until:
                    raise UserError(
                        f"{self._lead} does not answer ({error})", "start the same command there; see launch.rendezvous"
                    ) from None
                time.sleep(0.5)
            else:
                if refused is not None:
                    raise UserError(f"{self._lead} refused node {self._node}: {refused}", "start the same command on each node, once")
                return link

    def _heard(self, message: Message) -> None:
        if "job" in message:
            self._leave = None
        elif "leave" in message or "end" in message:
            self._over = "end" in message
            self._end_ranks(message.get("leave") or ("stop" if message["end"] in (0, stopping.EXIT_CODE) else "kill"))
        self._told.put(message)

    def _lost(self, why: str) -> None:
        if self._over:
            return
        self._at_last(f"{self._lead} is lost: {why}")
        self._end_ranks("kill")
        self._told.put({"lost": why})

    def _work(self, told: Message) -> Message:
        """Run this node's ranks; how they ended."""
        job = Path(told["job"])
        try:
            self._find(job, told)
        except UserError as error:
            return {"ended": 2, "said": str(error), "failure": None}
        code = self._run(start_ranks(self._launch, self._node, told["port"], job))
        error, failure = job.parent / ERROR, job.parent / FAILURE
        said = error.read_text(encoding="utf-8") if code == 2 and error.is_file() else None
        first = json.loads(failure.read_text(encoding="utf-8")) if code not in (0, stopping.EXIT_CODE) and failure.is_file() else {}
        own = first.get("node") == self._node  # what is another's, that one shows
        return {"ended": code, "said": said, "failure": f"{first['rank']}:\n{first['traceback']}" if own else None}

    def _find(self, job: Path, told: Message) -> None:
        """Wait until this node sees what node 0 wrote, and go where node 0 is: the config's paths start there."""
        until = time.monotonic() + SEEN_S
        while not (job.is_file() and hashlib.sha256(job.read_bytes()).hexdigest() == told["digest"]):
            if time.monotonic() > until:
                raise UserError(
                    f"node {self._node} does not see {job} of node 0", "run.dir must lie on files that all nodes share, under one path"
                )
            time.sleep(0.2)
        try:
            os.chdir(told["folder"])
        except OSError as error:
            raise UserError(f"node {self._node}: {told['folder']}: {error.strerror}", "start on each node in the same folder") from None


CODES = {UserError: 2, RewardModelsError: 2, stopping.Stopped: stopping.EXIT_CODE, KeyboardInterrupt: 130}


def _shape(launch: LaunchSection) -> list[Any]:
    """What the nodes of one run have in common."""
    return [f"rlef {__version__}", "torchrun" if launch.hostfile is None else "deepspeed", list(launch.slots)]
