"""Looking at, and ending, the processes of a running stack."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import urllib.request
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from localstack.quickstart import Target
from support.hosts.state_files import records_in
from support.poll import until
from support.system.space import Space
from support.system.world import World
from support.tcp import State, ends, is_connected, sockets_of


def server(space: Space, name: str, toolbox: str = "tbx-rig", **spec: Any) -> Target:
    """Applies a quick MCPServer on the given Toolbox."""
    return space.server(name, toolbox=toolbox, **spec)


def ready(space: Space, *targets: Target) -> None:
    """All of them are Ready."""
    for target in targets:
        space.world.await_condition(target, "Ready", "True", seconds=90)


def metric(world: World, name: str, **labels: str) -> float:
    """A metric of the operator."""
    url = f"http://127.0.0.1:{world.stack.operator.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=5) as answer:
        lines: list[str] = answer.read().decode().splitlines()
    wanted = name + ("{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}" if labels else "")
    found = [line.rsplit(" ", 1)[1] for line in lines if line.rsplit(" ", 1)[0] == wanted]
    assert found, f"no metric {wanted}"
    return float(found[0])


def is_ready(world: World) -> bool:
    """Whether the operator says that it leads and has seen everything."""
    with urllib.request.urlopen(f"http://127.0.0.1:{world.stack.operator.health_port}/readyz", timeout=5) as answer:
        return answer.status == 200


def instance_file(world: World, target: Target) -> Path | None:
    """The file in which the host keeps what it was told of a server."""
    for path, record in records_in(world.stack.host.state_dir / "instances").items():
        desired = record["desired"]
        if (desired["namespace"], desired["name"]) == (target.namespace, target.name):
            return path
    return None


def container(world: World, target: Target) -> str:
    """The id of a server's container, as status names it; empty while there is none."""
    return str(world.status(target).get("container", {}).get("id", ""))


def inspect(world: World, container_id: str) -> dict[str, Any] | None:
    """What Docker says of a container; None if there is none."""
    docker = world.stack.parts.engine.docker
    if not docker("ps", "--all", "--quiet", "--no-trunc", "--filter", f"id={container_id}").strip():
        return None
    found = cast("list[dict[str, Any]]", json.loads(docker("inspect", container_id)))
    return found[0]


def workers(supervisor_pid: int) -> list[int]:
    """Pids of the gateway's workers."""
    return [int(pid) for pid in Path(f"/proc/{supervisor_pid}/task/{supervisor_pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    """Whether a process is neither gone nor dead and not yet waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_talking_to(pid: int, address: str, port: int = 8000) -> bool:
    """Whether a process has a connection to this address."""
    peer = "".join(f"{int(part):02X}" for part in reversed(address.split(".")))
    here = [end for end in ends() if (end.peer_address, end.peer_port, end.state) == (peer, port, State.ESTABLISHED)]
    return not sockets_of(pid).isdisjoint(end.inode for end in here)


class Calling:
    """One agent's call under way in a thread of its own, over one connection, so that one worker has all of it."""

    def __init__(self, secret: dict[str, str], tool: str, arguments: dict[str, Any]) -> None:
        url = urlsplit(secret["url"])
        trust = ssl.create_default_context(cadata=secret["ca.crt"])
        # Longer than `end` waits: its own timeout must not pass for an end of the call.
        self._http = http.client.HTTPSConnection(str(url.hostname), url.port, context=trust, timeout=120)
        self._http.connect()
        self._port: int = self._http.sock.getsockname()[1]
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
        headers = {
            "Authorization": f"Bearer {secret['token']}",
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
        }
        self._http.request("POST", url.path, json.dumps(body), headers)
        self.ended = threading.Event()
        self.refusal: str | None = None
        self._thread = threading.Thread(target=self._run, name="agent", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            answer = self._http.getresponse()
            text = answer.read().decode()
            self.refusal = None if answer.status == 200 and "result" in json.loads(text) else text
        except (OSError, http.client.HTTPException) as error:
            self.refusal = f"{type(error).__name__}: {error}"
        finally:
            self._http.close()
            self.ended.set()

    def worker(self, supervisor_pid: int, address: str) -> int:
        """The worker that relays the call to this address; 0 while none does.

        Any worker may have a connection there, for a probe or kept from another call: this one has the agent, too.
        """
        found = [pid for pid in workers(supervisor_pid) if is_connected(pid, self._port)]
        return next((pid for pid in found if is_talking_to(pid, address)), 0)

    def end(self, seconds: float = 30.0) -> str | None:
        """Why it failed, once it has ended; None when it worked."""
        until("the call ended", self.ended.is_set, seconds=seconds)
        self._thread.join(timeout=5)
        return self.refusal
