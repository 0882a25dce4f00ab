"""The operator as a process of this machine, with its own Kubernetes rights (not the admin's)."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from localstack.kubernetes import OPERATOR_NAMESPACE, REPOSITORY
from localstack.ports import free_port
from localstack.processes import Child, Command, Supervisor
from localstack.progress import step


class Operator:
    """One operator process at a time; it can be stopped, killed and started again."""

    def __init__(
        self, supervisor: Supervisor, kubeconfig: Path, database_url: str | None, extra: Sequence[str] = ()
    ) -> None:
        self._supervisor = supervisor
        self.program: Sequence[str] = ("-m", "toolbox_operator")
        """What Python runs, with the same arguments, when it is started next."""
        self._extra = tuple(extra)
        self._kubeconfig = kubeconfig
        self.database_url = database_url
        self.metrics_port = free_port()
        self.health_port = free_port()
        self.child: Child | None = None

    def start(self, *arguments: str) -> Child:
        """Starts it, with `arguments` for this once, and waits until it is ready: it leads, and has seen everything."""
        argv = [sys.executable, *self.program, "run", "--kubeconfig", str(self._kubeconfig)]
        argv += ["--namespace", OPERATOR_NAMESPACE]
        argv += ["--metrics-port", str(self.metrics_port), "--health-port", str(self.health_port)]
        argv += ["--listen", "127.0.0.1", *self._extra, *arguments]
        env = {"PYTHONPATH": f"{REPOSITORY / 'operator'}:{REPOSITORY / 'dtma'}"}
        if self.database_url is not None:
            env["DATABASE_URL"] = self.database_url  # not an argument: those are visible to every user
        with step("operator"):
            child = self._supervisor.start(Command("operator", argv, env=env, death_signal="TERM"))
            self.child = child
            child.wait_until(self._ready, 60, "ready")
        return child

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}/readyz", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False
