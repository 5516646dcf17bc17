"""Which machines a run has, and which of them this is: DeepSpeed's hostfile, the variables that batch systems set, a network's name."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Mapping
from pathlib import Path

from rlef.config import LaunchSection
from rlef.errors import UserError

RANKS = ("NODE_RANK", "SLURM_NODEID", "JOB_COMPLETION_INDEX", "PET_NODE_RANK")  # by hand, Slurm, Kubernetes, Kubeflow
LINE = re.compile(r"(\S+)\s+slots=(\d+)")


def read_hostfile(path: str) -> dict[str, int]:
    """Host -> slots, in the file's order; blank lines and those that begin with # are left out. Raises UserError with all broken lines."""
    fix = "write a line `HOST slots=PROCESSES` for each machine, node 0 first"
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"launch.hostfile: {path}: cannot be read ({error})", fix) from None
    hosts: dict[str, int] = {}
    wrong: list[str] = []
    for number, line in enumerate(lines, 1):
        line = line.partition("#")[0].strip()
        found = LINE.fullmatch(line)
        if found is None:
            wrong += [f"line {number}: {line!r}"] if line else []
        elif found[1] in hosts:
            wrong.append(f"line {number}: {found[1]} stands there twice")
        elif int(found[2]) < 1:
            wrong.append(f"line {number}: {found[1]} has no slot")
        else:
            hosts[found[1]] = int(found[2])
    if wrong or not hosts:
        raise UserError(f"launch.hostfile: {path}: {'; '.join(wrong) or 'no machine in it'}", fix)
    return hosts


def own_rank(launch: LaunchSection, environment: Mapping[str, str]) -> int:
    """Which of the run's machines this is, from 0. Raises UserError where nothing tells, or what tells is no rank of this run."""
    nodes = len(launch.slots)
    if launch.rank is not None or nodes == 1:
        return launch.rank or 0
    if launch.hosts is not None:
        here = [rank for rank, host in enumerate(launch.hosts) if is_here(host)]
        if len(here) == 1:
            return here[0]
    name = next((name for name in RANKS if environment.get(name)), None)
    if name is None:
        raise UserError(
            f"launch.rank: which of the {nodes} machines is this? "
            + (f"{launch.hostfile} names it in {len(here)} lines" if launch.hosts is not None else f"None of {', '.join(RANKS)} is set"),
            fix="set launch.rank to a number from 0 on each machine",
        )
    if not environment[name].isdecimal() or int(environment[name]) >= nodes:
        raise UserError(f"{name}={environment[name]}: no rank of {nodes} machines", fix="set launch.rank, or launch.nodes to their number")
    return int(environment[name])


def is_here(host: str) -> bool:
    """Whether a name or address is this machine's: only then can a socket be bound to it."""
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
                return True
    return False


def interface_of(address: str) -> str | None:
    """The network interface that has this address, e.g. eth0."""
    import psutil  # one machine has no need of it

    return next((name for name, held in psutil.net_if_addrs().items() if any(one.address == address for one in held)), None)
