"""An operator process as a Deployment keeps it: started again when it exits, paused and killed by tests."""

from __future__ import annotations

import os
import signal
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from localstack.kubernetes import OPERATOR_NAMESPACE, REPOSITORY
from localstack.ports import free_port
from localstack.processes import Child, Command, Supervisor
from support.poll import until

RESTART_AFTER = 0.5
"""Seconds between an exit and the next start, as a kubelet would wait (longer)."""
LOOK = 0.05


class Replica:
    """One process at a time, with its own health and metrics ports; a context manager that starts and stops it."""

    def __init__(
        self,
        supervisor: Supervisor,
        name: str,
        kubeconfig: Path,
        database_url: str,
        arguments: Sequence[str] = (),
        *,
        program: Sequence[str] = ("-m", "toolbox_operator"),
        restart: bool = True,
    ) -> None:
        """`program`: what Python runs; `restart`: whether it is started again when it exits by itself."""
        self._supervisor = supervisor
        self.name = name
        self._health, self._metrics = free_port(), free_port()
        argv = [sys.executable, *program, "run", "--kubeconfig", str(kubeconfig), "--namespace", OPERATOR_NAMESPACE]
        argv += ["--metrics-port", str(self._metrics), "--health-port", str(self._health), *arguments]
        paths = ":".join(str(REPOSITORY / part) for part in ("operator", "dtma", "tests"))
        env = {"PYTHONPATH": paths, "DATABASE_URL": database_url}
        self._command = Command(name, argv, env=env, death_signal="TERM")
        self._restart = restart
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._keeper: threading.Thread | None = None
        self.child: Child | None = None
        self.exits: list[int] = []
        """Exit codes of the processes that ended by themselves, or were killed."""
        self.starts = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.resume()
        self.stop()

    @property
    def pid(self) -> int:
        """Of the present process."""
        assert self.child is not None
        return self.child.pid

    @property
    def log(self) -> str:
        """Everything its processes have said."""
        return self.child.log.read_text(errors="replace") if self.child is not None else ""

    def start(self) -> None:
        """Start the process, and keep it until `stop`."""
        self._stop.clear()
        self._spawn()
        self._keeper = threading.Thread(target=self._keep, name=f"keeper of {self.name}", daemon=True)
        self._keeper.start()

    def stop(self, grace: float = 30.0) -> int:
        """SIGTERM, and no more restarts. The exit code of the last process."""
        self._stop.set()
        if self._keeper is not None:
            self._keeper.join(timeout=10)
        assert self.child is not None
        self.child.stop(grace)
        code = self.child.exit_code
        assert code is not None
        return code

    def kill(self) -> None:
        """SIGKILL; it is started again."""
        assert self.child is not None
        self.child.kill()

    def pause(self) -> None:
        """SIGSTOP."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT; nothing happens when it is not paused, or gone."""
        if self.child is not None and self.child.running():
            os.kill(self.pid, signal.SIGCONT)

    def probe(self, path: str) -> tuple[int, str]:
        """Status and text of /healthz or /readyz; (0, "") when nothing answers."""
        return self._get(self._health, path)

    @property
    def leads(self) -> bool:
        """Whether its metrics say that it leads."""
        return "magic_toolbox_leader 1.0" in self._get(self._metrics, "/metrics")[1]

    def await_leading(self, seconds: float = 90.0) -> None:
        """Until it leads and has seen everything there is."""
        look = lambda: self.leads and self.probe("/readyz")[0] == 200  # noqa: E731 - a name for one line
        until(f"{self.name} leading", look, seconds=seconds)

    def await_exit(self, count: int = 1, seconds: float = 60.0) -> int:
        """The exit code of the `count`th process that ended by itself."""
        until(f"{self.name} exited {count} time(s)", lambda: len(self.exits) >= count, seconds=seconds)
        return self.exits[count - 1]

    def _get(self, port: int, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return 0, ""

    def _spawn(self) -> None:
        with self._lock:
            self.starts += 1
            self.child = self._supervisor.start(self._command)

    def _keep(self) -> None:
        while not self._stop.wait(LOOK):
            child = self.child
            assert child is not None
            if (code := child.exit_code) is None:
                continue
            self.exits.append(code)
            if not self._restart or self._stop.wait(RESTART_AFTER):
                return
            self._spawn()
