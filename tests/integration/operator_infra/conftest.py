"""The operator's process, in this process or as one of its own, against a real API server."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from localstack.kubernetes import OPERATOR_NAMESPACE, Cluster
from support.poll import until
from toolbox_operator.__main__ import run
from toolbox_operator.api.meta import Body, Key, Kind
from toolbox_operator.kube.login import Login
from toolbox_operator.kube.rest import KubeRest
from toolbox_operator.reconcile.context import Context, Reconciler
from toolbox_operator.runtime import Outcome, Settings, Timings

TIMINGS = Timings(resync=600.0, lease_duration=20.0, lease_renew_deadline=15.0, lease_retry=0.4, watch_fresh=10.0)
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def operator_account(kubernetes: Cluster) -> Path:
    """Kubeconfig with no more rights than manifests/rbac gives."""
    return kubernetes.install_operator_account()


@pytest.fixture
def free_lease(kubernetes: Cluster, operator_account: Path) -> Generator[None]:
    """No Lease before the test, none after it."""
    drop = ("delete", "lease", "-n", OPERATOR_NAMESPACE, "magic-toolbox-operator", "--ignore-not-found")
    kubernetes.kubectl(*drop)
    yield
    kubernetes.kubectl(*drop)


@pytest.fixture
async def rest(kubernetes: Cluster) -> AsyncGenerator[KubeRest]:
    """A client with an admin's rights."""
    async with KubeRest(await Login(kubernetes.admin_kubeconfig).configuration()) as rest:
        yield rest


@dataclass
class Seen:
    """What reconcilers that do nothing were called with."""

    context: list[Context] = field(default_factory=list[Context])
    calls: list[tuple[Kind, Key, Body | None]] = field(default_factory=list[tuple[Kind, Key, Body | None]])

    def build(self, context: Context) -> Sequence[Reconciler]:
        self.context.append(context)
        return [_Watcher(kind, context, self) for kind in Kind]

    def of(self, kind: Kind, key: Key) -> list[Body | None]:
        return [body for seen_kind, seen_key, body in self.calls if (seen_kind, seen_key) == (kind, key)]


@dataclass
class _Watcher:
    kind: Kind
    context: Context
    seen: Seen

    async def reconcile(self, key: Key) -> Outcome:
        self.seen.calls.append((self.kind, key, self.context.cache.get(self.kind, key)))
        return Outcome()


@dataclass
class Running:
    """An operator in this process."""

    seen: Seen
    stop: asyncio.Event
    task: asyncio.Task[int]

    @property
    def context(self) -> Context:
        return self.seen.context[0]


Start = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def operator(operator_account: Path, free_lease: None) -> Start:
    """Starts an operator in this process whose reconcilers only look; keyword arguments are timings."""

    @asynccontextmanager
    async def start(*, database_url: str | None = None, **timings: float) -> AsyncGenerator[Running]:
        settings = Settings(
            database_url=database_url,
            metrics_port=0,
            health_port=0,
            timings=replace(TIMINGS, **timings),
            kubeconfig=operator_account,
            identity="in-process",
        )
        seen, stop = Seen(), asyncio.Event()
        task = asyncio.create_task(run(settings, stop, build=seen.build))
        try:
            yield Running(seen, stop, task)
        finally:
            stop.set()
            await asyncio.wait_for(task, 40)

    return start


@dataclass
class Process:
    """An operator in a process of its own."""

    child: subprocess.Popen[bytes]
    log: Path
    identity: str

    def send(self, number: signal.Signals) -> None:
        self.child.send_signal(number)

    def wait(self, seconds: float = 30.0) -> int:
        return self.child.wait(seconds)

    def says(self, text: str, *, seconds: float = 30.0) -> None:
        until(f"saying {text!r}", self.log.read_text, lambda said: text in said, seconds=seconds)


@pytest.fixture
def processes(operator_account: Path, free_lease: None, tmp_path: Path) -> Generator[Callable[..., Process]]:
    """Starts `python -m toolbox_operator run` by identity; all are gone after the test."""
    started: list[Process] = []

    def start(identity: str, *more: str) -> Process:
        log = tmp_path / f"{identity}.log"
        timings = {
            name: getattr(TIMINGS, name)
            for name in ("lease_duration", "lease_renew_deadline", "lease_retry", "watch_fresh")
        }
        command = [
            *(sys.executable, "-m", "toolbox_operator", "run", "--kubeconfig", str(operator_account)),
            *("--identity", identity, "--health-port", "0", "--metrics-port", "0", "--log-format", "json"),
            *(f"--timing={name}={value}" for name, value in timings.items()),
            *more,
        ]
        path = os.pathsep.join(str(REPOSITORY / part) for part in ("operator", "dtma"))
        with log.open("wb") as sink:
            child = subprocess.Popen(command, stderr=sink, env={**os.environ, "PYTHONPATH": path})
        process = Process(child, log, identity)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.child.poll() is None:
            process.child.kill()
            process.wait()


@pytest.fixture
def lease(kubernetes: Cluster) -> Callable[[], dict[str, Any]]:
    """Reads the spec of the operator's Lease."""

    def read() -> dict[str, Any]:
        spec: dict[str, Any] = kubernetes.get("lease", "-n", OPERATOR_NAMESPACE, "magic-toolbox-operator")["spec"]
        return spec

    return read
