"""Processes known by pid and start time, so that a reused pid is never taken for the old process."""

from __future__ import annotations

import os
import signal
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_UCRED = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process of one boot of this machine."""

    pid: int
    start_time: int
    machine_boot: str


@dataclass(frozen=True, slots=True)
class Peer:
    """Who connected to a unix socket, as the kernel says."""

    pid: int
    uid: int
    gid: int


def peer_of(connection: socket.socket) -> Peer:
    """SO_PEERCRED of a connected unix socket: who called connect()."""
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(pid, uid, gid)


class Processes(Protocol):
    """What may be asked of the machine's processes."""

    def identify(self, pid: int) -> ProcessId | None:
        """The process that has this pid now, None if there is none."""
        ...

    def is_dead(self, process: ProcessId) -> bool:
        """Whether this very process is proven gone (a zombie is)."""
        ...

    def kill(self, process: ProcessId) -> None:
        """SIGKILL to this very process; gone already is success."""
        ...


class LinuxProcesses:
    """`Processes` of the running kernel, from /proc and pidfd."""

    def __init__(self, proc: Path = Path("/proc")):
        self._proc = proc
        self._boot = (proc / "sys/kernel/random/boot_id").read_text().strip()

    def _stat(self, pid: int) -> tuple[str, int] | None:
        """(state, start time) of a pid, None when it does not exist."""
        try:
            text = (self._proc / str(pid) / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The command name, in parentheses, may itself hold spaces and parentheses.
        fields = text[text.rindex(")") + 2 :].split()
        return fields[0], int(fields[19])

    def identify(self, pid: int) -> ProcessId | None:
        """The process that has this pid now, None if there is none or it is a zombie."""
        stat = self._stat(pid)
        return None if stat is None or stat[0] in "ZX" else ProcessId(pid, stat[1], self._boot)

    def is_dead(self, process: ProcessId) -> bool:
        """Whether this very process is proven gone."""
        return self.identify(process.pid) != process

    def kill(self, process: ProcessId) -> None:
        """SIGKILL to this very process: the pidfd is opened first and the identity compared after."""
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return
        try:
            if not self.is_dead(process):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            os.close(descriptor)
