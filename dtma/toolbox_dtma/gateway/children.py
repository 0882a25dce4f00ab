"""Worker processes as the supervisor holds them: by pid and socket, which a supervisor that replaces itself keeps."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from toolbox_dtma.gateway.clients import Share
from toolbox_dtma.gateway.control import MAX_PACKET_BYTES, Certificate, Drain
from toolbox_dtma.gateway.memory import WorkersMemory
from toolbox_dtma.gateway.settings import GatewaySettings


@dataclass(eq=False, slots=True)
class Child:
    """One worker process, from its start until it was waited for."""

    place: int
    """Its number among all processes that may run at once, those that drain included."""
    pid: int
    records: int
    """Descriptor of its memory file for call records."""
    control: socket.socket
    started_at: float
    """Monotonic seconds."""
    serving: bool = False
    told: Certificate | None = None
    """The certificate it was sent last."""

    def ended(self) -> int | None:
        """Its exit code once it has ended, negative for a signal; None while it runs. Asked again, it is gone: 0."""
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            return 0
        return os.waitstatus_to_exitcode(status) if pid else None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; until it is waited for, its pid is nobody else's."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def hear(self) -> None:
        """Take note of what it said."""
        with contextlib.suppress(OSError):
            while self.control.recv(MAX_PACKET_BYTES):
                # It has only one thing to say.
                self.serving = True

    def certify(self, certificate: Certificate) -> None:
        """Make sure that it was sent this certificate; what does not go through now is tried at the next call."""
        if self.told != certificate and self._send(certificate):
            self.told = certificate

    def drain(self) -> None:
        """Have it end in peace, at once if it does not listen."""
        if not self._send(Drain()):
            self.signal(signal.SIGTERM)

    def _send(self, message: Certificate | Drain) -> bool:
        try:
            self.control.send(message.model_dump_json().encode())
        except OSError:
            return False
        return True


def start(
    name: str,
    place: int,
    settings: GatewaySettings,
    share: Share,
    listening: socket.socket,
    memory: WorkersMemory,
    now: float,
    *,
    replaces: bool,
) -> Child:
    """Start a worker on a listening socket. Raises `OSError`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    records, counts = memory.records(), memory.counts
    with theirs:
        options = {
            # Not the file: a worker that comes back must not stumble over what was written into it since.
            "--settings": settings.model_dump_json(by_alias=True),
            "--name": name,
            "--fd": listening.fileno(),
            "--control": theirs.fileno(),
            "--calls-fd": records,
            "--memory-fd": counts.memory,
            "--fence-fd": counts.fence,
            "--column": place,
            "--columns": counts.columns,
            "--parent": os.getpid(),
            "--connections": share.connections,
            "--per-source": share.per_source,
        }
        command = [sys.executable, "-m", "toolbox_dtma.gateway.worker"]
        command += [text for option, value in options.items() for text in (option, str(value))]
        pid = _spawn(
            command + ["--replaces"] * replaces, (listening.fileno(), theirs.fileno(), records, *counts.descriptors)
        )
    return Child(place, pid, records, ours, now)


def _spawn(command: list[str], descriptors: Sequence[int]) -> int:
    # Onto itself: that is how a descriptor is kept over exec.
    kept = [(os.POSIX_SPAWN_DUP2, each, each) for each in descriptors]
    # The signal mask is inherited and would keep the worker from ever seeing SIGTERM.
    return os.posix_spawn(
        command[0],
        command,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), *kept],
        setsigmask=(),
    )
