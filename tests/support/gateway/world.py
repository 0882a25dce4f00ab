"""A whole gateway under test: its processes, a scripted DTMA end, and servers behind it, driven from sync code.

Everything that needs an event loop runs in threads of its own, so that fixtures of any scope can hold it.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localstack import runtime
from localstack.ports import free_port
from localstack.processes import Command, User, launcher
from support.gateway.scripted_dtma import ScriptedDtma
from support.gateway.threads import eventually
from support.gateway.tls import HOST, make_tls
from toolbox_dtma.link.messages import (
    Change,
    GrantPolicy,
    InstanceRoute,
    Surface,
)
from toolbox_dtma.wire import Credential, Expose, HostConfig, NameFilter

UNPRIVILEGED = 65534


def restricted(*allow: str, deny: tuple[str, ...] = ()) -> Expose:
    """Tools that match these globs only."""
    return Expose(tools=NameFilter(allow=allow, deny=deny))


@dataclass(frozen=True)
class Connection:
    """What an agent has: a URL and a token."""

    uid: str
    instance: str
    url: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        """Credential and media types of an ordinary client."""
        return {
            "Authorization": f"Bearer {self.token}",
            "Accept": "application/json, text/event-stream",
            "Content-Type": "application/json",
        }


def credential(token: str, not_after: datetime.datetime | None = None) -> Credential:
    """A token as the host knows it."""
    return Credential(value=hashlib.sha256(token.encode()).hexdigest(), not_after=not_after)


class World:
    """A running gateway with its scripted DTMA."""

    def __init__(
        self,
        *,
        workers: int = 2,
        tls: bool = True,
        settings: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
    ):
        # Not pytest's folder: an unprivileged process cannot get into that one.
        self.folder = Path(tempfile.mkdtemp(prefix="mtb-gateway-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.tls = make_tls(self.folder)
        self.port = free_port()
        self.scheme = "https" if tls else "http"
        self.base = f"{self.scheme}://{HOST}:{self.port}"
        self.workers = workers
        self._env = env or {}
        self._run_folder = self.folder / "run"
        self._run_folder.mkdir()
        self.config = self.folder / "gateway.json"
        files = {"tlsCertificate": str(self.tls.certificate), "tlsKey": str(self.tls.key)} if tls else {}
        self.config.write_text(
            json.dumps(
                {
                    "listenHost": HOST,
                    "listenPort": self.port,
                    "socket": str(self.folder / "gateway.sock"),
                    "workers": workers,
                    "pidDir": str(self._run_folder),
                    **files,
                    **(settings or {}),
                }
            )
        )
        if os.geteuid() == 0:
            os.chown(self.tls.key, UNPRIVILEGED, UNPRIVILEGED)
            os.chown(self._run_folder, UNPRIVILEGED, UNPRIVILEGED)
        self.log = self.folder / "gateway.log"
        self.dtma = ScriptedDtma(self.folder / "gateway.sock")
        self.process: subprocess.Popen[bytes] | None = None
        self._runtime: runtime.Runtime | None = None
        self._instances: dict[str, InstanceRoute] = {}
        self._grants: dict[str, GrantPolicy] = {}

    def start(self) -> None:
        """Start DTMA's end and the gateway, and wait until every worker holds the policy."""
        self.dtma.start()
        self.start_gateway()
        config = HostConfig(gateway_url=self.base, allowed_origins=("https://console.example.com",))
        eventually(lambda: len(self.dtma.workers) == self.workers, "workers say hello", seconds=90)
        self.dtma.apply(Change(config=config))

    def start_gateway(self) -> None:
        """Start the supervisor as an unprivileged user."""
        user = User(UNPRIVILEGED, UNPRIVILEGED)
        if self._runtime is None:
            self._runtime = runtime.for_user(user)
        argv = [self._runtime.python, "-m", "toolbox_dtma.gateway", "--config", str(self.config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                launcher(Command("gateway", argv, user=user)),
                env={"PATH": os.environ["PATH"], **self._runtime.env, **self._env},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def close(self) -> None:
        """Stop everything by its own handle and remove the files."""
        try:
            if self.process is not None and self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                try:
                    self.process.wait(20)
                except subprocess.TimeoutExpired:
                    self.process.kill()
                    self.process.wait(5)
        finally:
            self.dtma.close()
            shutil.rmtree(self.folder)

    def instance(
        self, port: int, *, path: str = "/mcp", surface: tuple[str, ...] | Surface | None = None, **more: Any
    ) -> str:
        """A new instance that listens on a port of loopback."""
        values: dict[str, Any] = {"incarnation": uuid.uuid4().hex, "address": HOST, "state": "running", **more}
        listed = Surface(tools=surface) if isinstance(surface, tuple) else surface
        route = InstanceRoute(id=str(uuid.uuid4()), port=port, path=path, surface=listed, **values)
        self.put_instance(route)
        return route.id

    def bridged(self, id: str, bridge: Path, **more: Any) -> str:
        """A new instance behind a session broker."""
        values: dict[str, Any] = {"incarnation": uuid.uuid4().hex, "state": "running", **more}
        path = f"/instances/{id}/mcp"
        self.put_instance(InstanceRoute(id=id, address=None, port=0, path=path, bridge=str(bridge), **values))
        return id

    def put_instance(self, route: InstanceRoute) -> None:
        """Put a route and wait for the acks."""
        self._instances[route.id] = route
        self.dtma.apply(Change(instances=(route,)))

    def change_instance(self, id: str, **update: Any) -> None:
        """Put a route again with some values changed."""
        self.put_instance(self._instances[id].model_copy(update=update))

    def connect(self, instance: str, *, expose: Expose | None = None, **more: Any) -> Connection:
        """A new connection to an instance."""
        token = "mtb_" + secrets.token_urlsafe(32)
        values: dict[str, Any] = {"credentials": (credential(token),), "server_expose": Expose(), **more}
        grant = GrantPolicy(uid=str(uuid.uuid4()), instance=instance, expose=expose or Expose(), **values)
        self.put_grant(grant)
        return Connection(grant.uid, instance, f"{self.base}/servers/{instance}/mcp", token)

    def put_grant(self, grant: GrantPolicy) -> None:
        """Put a grant and wait for the acks."""
        self._grants[grant.uid] = grant
        self.dtma.apply(Change(grants=(grant,)))

    def change_grant(self, connection: Connection, **update: Any) -> None:
        """Put a grant again with some values changed."""
        self.put_grant(self._grants[connection.uid].model_copy(update=update))

    def revoke(self, connection: Connection) -> None:
        """Delete a grant and wait for the acks."""
        self.dtma.apply(Change(grants_gone=(connection.uid,)))

    def log_lines(self) -> list[dict[str, Any]]:
        """What the gateway logged, as far as it is JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def log_text(self) -> str:
        """What the gateway logged."""
        return self.log.read_text()


@contextmanager
def running_world(**options: Any) -> Generator[World]:
    """A started world that is stopped and removed at the end."""
    world = World(**options)
    try:
        world.start()
        yield world
    except BaseException:
        print(world.log_text() if world.log.exists() else "no log")
        raise
    finally:
        world.close()


def by_outcome(values: list[int]) -> dict[int, int]:
    """How often each status occurred."""
    counts: defaultdict[int, int] = defaultdict(int)
    for value in values:
        counts[value] += 1
    return dict(counts)
