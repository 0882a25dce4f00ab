"""Looking at, and ending, the processes of a running stack."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from localstack.quickstart import Target
from support.hosts.state_files import records_in
from support.poll import until
from support.system.space import Space
from support.system.world import World
from support.tcp import State, ends, sockets_of


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


def worker_talking_to(supervisor_pid: int, address: str, port: int = 8000) -> int:
    """The worker that has a connection to this address; 0 while none has."""
    peer = "".join(f"{int(part):02X}" for part in reversed(address.split(".")))
    here = [end for end in ends() if (end.peer_address, end.peer_port, end.state) == (peer, port, State.ESTABLISHED)]
    established = {end.inode for end in here}
    return next((pid for pid in workers(supervisor_pid) if sockets_of(pid) & established), 0)


class Calling:
    """One agent's call under way in a thread of its own."""

    def __init__(self, call: Callable[[], str | None]) -> None:
        self._call = call
        self.ended = threading.Event()
        self.refusal: str | None = None
        self._thread = threading.Thread(target=self._run, name="agent", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.refusal = self._call()
        finally:
            self.ended.set()

    def end(self, seconds: float = 30.0) -> str | None:
        """Why it failed, once it has ended; None when it worked."""
        until("the call ended", self.ended.is_set, seconds=seconds)
        self._thread.join(timeout=5)
        return self.refusal
