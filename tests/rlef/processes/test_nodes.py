"""Which machines a run has, what starts their ranks, and what node 0 and another tell each other, over real sockets and without torch."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from reward_models import stopping
from reward_models.ranks import free_port
from rlef.children import Child, ChildFailed
from rlef.config import LaunchSection
from rlef.errors import UserError
from rlef.hosts import interface_of, is_here, own_rank, read_hostfile
from rlef.load_config import load_config
from rlef.processes import nodes
from rlef.processes.launch import ranks_words

TWO = {"nodes": 2, "rendezvous": "127.0.0.1:29411"}


def hosts(tmp_path, text):
    file = tmp_path / "hosts"
    file.write_text(text)
    return str(file)


def test_a_hostfile_gives_machines_and_their_processes_in_order(tmp_path):
    file = hosts(tmp_path, "# ours\nb slots=3\n\na slots=1  # the small one\n")
    assert list(read_hostfile(file).items()) == [("b", 3), ("a", 1)]
    config = load_config("configs/quickstart.yaml", [f"launch.hostfile={file}", "launch.rank=1"])
    assert config.launch.slots == (3, 1) and config.launch.world == 4 and config.launch.meeting == ("b", 29400)


@pytest.mark.parametrize(
    "text, told",
    [
        ("a slots=x\nb\n", "line 1: 'a slots=x'; line 2: 'b'"),
        ("a slots=1\na slots=1", "twice"),
        ("a slots=0", "no slot"),
        ("# a\n", "no machine"),
    ],
)
def test_a_broken_hostfile_is_one_message(tmp_path, text, told):
    with pytest.raises(UserError, match=told) as error:
        read_hostfile(hosts(tmp_path, text))
    assert "slots=PROCESSES" in error.value.fix


@pytest.mark.parametrize(
    "words, told",
    [
        (["nodes=2"], "launch.nodes: 2 machines meet at node 0"),
        (["nodes=2", "rendezvous=a:b"], "launch.rendezvous: 'a:b' is not HOST"),
        (["nodes=2", "rendezvous=a", "rank=2"], "launch.rank: 2, of 2 machine"),
        (["hostfile=HOSTS", "processes=2"], "launch.nodes and launch.processes must be 1"),
        (["hostfile=missing"], "launch.hostfile: missing: cannot be read"),
        (["hosts={a: 1}"], "give the file alone"),
        (["reward_device=gpu7"], "launch.reward_device: String should match"),
        (["nodes=3", "rendezvous=a"], "batch_size: 16 is no multiple of micro_batch_size x processes = 5 x 3"),
    ],
)
def test_what_does_not_go_together_is_told(tmp_path, words, told):
    file = hosts(tmp_path, "a slots=1\nb slots=1\n")
    with pytest.raises(UserError, match=told):
        load_config("configs/quickstart.yaml", [f"launch.{word}".replace("HOSTS", file) for word in words])


def test_a_server_of_one_machine_is_refused_on_several():
    words = ["launch.nodes=2", "launch.rendezvous=a", "ppo.rollout.vllm=vllm", "ppo.rollout.gpus=6,7"]
    with pytest.raises(UserError, match="stages.ppo.rollout.vllm: that server answers its own machine alone"):
        load_config("configs/quickstart.yaml", words)
    with pytest.raises(UserError, match="gpus: are those of the server"):
        load_config("configs/quickstart.yaml", words[-1:])
    config = load_config("configs/quickstart.yaml", [*words[2:], "launch.reward_device=cuda:7"])
    assert config.launch.rewards_on == "cuda:7" and LaunchSection(device="cpu").rewards_on == "cpu"


def test_a_machine_knows_its_rank_by_the_config_the_hostfile_or_its_environment(tmp_path):
    two = LaunchSection(**TWO)
    assert own_rank(LaunchSection(), {"NODE_RANK": "7"}) == 0
    assert own_rank(two, {"SLURM_NODEID": "1"}) == 1 and own_rank(two, {"JOB_COMPLETION_INDEX": "0"}) == 0
    assert own_rank(LaunchSection(**TWO, rank=0), {"SLURM_NODEID": "1"}) == 0
    listed = LaunchSection(hostfile="h", hosts={"no.such.host.invalid": 1, "127.0.0.1": 1})
    assert own_rank(listed, {}) == 1
    for environment, told in (({}, "which of the 2 machines"), ({"NODE_RANK": "2"}, "no rank of 2"), ({"NODE_RANK": "x"}, "NODE_RANK=x")):
        with pytest.raises(UserError, match=told):
            own_rank(two, environment)
    assert is_here("localhost") and not is_here("192.0.2.1") and interface_of("127.0.0.1") == "lo"


def test_what_starts_the_ranks():
    one = LaunchSection(processes=8)
    assert ranks_words(one, 0, 5) == ["torchrun", "--standalone", "--nproc_per_node=8"]
    where = ["--nnodes=2", "--node_rank=1", "--master_addr=127.0.0.1", "--master_port=5"]
    assert ranks_words(LaunchSection(**TWO, processes=4), 1, 5) == ["torchrun", *where, "--nproc_per_node=4"]
    listed = LaunchSection(hostfile="h", hosts={"a": 1, "b": 2})
    where = ["--hostfile", "h", "--no_ssh", "--node_rank", "1", "--master_addr", "a", "--master_port", "5"]
    assert ranks_words(listed, 1, 5) == ["deepspeed", *where, "--no_local_rank", "--quiet"]


# ------------------------------------------------------------------------------------------- two nodes


def python(code: str, *words: str) -> Child:
    return Child([sys.executable, "-c", code, *words])


WAITS = "import time; time.sleep(60)"
SAVES = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(75)); open(sys.argv[1], 'w').close(); time.sleep(60)"


class Other:
    """Another node as node 0 sees it, played by hand."""

    def __init__(self, launch, node=1, shape=None):
        until = time.monotonic() + 10
        while True:
            try:
                self.socket = socket.create_connection(launch.meeting)
                break
            except OSError:
                assert time.monotonic() < until
                time.sleep(0.01)
        self.lines = self.socket.makefile("rb")
        self.say({"node": node, "host": "other", "shape": shape or nodes._shape(launch)})

    def say(self, message):
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def hear(self):
        while (message := json.loads(self.lines.readline())) == {}:
            pass
        return message

    def die(self):
        self.socket.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def launch(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(nodes._Node, "_at_last", lambda self, why: None)  # it would end the tests
    yield LaunchSection(nodes=2, rendezvous=f"127.0.0.1:{free_port()}", timeout_s=20)
    os.environ.pop("GLOO_SOCKET_IFNAME", None)


@pytest.fixture
def other(launch):
    """Plays node 1 in a thread, step by step: hear, die, a file to wait for, or what to say. Returns what gives all that it heard."""
    threads, wrong = [], []

    def play(*steps):
        heard = []

        def run():
            try:
                other = Other(launch)
                assert other.hear() == {"refused": None}
                for step in steps:
                    if step == "hear":
                        heard.append(other.hear())
                    elif step == "die":
                        other.die()
                    elif isinstance(step, Path):
                        while not step.exists():
                            time.sleep(0.01)
                    else:
                        other.say(step)
            except BaseException as error:
                wrong.append(error)

        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()

        def all_heard(thread=threads[-1]):
            thread.join(20)
            assert not wrong
            return heard

        return all_heard

    yield play
    for thread in threads:
        thread.join(20)
    assert not wrong


def ended(code, said=None, failure=None):
    return {"ended": code, "said": said, "failure": failure}


def test_a_stage_on_two_nodes(launch, other, tmp_path):
    heard = other("hear", ended(0), "hear")
    (tmp_path / "job.json").write_text("{}")
    with nodes.Lead(launch) as lead:
        lead.start("sft", tmp_path / "job.json", 5)
        assert lead.wait(python("")) == 0
    heard = heard()
    assert heard[0] | {"digest": ""} == {"stage": "sft", "job": str(tmp_path / "job.json"), "digest": "", "folder": os.getcwd(), "port": 5}
    assert heard[1] == {"end": 0, "why": ""} and os.environ["GLOO_SOCKET_IFNAME"] == "lo"


def test_a_node_that_fails_ends_the_ranks_of_node_0_and_shows_its_traceback(launch, other, capfd):
    heard = other(ended(1, failure="rank 3:\nValueError: it\n"), "hear", "hear")
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="all"), nodes.Lead(launch) as lead:
        assert lead.wait(python(WAITS)) not in (0, stopping.EXIT_CODE)
        raise RuntimeError("all")
    assert time.monotonic() - began < 20 and heard() == [{"leave": "kill"}, {"end": 1, "why": "all"}]
    assert "node 1 (other, 127.0.0.1), rank 3:\nValueError: it" in capfd.readouterr().err


def test_a_mistake_that_another_node_found_is_told_as_one(launch, other):
    heard = other(ended(2, said="heal it"), "hear", "hear")
    with pytest.raises(ChildFailed, match="heal it"), nodes.Lead(launch) as lead:
        lead.wait(python(WAITS))
    assert heard()[0] == {"leave": "kill"}


def test_a_node_that_is_told_to_stop_stops_all_and_they_save(launch, other, tmp_path):
    heard = other(tmp_path / "up", {"stopped": True}, "hear", "hear")
    with pytest.raises(stopping.Stopped, match="node 1 .* was told to stop"), nodes.Lead(launch) as lead:
        lead.wait(python(SAVES, str(tmp_path / "up")))
    assert heard() == [{"leave": "stop"}, {"end": 75, "why": "node 1 (other, 127.0.0.1) was told to stop"}]


def test_a_node_that_is_gone_ends_the_ranks_of_node_0_and_what_it_does_itself(launch, other):
    other("die")
    with pytest.raises(nodes.Lost, match="node 1 .* is lost: its command is gone"), nodes.Lead(launch) as lead:
        lead.wait(python("import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"))
    other("die")
    began = time.monotonic()
    with pytest.raises(nodes.Lost), nodes.Lead(launch):
        time.sleep(60)
    assert time.monotonic() - began < 20


def test_a_node_that_leaves_at_the_end_before_node_0_does_is_not_lost(launch, other, monkeypatch):
    close = nodes.Link.close
    monkeypatch.setattr(nodes.Link, "close", lambda link: (time.sleep(0.5), close(link)))
    heard = other("hear", "die")
    with nodes.Lead(launch) as lead:
        pass
    assert heard() == [{"end": 0, "why": ""}] and lead._why is None


@pytest.mark.slow
def test_a_silent_node_is_lost_after_its_time(launch):
    launch = launch.model_copy(update={"timeout_s": 5.0})

    def play():
        silent.append(Other(launch))  # connected, and no beat

    silent, began = [], time.monotonic()
    threading.Thread(target=play, daemon=True).start()
    with pytest.raises(nodes.Lost, match="no sign of life for 5 s"), nodes.Lead(launch):
        time.sleep(60)
    assert 5 < time.monotonic() - began < 15


def test_a_stranger_and_a_node_of_another_run_are_refused(launch, other, capfd):
    said = []

    def play():
        with socket.create_connection(launch.meeting) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        said.append(Other(launch, shape=["rlef 0.0", "torchrun", [1, 1]]).hear())
        said.append(Other(launch, node=2).hear())
        other("hear")

    def when_it_listens():
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try:
                return play()
            except ConnectionRefusedError:
                time.sleep(0.01)

    threading.Thread(target=when_it_listens, daemon=True).start()
    with nodes.Lead(launch):
        pass
    assert "it runs ['rlef 0.0'" in said[0]["refused"] and said[1]["refused"] == "there is a node 2 already"


def test_another_node_runs_what_node_0_says_and_ends_with_its_code(launch, tmp_path, monkeypatch):
    started = []

    def start_ranks(launch, node, port, job):
        started.append((node, port, job))
        (tmp_path / "error.txt").write_text("heal it")
        return python("raise SystemExit(2)")

    monkeypatch.setattr(nodes, "start_ranks", start_ranks)
    monkeypatch.setattr(nodes, "SEEN_S", 0.3)
    job = tmp_path / "job.json"
    job.write_text("{}")
    server = socket.create_server(launch.meeting)
    codes = []
    thread = threading.Thread(target=lambda: codes.append(nodes.Follower(launch, 1).run()))
    thread.start()
    link = nodes.Link(server.accept()[0], 5)
    assert link.receive() == {"node": 1, "host": socket.gethostname(), "shape": nodes._shape(launch)}
    link.send({"refused": None})

    def answer():
        while not (message := link.receive()):
            pass
        return message

    told = {"stage": "sft", "job": str(job), "digest": nodes.hashlib.sha256(b"{}").hexdigest(), "folder": os.getcwd(), "port": 5}
    link.send(told)
    assert answer() == ended(2, said="heal it") and started == [(1, 5, job)]
    link.send(told | {"digest": "of something else"})
    assert "node 1 does not see" in answer()["said"]
    link.send({"end": 130, "why": "so"})
    thread.join(10)
    assert codes == [130]


def test_another_node_without_node_0_is_lost(launch):
    server = socket.create_server(launch.meeting)

    def play():
        link = nodes.Link(server.accept()[0], 5)
        link.receive()
        link.send({"refused": None})
        link.close()

    threading.Thread(target=play, daemon=True).start()
    with pytest.raises(nodes.Lost, match="node 0 .* is lost: its command is gone"):
        nodes.Follower(launch, 1).run()


def test_a_command_is_told_to_stop_once(tmp_path):
    """The second SIGTERM would end it at once, before it has saved."""
    code = f"""
import signal, sys, time
def save(*_):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(0.5)
    open({str(tmp_path / "saved")!r}, "w").close()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
open({str(tmp_path / "up")!r}, "w").close()
time.sleep(60)
"""
    child = python(code)
    while not (tmp_path / "up").exists():
        time.sleep(0.01)
    for _ in range(3):
        child.stop()
        time.sleep(0.1)
    assert child.wait() == 75 and (tmp_path / "saved").exists()
    child.stop()
    child.kill()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
