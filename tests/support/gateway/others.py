"""Servers and clients of others, each a process in an environment of its own (`localstack.clients`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from localstack import clients, node
from localstack.kubernetes import REPOSITORY
from localstack.ports import accepts, free_port
from localstack.processes import Child, Command, Supervisor, base_environment
from support.gateway.world import Connection, World

FASTMCP_TOOLS = ("add", "count", "greet", "hidden")
EVERYTHING = Path("@modelcontextprotocol") / "server-everything" / "dist" / "index.js"
CLIENT_SECONDS = 180.0


def _listening(child: Child, port: int) -> int:
    child.wait_until(lambda: accepts(port), 30, "listening")
    return port


def fastmcp_server(supervisor: Supervisor, *more: str) -> int:
    """Starts `tests/clients/fastmcp/server.py`, on streamable HTTP unless it is told more; its port."""
    port = free_port()
    argv = [str(clients.python("fastmcp")), str(clients.LOCKS / "fastmcp" / "server.py"), str(port), *more]
    return _listening(supervisor.start(Command("-".join(("fastmcp-server", *more)), argv)), port)


def mcp1_sse_server(supervisor: Supervisor) -> int:
    """Starts `tests/clients/mcp1/sse_server.py`; its port."""
    port = free_port()
    argv = [str(clients.python("mcp1")), str(clients.LOCKS / "mcp1" / "sse_server.py"), str(port)]
    return _listening(supervisor.start(Command("mcp1-sse-server", argv)), port)


def everything_server(supervisor: Supervisor) -> int:
    """Starts the reference server; its port."""
    port = free_port()
    argv = [str(node.program()), str(clients.node_modules() / EVERYTHING), "streamableHttp"]
    return _listening(supervisor.start(Command("everything-server", argv, env={"PORT": str(port)})), port)


def hello_server(supervisor: Supervisor) -> int:
    """Starts our example; its port."""
    port = free_port()
    argv = [sys.executable, str(REPOSITORY / "examples" / "images" / "hello" / "server.py")]
    return _listening(supervisor.start(Command("hello-server", argv, env={"PORT": str(port)})), port)


def conformance_server(supervisor: Supervisor, name: str, *more: str) -> int:
    """Starts the server that answers the conformance suite; its port."""
    port = free_port()
    argv = [sys.executable, "-m", "support.conformance.server", str(port), *more]
    environment = {"PYTHONPATH": str(REPOSITORY / "tests")}
    return _listening(supervisor.start(Command(name, argv, env=environment)), port)


def _run(argv: Sequence[str], given: Mapping[str, Any], environment: Mapping[str, str], folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        argv,
        input=json.dumps(given),
        env={**base_environment(), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=CLIENT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{argv[-1]} exited with {done.returncode}:\n{done.stderr[-3000:]}"
    return json.loads(done.stdout.splitlines()[-1])


def run_client(client: str, given: Mapping[str, Any], ca: Path, folder: Path) -> dict[str, Any]:
    """What a program that trusts a CA says when it is given something: `NAME/SCRIPT` below `tests/clients`."""
    name, script = client.split("/")
    if name != clients.NODE_NAME:
        argv = [str(clients.python(name)), str(clients.LOCKS / name / script)]
        return _run(argv, given, {"SSL_CERT_FILE": str(ca)}, folder)
    # Node.js looks for packages beside the program.
    program = folder / script
    program.write_bytes((clients.LOCKS / name / script).read_bytes())
    os.symlink(clients.node_modules(), folder / "node_modules")
    return _run([str(node.program()), str(program)], given, {"NODE_EXTRA_CA_CERTS": str(ca)}, folder)


def findings(world: World, client: str, connection: Connection, folder: Path, **more: str) -> dict[str, Any]:
    """What a client program found out, given nothing but URL, token and CA."""
    given = {"url": connection.url, "token": connection.token, "wrong_token": f"{connection.token}x", **more}
    return run_client(client, given, world.tls.ca, folder)
