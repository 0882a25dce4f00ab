"""A real host (DTMA, broker, gateway, Docker) with stdio servers, driven over its API; no cluster around it."""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import subprocess
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import TextContent

from localstack import agent
from localstack.host import Host
from localstack.processes import Supervisor
from localstack.progress import SetupError
from support.engine.images import busybox_image, docker
from support.hosts.tiny_stdio_server import COMMAND
from support.poll import until
from toolbox_dtma.engine.names import LABEL_HOST, LABEL_INSTANCE, LABEL_SESSION
from toolbox_dtma.wire import EPOCH_HEADER, OWNER_HEADER, ProblemCode

OWNER = "cluster-a"


SESSIONS_TOLD = 40.0
"""Seconds in which a count of sessions is told: a host tells it every 10 s, a busy machine later."""


class StdioHost:
    """One host."""

    def __init__(self, host: Host, docker: Callable[..., str] = docker) -> None:
        """Claims one that runs for one owner; `docker` executes the command line of its engine."""
        self.image = busybox_image()
        self.host = host
        self.docker = docker
        self.url = f"https://{host.settings.address}:{self.host.gateway_port}"
        token = (self.host.state_dir / "token").read_text().strip()
        self.api = httpx.Client(
            base_url=f"https://{host.settings.address}:{self.host.management_port}",
            headers={"Authorization": f"Bearer {token}", OWNER_HEADER: OWNER, EPOCH_HEADER: "1"},
            verify=ssl.create_default_context(cafile=str(self.host.ca_file)),
            # Longer than a removal may keep its caller waiting.
            timeout=60,
        )
        self._put(f"/v2/owners/{OWNER}", {"epoch": 1})
        self._put("/v2/host/config", {"gatewayURL": self.url})

    @staticmethod
    def started(supervisor: Supervisor, folder: Path) -> StdioHost:
        """A new one, on the machine's engine."""
        host = Host(supervisor, folder)
        host.start()
        return StdioHost(host)

    def close(self) -> None:
        """Hang up; its processes are the supervisor's."""
        self.api.close()

    def _put(self, path: str, body: dict[str, Any]) -> None:
        answer = self.api.put(path, json=body)
        assert answer.is_success, answer.text

    def deploy(self, instance: str, *, generation: int = 1, **changes: Any) -> None:
        """Desire a server of the tiny image."""
        body: dict[str, Any] = {
            "uid": instance, "namespace": "team-a", "name": "tiny", "generation": generation, "inputsHash": "0" * 64,
            "image": self.image, "command": list(COMMAND), "transport": "stdio",
            "sessions": {"maxSessions": 4, "idleSeconds": 600.0},
            "limits": {"memoryBytes": 32 * 1024 * 1024, "cpuMillis": 500, "pids": 32},
        }  # fmt: skip
        self._put(f"/v2/instances/{instance}", body | changes)

    def observed(self, instance: str) -> dict[str, Any]:
        """What the host reports."""
        return cast("dict[str, Any]", self.api.get(f"/v2/instances/{instance}").raise_for_status().json()["observed"])

    def await_phase(self, instance: str, phase: str, *, generation: int = 1, seconds: float = 90) -> dict[str, Any]:
        """The report once it says so of this generation."""
        return until(
            f"{instance} {phase}",
            lambda: self.observed(instance),
            lambda seen: seen["phase"] == phase and seen["generation"] == generation,
            seconds=seconds,
        )

    def remove(self, instance: str) -> None:
        """Delete it, to the end: a host that has to go on with that later says so, and is asked again."""
        where = {"uid": instance, "namespace": "team-a", "name": "tiny"}

        def attempt() -> str:
            answer = self.api.delete(f"/v2/instances/{instance}", params=where)
            if answer.is_success:
                return ""
            if answer.json().get("code") != ProblemCode.ENGINE_UNAVAILABLE:
                answer.raise_for_status()
            return answer.text

        until(f"{instance} removed", attempt, lambda problem: not problem, seconds=90)

    def grant(self, instance: str) -> tuple[str, str]:
        """A new connection's UID and token."""
        uid, token = str(uuid.uuid4()), f"mtb_{uuid.uuid4().hex}"
        credential = {"type": "sha256", "value": hashlib.sha256(token.encode()).hexdigest()}
        body = {
            "namespace": "team-a", "name": f"bot-{uid[:8]}", "generation": 1, "instance": instance,
            "agent": "bot", "credentials": [credential],
        }  # fmt: skip
        self._put(f"/v2/grants/{uid}", body)
        return uid, token

    def revoke(self, uid: str) -> None:
        """Delete a connection's grant."""
        where = {"namespace": "team-a", "name": f"bot-{uid[:8]}"}
        self.api.delete(f"/v2/grants/{uid}", params=where).raise_for_status()

    @asynccontextmanager
    async def client(self, instance: str, token: str) -> AsyncGenerator[Client]:
        """An agent: the SDK's client over the gateway, with a session of its own."""
        secret = {"token": token, "ca.crt": self.host.ca_file.read_text()}
        async with agent.http_client(secret) as http:
            transport = streamable_http_client(f"{self.url}/servers/{instance}/mcp", http_client=http)
            async with Client(transport, mode="legacy") as client:
                yield client

    def sessions(self, instance: str) -> dict[str, dict[str, Any]]:
        """Containers of sessions, spares and probes, as Docker shows them."""
        labels = [f"--filter=label={LABEL_HOST}={self.host.host_id}", f"--filter=label={LABEL_INSTANCE}={instance}"]
        ids = self.docker("ps", "--all", "--quiet", "--no-trunc", f"--filter=label={LABEL_SESSION}", *labels).split()
        shown: dict[str, dict[str, Any]] = {}
        for container in ids:
            try:
                (shown[container],) = json.loads(self.docker("inspect", container))
            except (subprocess.CalledProcessError, SetupError):
                # Gone since.
                continue
        return shown

    def await_no_sessions(self, instance: str, seconds: float = 15) -> None:
        """Wait until none has a container; a spare only goes with its server."""
        until("no session", lambda: self.sessions(instance), lambda found: not found, seconds=seconds)

    @property
    def broker(self) -> int:
        """The pid of the session broker: DTMA's child."""
        assert self.host.dtma is not None
        return until("a broker", self._broker, bool, seconds=20)

    def _broker(self) -> int:
        assert self.host.dtma is not None
        for entry in Path("/proc").iterdir():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            except (OSError, IndexError):
                continue
            if b"toolbox_dtma.broker" in command and int(parent) == self.host.dtma.pid:
                return int(entry.name)
        return 0


async def told(client: Client, tool: str) -> str:
    """The text that a tool answers with."""
    result = await client.call_tool(tool, {})
    return "".join(block.text for block in result.content if isinstance(block, TextContent))


def descriptors(pid: int) -> int:
    """How many a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))
