"""Further gateways of the measured host, and the ways to a server behind them."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from localstack import runtime
from localstack.host import GATEWAY_USER
from localstack.ports import accepts, free_port
from localstack.processes import Child, Command
from support.bench.raw_calls import Endpoint
from support.bench.system import Bench

PLAIN: dict[str, Any] = {"tlsCertificate": None, "tlsKey": None}
"""Settings of a gateway that stands behind something that ends TLS."""
NOT_INSTALLED = "rich"
"""A package of the tests' environment that the logging library loads where it finds it: 5 MiB in each process, which an
installed host does not have."""
SUPERVISOR, WORKER, PROBER = "gateway", "toolbox_dtma.gateway.worker", "toolbox_dtma.gateway.prober"


@dataclass(frozen=True, slots=True)
class Process:
    """A process of a gateway."""

    pid: int
    module: str

    @property
    def proportional_bytes(self) -> int:
        """Its memory, of which what it shares is divided among those who share it (PSS)."""
        lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024

    def resident_bytes(self, *, most: bool = False) -> int:
        """Its RSS, or the most that it was since `forget_peak`."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:" if most else "VmRSS:")) * 1024

    def forget_peak(self) -> None:
        """Begin anew to note the most."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    @property
    def cpu_seconds(self) -> float:
        """What it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that has the host's policy."""

    port: int
    child: Child
    tls: bool

    def endpoint(self, secret: dict[str, str]) -> Endpoint:
        """Where this gateway has what a connection's Secret names."""
        known = Endpoint.of_secret(secret)
        parts = urlsplit(known.url)
        netloc = f"{parts.hostname}:{self.port}" if self.tls else f"127.0.0.1:{self.port}"
        url = parts._replace(scheme="https" if self.tls else "http", netloc=netloc).geturl()
        return replace(known, url=url, ca=known.ca if self.tls else None)

    @property
    def processes(self) -> list[Process]:
        """The supervisor, its workers, and their probers."""
        found: list[Process] = []
        pending = [self.child.pid]
        while pending:
            pid = pending.pop()
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            found.append(Process(pid, next((word for word in words if word in (WORKER, PROBER)), SUPERVISOR)))
            pending += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def worker(self) -> Process:
        """The only worker."""
        (worker,) = (process for process in self.processes if process.module == WORKER)
        return worker


@contextmanager
def another_gateway(own: Bench, name: str, **settings: Any) -> Generator[Gateway]:
    """A gateway of the same host beside its own, with other settings (see `GatewaySettings`)."""
    host, supervisor = own.world.stack.host, own.world.stack.supervisor
    folder = host.folder / f"{name}-{own.namespace}"
    folder.mkdir()
    port = free_port()
    changed = json.loads((host.gateway_dir / "gateway.json").read_text()) | {"pidDir": None, "listenPort": port}
    changed |= settings
    config = folder / "gateway.json"
    config.write_text(json.dumps(changed))
    used = runtime.for_user(GATEWAY_USER)
    hidden = folder / "not-installed"
    hidden.mkdir()
    (hidden / f"{NOT_INSTALLED}.py").write_text('raise ImportError("an installed host does not have it")\n')
    env = {**used.env, "PYTHONPATH": os.pathsep.join((str(hidden), used.env["PYTHONPATH"]))}
    argv = [used.python, "-m", "toolbox_dtma", "gateway", "--config", str(config)]
    child = supervisor.start(Command(name, argv, env=env, cwd=folder, user=GATEWAY_USER))
    try:
        child.wait_until(lambda: accepts(port), 30, "accepting connections")
        yield Gateway(port, child, tls=changed["tlsCertificate"] is not None)
    finally:
        child.stop()


def direct(own: Bench, server: dict[str, Any]) -> Endpoint:
    """Straight to the container of a server that is Ready."""
    container = json.loads(own.world.stack.parts.engine.docker("inspect", server["status"]["container"]["id"]))[0]
    (network,) = container["NetworkSettings"]["Networks"].values()
    return Endpoint(f"http://{network['IPAddress']}:8000/mcp", host="localhost:8000")
