"""Gateways of others, written in Python as well, in front of a server: FastMCP's proxy, and ContextForge."""

from __future__ import annotations

import json
import secrets
import subprocess
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localstack import clients
from localstack.ports import accepts, free_port
from localstack.processes import Command, Supervisor, base_environment
from support.bench.raw_calls import Endpoint

KEEP_ALIVE_SECONDS = 75
START_SECONDS = 180.0
"""ContextForge migrates its database at the first start."""
_ADMIN = "admin@example.com"
_SECRET = secrets.token_hex(32)


@dataclass(frozen=True, slots=True)
class Peer:
    """A running gateway of somebody else's."""

    title: str
    endpoint: Endpoint
    tool: str
    """What it calls the server's tool `echo`."""


@contextmanager
def fastmcp(supervisor: Supervisor, folder: Path, url: str) -> Generator[Peer]:
    """FastMCP's proxy, as it comes."""
    port = free_port()
    python = clients.python("fastmcp")
    argv = [str(python), str(clients.LOCKS / "fastmcp" / "proxy.py"), url, str(port)]
    child = supervisor.start(Command("peer-fastmcp", argv, cwd=folder))
    try:
        child.wait_until(lambda: accepts(port), START_SECONDS, "accepting connections")
        yield Peer(f"FastMCP {_version(python, 'fastmcp')}", Endpoint(f"http://127.0.0.1:{port}/mcp"), "echo")
    finally:
        child.stop()


@contextmanager
def contextforge(supervisor: Supervisor, folder: Path, url: str) -> Generator[Peer]:
    """ContextForge with one process and SQLite, without its web pages and its own rate limit."""
    port = free_port()
    python = clients.python("contextforge")
    settings = {
        "DATABASE_URL": f"sqlite:///{folder}/contextforge.db",
        "JWT_SECRET_KEY": _SECRET,
        "AUTH_ENCRYPTION_SECRET": _SECRET,
        "PLATFORM_ADMIN_EMAIL": _ADMIN,
        "PLATFORM_ADMIN_PASSWORD": secrets.token_urlsafe(16) + "Aa1!",
        "LOG_LEVEL": "ERROR",
        "MCPGATEWAY_UI_ENABLED": "false",
        "MCPGATEWAY_ADMIN_API_ENABLED": "false",
        "RATE_LIMITING_ENABLED": "false",
        "TOOL_RATE_LIMIT": "1000000000",
        "HEALTH_CHECK_INTERVAL": "3600",
        # Its guard against requests to private addresses, which is where the server is.
        "SSRF_ALLOW_LOCALHOST": "true",
        "SSRF_ALLOW_PRIVATE_NETWORKS": "true",
    }
    environment = base_environment() | settings
    argv = [str(python), "-m", "mcpgateway.cli", "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--timeout-keep-alive", str(KEEP_ALIVE_SECONDS), "--log-level", "error"]
    child = supervisor.start(Command("peer-contextforge", argv, env=environment, cwd=folder))
    try:
        child.wait_until(lambda: accepts(port), START_SECONDS, "accepting connections")
        token = _token(python, environment, folder)
        base = f"http://127.0.0.1:{port}"
        _request(f"{base}/gateways", token, {"name": "up", "url": url, "transport": "STREAMABLEHTTP"})
        names = [tool["name"] for tool in _request(f"{base}/tools", token)]
        (tool,) = (name for name in names if name.endswith("-echo"))
        version = _version(python, "mcp-contextforge-gateway")
        yield Peer(f"ContextForge {version}", Endpoint(f"{base}/mcp/", token), tool)
    finally:
        child.stop()


def _version(python: Path, package: str) -> str:
    program = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run(
        [python, "-c", program], check=True, capture_output=True, text=True, timeout=60
    ).stdout.strip()


def _token(python: Path, environment: dict[str, str], folder: Path) -> str:
    argv = [str(python), "-m", "mcpgateway.utils.create_jwt_token", "--username", _ADMIN, "--exp", "60", "--admin"]
    argv += ["--secret", _SECRET]
    made = subprocess.run(argv, env=environment, cwd=folder, check=True, capture_output=True, text=True, timeout=60)
    return made.stdout.split()[-1]


def _request(url: str, token: str, body: dict[str, Any] | None = None) -> Any:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, data, headers), timeout=60) as answer:
        return json.load(answer)
