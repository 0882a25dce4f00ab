"""One test's own namespace in a shared system."""

from __future__ import annotations

import secrets
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from localstack.kubernetes import Manifest
from localstack.quickstart import Target
from support import manifests
from support.poll import until
from support.system.witness import Witness, witness
from support.system.world import World

SYSTEM = "mcp-system"
TOOLBOX = Target("Toolbox", SYSTEM, "tbx-1")


def toolbox_documents(printed: list[Manifest], **spec: Any) -> list[Manifest]:
    """What `init` printed, with another Toolbox spec where given; open to servers of every namespace."""
    shared = {"allowedServers": {"namespaces": {"from": "All"}}, "leaseDuration": "20s", **spec}
    return [
        {**document, "spec": {**document["spec"], **shared}} if document["kind"] == "Toolbox" else document
        for document in printed
    ]


@dataclass(frozen=True, slots=True)
class Space:
    """One test's own namespace in the shared system, and what is applied there."""

    world: World
    namespace: str
    witness: Witness

    @property
    def image(self) -> str:
        """An image with Python and the `hello` server."""
        return self.world.stack.image("hello")

    def apply(self, *documents: Manifest) -> None:
        """Server-side apply, as admin."""
        self.world.stack.parts.cluster.apply(list(documents))

    def server(self, name: str, **spec: Any) -> Target:
        """Applies a quick MCPServer."""
        self.apply(manifests.quick_server(self.namespace, name, spec.pop("image", self.image), **spec))
        return Target("MCPServer", self.namespace, name)

    def connection(self, name: str, server: str, **spec: Any) -> Target:
        """Applies an AgentMCPConnection."""
        self.apply(manifests.connection(self.namespace, name, server, **spec))
        return Target("AgentMCPConnection", self.namespace, name)

    def secret(self, connection: str) -> dict[str, str]:
        """The Secret of a connection."""
        found = self.world.secret(self.namespace, f"{connection}-mcp")
        assert found is not None, f"no Secret for {connection}"
        return found

    def kubectl(self, *arguments: str, seconds: float = 60.0) -> str:
        """Runs kubectl as admin in this namespace."""
        return self.world.stack.parts.cluster.kubectl(*arguments, "-n", self.namespace, seconds=seconds)

    def delete(self, target: Target, *, wait: bool = True) -> None:
        """`kubectl delete`, with its wait or without."""
        self.kubectl("delete", target.resource, "--timeout=60s" if wait else "--wait=false", seconds=75)


@contextmanager
def opened(world: World, *, objects_first: bool = False) -> Generator[Space]:
    """A fresh namespace. Its deletion at the end must leave nothing: no container, no grant, no open row.

    All the time, no instance may have had two running containers. `objects_first`: our objects are deleted before
    the namespace, which saves the pauses of its controller, and its own end is not awaited.
    """
    name = f"fault-{secrets.token_hex(4)}"
    cluster = world.stack.parts.cluster
    cluster.kubectl("create", "namespace", name)
    with witness(("docker",), world.stack.host.host_id) as seen:
        try:
            yield Space(world, name, seen)
        finally:
            if objects_first:
                flags = ("--all", "--timeout=90s", "-n", name)
                cluster.kubectl("delete", "amc,mcps,tbx", *flags, seconds=100)
            waiting = "--wait=false" if objects_first else "--timeout=90s"
            cluster.kubectl("delete", "namespace", name, waiting, seconds=100)
        until("no container left", lambda: world.containers_of(name), lambda left: not left)
        until("no grant left", lambda: world.grants_of(name), lambda left: not left)
        until("rows closed", lambda: world.open_rows(name), lambda left: not left)
    assert seen.doubles == []
