"""Specs of servers that come to nothing: what a person is told about each, and the edit that cures it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from localstack.kubernetes import Manifest
from localstack.ports import free_port
from localstack.quickstart import Target
from support.manifests import QUICK_SERVER, quick_server
from support.system import bad_servers
from support.system.space import Space

GOOD: dict[str, Any] = {"command": ["python3", "-S", "-c", QUICK_SERVER], "args": []}


@dataclass(frozen=True)
class Trouble:
    """One bad spec."""

    name: str
    spec: dict[str, Any]
    """Differs in this from a quick server's; `image` may hold {image}, {registry} and {closed}."""
    reason: str
    says: tuple[str, ...]
    """What the message must contain: what is wrong, and what to change."""
    cure: dict[str, Any] = field(default_factory=lambda: dict(GOOD))
    """A merge patch of the spec."""
    deployed: str = "False"

    def __str__(self) -> str:
        return self.name


AT_ONCE = (
    Trouble("unknown-tag", {"image": "{image}-nowhere"}, "ImageNotFound", ("spec.image", "-nowhere does not exist"),
            {"image": "{image}"}),
    Trouble("unknown-repository", {"image": "{registry}/nobody/nothing:1"}, "ImageNotFound",
            ("spec.image", "nobody/nothing:1 does not exist"), {"image": "{image}"}),
    Trouble("unknown-registry", {"image": "127.0.0.1:{closed}/mcp:1"}, "ImagePullFailed",
            ("check its registry", "could not be reached"), {"image": "{image}"}),
    Trouble("crash", bad_servers.CRASHING, "ContainerExited", ("exited with code 3", "logs")),
    Trouble("no-program", {"command": ["no-such-program"]}, "StartFailed", ("'no-such-program'", "spec.command")),
    Trouble("out-of-memory", {**bad_servers.HUNGRY, "resources": {"limits": {"memory": "32Mi"}}}, "OutOfMemory",
            ("spec.resources.limits.memory",)),
    Trouble("read-only", {**bad_servers.WRITING, "security": {"runAsUser": 10001}}, "ContainerExited",
            ("exited with code 1",)),
    Trouble("forbidden-file", {**bad_servers.READING_A_SECRET, "security": {"runAsUser": 10002}}, "ContainerExited",
            ("exited with code 1",)),
)  # fmt: skip

AFTER_A_WHILE = (
    Trouble("html", bad_servers.HTML, "ProbeFailed", ("check port and path", "text/html"), deployed="True"),
    Trouble("not-found", bad_servers.NOT_FOUND, "ProbeFailed", ("check port and path", "Not Found"), deployed="True"),
    Trouble("not-json", bad_servers.NOT_JSON, "ProbeFailed", ("check port and path", "JSON"), deployed="True"),
    Trouble("silent", bad_servers.SILENT, "ProbeFailed", ("did not answer in time",), deployed="True"),
    Trouble("too-many-tools", bad_servers.TOO_MANY_TOOLS, "ProbeFailed", ("more than 1000 tools",), deployed="True"),
    Trouble("same-cursor", bad_servers.SAME_CURSOR, "ProbeFailed", ("repeats a cursor",), deployed="True"),
    Trouble("wrong-path", {"path": "/elsewhere", **bad_servers.ONE_PATH}, "ProbeFailed",
            ("check port and path", "Not Found"), {"path": "/mcp"}, deployed="True"),
    Trouble("no-listener", {"port": 8001}, "PortNotListening", ("spec.port", "nothing listens on its port"),
            {"port": 8000}, deployed="True"),
)  # fmt: skip
"""Not an error before the deadline for a first answer, 60 s."""


@dataclass(frozen=True)
class Applied:
    """Troubles that were applied, and what stands for the placeholders of their images."""

    space: Space
    words: dict[str, str]

    def documents(self, *troubles: Trouble) -> list[Manifest]:
        """What is applied for each."""
        space = self.space
        quick = [quick_server(space.namespace, trouble.name, space.image) for trouble in troubles]
        return [
            {**document, "spec": {**document["spec"], **self.filled(trouble.spec)}}
            for document, trouble in zip(quick, troubles, strict=True)
        ]

    def filled(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Changes with the words put into the image's name."""
        image = changes.get("image")
        return {**changes, "image": image.format(**self.words)} if isinstance(image, str) else changes

    def target(self, trouble: Trouble) -> Target:
        """The object."""
        return Target("MCPServer", self.space.namespace, trouble.name)


def apply_all(space: Space) -> Applied:
    """All of them at once, so that those that take their time take it together."""
    registry = space.world.stack.parts.registry.address
    applied = Applied(space, {"image": space.image, "registry": registry, "closed": str(free_port())})
    space.apply(*applied.documents(*AFTER_A_WHILE, *AT_ONCE))
    return applied
