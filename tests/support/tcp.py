"""The TCP connections over IPv4 of this network namespace, as `/proc/net/tcp` lists them (proc_pid_net(5))."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from pathlib import Path


class State(enum.IntEnum):
    """Of one end of a connection; the numbers are the kernel's (`include/net/tcp_states.h`)."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    """The other end has hung up, and the process that has this one has not closed it."""
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12


@dataclass(frozen=True)
class End:
    """One end of a connection; addresses are as the kernel writes them: hexadecimal, in its own byte order."""

    port: int
    peer_address: str
    peer_port: int
    state: State
    inode: str


def ends() -> list[End]:
    """All of them."""
    found: list[End] = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, peer, state, _, _, _, _, _, inode, *_ = line.split()
        address, port = peer.split(":")
        found.append(End(int(local.split(":")[1], 16), address, int(port, 16), State(int(state, 16)), inode))
    return found


def sockets_of(pid: int) -> set[str]:
    """The inodes of a process's sockets, of every kind; of a process that has ended, none."""
    sockets: set[str] = set()
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                name = os.readlink(entry)
            except FileNotFoundError:
                # Closed since the folder was read.
                continue
            if name.startswith("socket:["):
                sockets.add(name.removeprefix("socket:[").removesuffix("]"))
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return sockets


def is_connected(pid: int, peer_port: int) -> bool:
    """Whether a process has an end of a connection whose other end is this port of loopback."""
    sockets = sockets_of(pid)
    return any(end.peer_port == peer_port and end.inode in sockets for end in ends())
