"""A Toolbox on a test's own host, in the test's own namespace."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from localstack.quickstart import Target
from support.hosts import tiny_server
from support.hosts.far_host import FarHost
from support.poll import until
from support.system.space import Space
from support.system.witness import Witness, witness
from support.system.world import World


@dataclass(frozen=True, slots=True)
class FarToolbox:
    """A Ready Toolbox, and what is applied to it."""

    space: Space
    host: FarHost
    target: Target
    witness: Witness

    @property
    def world(self) -> World:
        """The system it is part of."""
        return self.space.world

    def server(self, name: str, **spec: Any) -> Target:
        """Applies a tiny MCPServer on it."""
        reference = {"name": self.target.name, "namespace": self.target.namespace}
        image = spec.pop("image", self.host.image)
        return self.space.server(name, image=image, toolboxRef=reference, **tiny_server.spec(**spec))

    def ready_server(self, name: str, **spec: Any) -> Target:
        """The same, once it is Ready."""
        server = self.server(name, **spec)
        self.world.await_condition(server, "Ready", "True")
        return server

    def ready_connection(self, name: str, server: Target) -> Target:
        """A connection to a server on it, once it is Ready."""
        connection = self.space.connection(name, server.name)
        self.world.await_condition(connection, "Ready", "True")
        return connection

    def instance(self, server: Target) -> str:
        """The id a server has on the host."""
        return str(self.world.status(server)["instanceId"])

    def container(self, server: Target) -> str:
        """The container that status names."""
        return str(self.world.status(server)["container"]["id"])

    def call(self, connection: Target) -> str:
        """What the tool `whoami` of a connection's server answers."""
        return self.world.call(self.space.secret(connection.name), "whoami", {}).text

    def refusal(self, connection: Target) -> str | None:
        """Why that call fails; None when it works."""
        return self.world.refusal(self.space.secret(connection.name), "whoami", {})

    def reasons(self, target: Target) -> list[str]:
        """Reasons of the object's Events, oldest first."""
        return [reason for _, reason, _ in self.world.events(target)]


@contextmanager
def attached(space: Space, host: FarHost, name: str = "far") -> Generator[FarToolbox]:
    """A Toolbox for a host. At the end it is deleted with everything on it, which must leave nothing there."""
    target = Target("Toolbox", space.namespace, name)
    space.apply(*host.documents(space.namespace, name))
    with witness(host.engine.command_line, host.host_id) as seen:
        try:
            space.world.await_condition(target, "Ready", "True")
            yield FarToolbox(space, host, target, seen)
        finally:
            host.restore()
            # Servers that are deleted together with a Toolbox out of contact are left behind: the product's rule.
            until("in contact", lambda: space.world.status(target).get("phase", "gone"), _can_clean, seconds=60)
            space.kubectl("delete", "amc,mcps,tbx", "--all", "--timeout=90s", seconds=100)
        cluster_id = str(space.world.stack.parts.cluster.get("namespace", "kube-system")["metadata"]["uid"])
        until("nothing left on the host", lambda: host.leftovers(cluster_id), lambda left: not left)
    assert seen.doubles == []


def _can_clean(phase: str) -> bool:
    return phase in ("Ready", "Stalled", "gone")
