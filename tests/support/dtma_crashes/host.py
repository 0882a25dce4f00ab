"""A host whose DTMA can be told after which write to die, with a real engine, firewall and gateway."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from localstack.host import Host, Settings
from localstack.kubernetes import REPOSITORY
from localstack.processes import Command, Supervisor
from support.dtma_crashes.journal import Observer
from support.dtma_crashes.process import Order, Report
from support.poll import until
from toolbox_dtma.engine.names import HostNames
from toolbox_dtma.state.files import read_record, write_record
from toolbox_dtma.state.records import HostRecord

WORKERS = 2
"""So that there is a moment in which one worker knows and the other does not."""


@dataclass(frozen=True, slots=True)
class Death:
    """How a DTMA ended: by which signal, or with which code."""

    signal: int | None
    code: int | None


class CrashHost:
    """One state folder; one DTMA at a time, forked by a process that has everything imported; a gateway beside it."""

    def __init__(self, supervisor: Supervisor, folder: Path) -> None:
        self._supervisor = supervisor
        self.host = Host(supervisor, folder, Settings(gateway_workers=WORKERS))
        self.host.init()
        self.folder = folder
        self.names = HostNames(self.host.host_id)
        self.journal = Observer(folder / "journal")
        self.docker_socket = folder / "docker.sock"
        self.engine_back()
        record = folder / "state" / "host.json"
        link = f"unix://{self.docker_socket}"
        write_record(record, read_record(record, HostRecord).model_copy(update={"docker_url": link}))
        self.deaths = 0
        self.ended = True
        """Whether nobody is meant to run now."""
        self.traps: Iterator[int] = iter(())
        """What those that are started instead of a dead one will die of, each in its turn; then none."""
        self._channel = self._launch(folder / "orders.sock")
        self._lines = self._channel.makefile("rb")
        self.start()
        self.host.start_gateway()

    def _launch(self, path: Path) -> socket.socket:
        argv = [sys.executable, "-m", "support.dtma_crashes.process", "--socket", str(path)]
        argv += ["--journal", str(self.folder / "journal"), "--state-dir", str(self.host.state_dir)]
        argv += ["--runtime-dir", str(self.host.runtime_dir)]
        paths = os.pathsep.join(str(REPOSITORY / name) for name in ("dtma", "tests"))
        child = self._supervisor.start(Command("crashing-dtma", argv, env={"PYTHONPATH": paths}))
        channel = socket.socket(socket.AF_UNIX)
        channel.settimeout(30)
        child.wait_until(lambda: channel.connect_ex(str(path)) == 0, 30, "taking orders")
        return channel

    def _order(self, do: str) -> Report:
        self._channel.sendall(Order(do=do).model_dump_json().encode() + b"\n")
        return Report.model_validate_json(self._lines.readline())

    def start(self) -> None:
        """Start DTMA, without waiting for anything."""
        self._order("start")
        self.ended = False

    def death(self) -> Death | None:
        """How the last started DTMA ended; None while it runs."""
        status = self._order("look").ended
        if status is None:
            return None
        if os.WIFSIGNALED(status):
            return Death(os.WTERMSIG(status), None)
        return Death(None, os.WEXITSTATUS(status))

    def revive(self) -> bool:
        """Start it again if it has died of its trap; whether it had. Any other end is a failure."""
        death = self.death()
        if death is None:
            return False
        assert death.signal == signal.SIGKILL, f"DTMA ended by itself: {death}"
        self.deaths += 1
        self.journal.arm(next(self.traps, None))
        self.start()
        return True

    def calm(self) -> None:
        """No trap any more, and one that runs."""
        self.traps = iter(())
        self.journal.disarm()
        self.revive()

    def end(self, number: signal.Signals = signal.SIGTERM) -> Death:
        """Send a signal and wait for the end."""
        self.ended = True
        os.kill(self._order("look").pid, number)
        return until("ended", self.death, seconds=30) or Death(None, None)

    def engine_away(self) -> None:
        """For DTMA, from its next connection on, no engine answers."""
        self.docker_socket.unlink()

    def engine_back(self) -> None:
        """The engine answers again."""
        self.docker_socket.unlink(missing_ok=True)
        self.docker_socket.symlink_to("/var/run/docker.sock")

    def close(self) -> None:
        """Let go of the launcher; the supervisor ends it."""
        self._lines.close()
        self._channel.close()
