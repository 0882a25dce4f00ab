"""Operators that end at a chosen write, one at a time, and the journal of what they wrote."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from localstack.kubernetes import OPERATOR_NAMESPACE, REPOSITORY, Cluster
from localstack.processes import Command, Supervisor
from support.operator_crashes.operator import Order
from support.poll import until

PYTHONPATH = ":".join(str(REPOSITORY / folder) for folder in ("operator", "dtma", "tests"))


@dataclass(frozen=True, slots=True)
class Write:
    """A write that took effect."""

    pid: int
    order: int
    what: str
    kinds: tuple[str, ...]
    last: bool
    """The process ended right after it."""


class Launcher:
    """Starts operators from a process that has everything imported. All have one name, as of one pod after another:
    the next takes the Lease at once, since the one before is known to be dead."""

    def __init__(self, supervisor: Supervisor, cluster: Cluster, dsn: str, arguments: Sequence[str]) -> None:
        folder = supervisor.folder / "crash-operator"
        folder.mkdir()
        path = folder / "launcher.sock"
        argv = [sys.executable, "-m", "support.operator_crashes.operator", str(path)]
        command = Command("crash-operator", argv, env={"PYTHONPATH": PYTHONPATH})
        self._child = supervisor.start(command)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._child.wait_until(lambda: self._socket.connect_ex(str(path)) == 0, 60, "listening")
        self._stream = self._socket.makefile("rw")
        self._journal = folder / "journal"
        self._journal.touch(mode=0o600)
        self._orders = os.open(folder / "orders", os.O_RDWR | os.O_CREAT, 0o600)
        self._number = 0
        self._arguments = [
            *("--kubeconfig", str(cluster.operator_kubeconfig), "--namespace", OPERATOR_NAMESPACE),
            *("--identity=crash-operator", "--health-port=0", "--metrics-port=0"),
            *arguments,
        ]
        self._environment = {"DATABASE_URL": dsn}
        self._pid: int | None = None
        self.order(Order())

    def close(self) -> None:
        """End everything."""
        if self._pid is not None:
            self.kill()
        self._stream.close()
        self._socket.close()
        os.close(self._orders)
        self._child.stop()

    def start(self) -> None:
        """An operator, unless one runs."""
        if self.running():
            return
        orders = str(self._journal.with_name("orders"))
        request: dict[str, Any] = {"journal": str(self._journal), "orders": orders}
        self._pid = self._ask({"start": {**request, "arguments": self._arguments, "environment": self._environment}})

    def order(self, order: Order) -> None:
        """When the operator is to end, counted from now on. Its number is given here."""
        self._number += 1
        os.pwrite(self._orders, replace(order, number=self._number).to_bytes(), 0)

    def running(self) -> bool:
        """Whether the operator has not ended. Fails when it ended by itself."""
        if self._pid is None:
            return False
        code = self._ask({"ended": self._pid})
        if code is None:
            return True
        self._pid = None
        if code != -signal.SIGKILL:
            raise self._child.explain(f"an operator ended by itself with {code}")
        return False

    def kill(self) -> None:
        """SIGKILL at a moment that nobody chose."""
        if self._pid is not None:
            os.kill(self._pid, signal.SIGKILL)
            until("ended", lambda: not self.running(), seconds=10)

    def writes(self, since: int = 0) -> list[Write]:
        """Everything written since a position."""
        with self._journal.open("rb") as file:
            file.seek(since)
            lines = file.read().splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith(b"\n")]
        return [Write(w["pid"], w["order"], w["what"], tuple(w["kinds"]), w["last"]) for w in found]

    def position(self) -> int:
        """The end of the journal: it moves with every write."""
        return self._journal.stat().st_size

    def _ask(self, request: dict[str, Any]) -> Any:
        self._stream.write(f"{json.dumps(request)}\n")
        self._stream.flush()
        return json.loads(self._stream.readline())


@contextmanager
def launcher(supervisor: Supervisor, cluster: Cluster, dsn: str, arguments: Sequence[str]) -> Generator[Launcher]:
    """A `Launcher`, closed at the end."""
    found = Launcher(supervisor, cluster, dsn, arguments)
    try:
        yield found
    finally:
        found.close()
