"""A DockerEngine on the machine's real engine, with what tests need to watch it and to interfere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from support.engine.images import docker
from support.engine.objects import desired_instance
from toolbox_dtma.engine.api import Seen, Wanted
from toolbox_dtma.engine.docker import DockerEngine
from toolbox_dtma.engine.firewall import Address, host_resolvers
from toolbox_dtma.engine.names import LABEL_HOST, LABEL_INSTANCE, HostNames
from toolbox_dtma.engine.timings import Timings
from toolbox_dtma.wire import InstancePhase

SERVER = ("sh", "-c", "trap 'exit 0' TERM; nc -ll -p 3001 -e echo hello & wait")
"""Answers every connection to its port, and ends at once when asked to."""

FAST = Timings(
    restart_first=0.3, restart_max=1.2, retry_first=0.2, retry_max=0.5, reconnect_first=0.05, resync=1.0, stop_grace=2
)
KEY = b"k" * 32
T = TypeVar("T")


@dataclass
class EngineHost:
    """One hostId. `start` and `stop` may be repeated, like restarts of DTMA."""

    runtime_dir: Path
    image: str
    timings: Timings = FAST
    resolvers: Callable[[], Sequence[Address]] = host_resolvers
    docker_url: str | None = None
    host_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    seen: list[tuple[str, Seen]] = field(default_factory=list[tuple[str, Seen]])
    _engine: DockerEngine | None = None
    _task: asyncio.Task[None] | None = None

    @property
    def engine(self) -> DockerEngine:
        """The present engine."""
        if self._engine is None:
            self._engine = DockerEngine(
                self.host_id, KEY, self.runtime_dir, self.docker_url, timings=self.timings, resolvers=self.resolvers
            )
        return self._engine

    @property
    def names(self) -> HostNames:
        """Names of this host."""
        return HostNames(self.host_id)

    def start(self) -> None:
        """Run the engine in the background, with nothing seen yet."""
        self.seen.clear()
        self._task = asyncio.create_task(self.engine.run(lambda instance, seen: self.seen.append((instance, seen))))

    async def stop(self) -> None:
        """Stop as DTMA stops: containers go on."""
        task, self._task, self._engine = self._task, None, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def wanted(self, instance: str, *, owner: str = "cluster-1", **changes: Any) -> Wanted:
        """An instance to desire; by default a server of the tiny image."""
        fields: dict[str, Any] = {"image": self.image, "command": SERVER}
        return Wanted(instance, owner, desired_instance(**(fields | changes)))

    def want(self, instance: str, *, owner: str = "cluster-1", **changes: Any) -> None:
        """Desire an instance."""
        self.engine.want(self.wanted(instance, owner=owner, **changes))

    def want_sessions(self, instance: str, **changes: Any) -> None:
        """Desire a stdio instance; by default one that repeats every line."""
        stdio: dict[str, Any] = {"transport": "stdio", "port": None, "path": None, "sessions": {"max_sessions": 10}}
        members: dict[str, Any] = stdio | {"command": ("cat",)} | changes
        self.want(instance, **members)

    async def deployed(self, instance: str, seconds: float = 20, **expected: Any) -> Seen:
        """Wait until sessions can be opened, of what was desired with these members of `Seen`."""

        def fits(seen: Seen) -> bool:
            # One with an address is the container of a server that listened under this id before.
            ready = seen.phase is InstancePhase.STARTING and seen.incarnation is not None and seen.address is None
            return ready and all(getattr(seen, name) == value for name, value in expected.items())

        return await self.until(instance, fits, f"{instance} deployed {expected}", seconds)

    def last(self, instance: str) -> Seen | None:
        """What was reported last."""
        return next((seen for key, seen in reversed(self.seen) if key == instance), None)

    async def until(self, instance: str, condition: Callable[[Seen], bool], what: str, seconds: float = 20) -> Seen:
        """Wait until the last report fulfils a condition."""

        def check() -> Seen | None:
            seen = self.last(instance)
            return seen if seen is not None and condition(seen) else None

        return await eventually(check, lambda: f"{what}; last seen: {self.last(instance)}", seconds)

    async def running(self, instance: str, seconds: float = 20) -> Seen:
        """Wait until the container runs."""
        return await self.until(instance, is_running, f"{instance} running", seconds)

    def inspect(self, instance: str) -> list[dict[str, Any]]:
        """All containers of an instance, as Docker shows them."""
        for _ in range(10):
            ids = self.ids(f"{LABEL_INSTANCE}={instance}")
            try:
                return cast(list[dict[str, Any]], json.loads(docker("inspect", *ids))) if ids else []
            except subprocess.CalledProcessError:
                # One was removed between the two calls.
                continue
        raise AssertionError(f"the containers of {instance} keep changing")

    def ids(self, *labels: str) -> list[str]:
        """Container ids with this host's label and others."""
        wanted = [f"--filter=label={label}" for label in (f"{LABEL_HOST}={self.host_id}", *labels)]
        return docker("ps", "--all", "--quiet", "--no-trunc", *wanted).split()

    def networks(self) -> list[str]:
        """Network ids with this host's label."""
        return docker("network", "ls", "--quiet", "--filter", f"label={LABEL_HOST}={self.host_id}").split()

    def volumes(self, *labels: str) -> list[str]:
        """Names of volumes with this host's label and others."""
        wanted = [f"--filter=label={label}" for label in (f"{LABEL_HOST}={self.host_id}", *labels)]
        return sorted(docker("volume", "ls", "--quiet", *wanted).split())

    def execute(self, instance: str, *command: str) -> str:
        """Run a command inside the container; its output and, on failure, `exit N`."""
        container = self.inspect(instance)[0]["Id"]
        shell = 'out=$("$@" 2>&1); code=$?; echo "$out"; [ $code = 0 ] || echo "exit $code"'
        return docker("exec", str(container), "sh", "-c", shell, "sh", *command)

    async def clean(self) -> None:
        """Remove everything of this host."""
        await self.stop()
        if found := self.ids():
            docker("rm", "--force", "--volumes", *found)
        if networks := self.networks():
            docker("network", "rm", *networks)
        if volumes := self.volumes():
            docker("volume", "rm", *volumes)
        await self.engine.teardown()


def is_running(seen: Seen) -> bool:
    """STARTING with an address: up, and not yet probed by anyone."""
    return seen.phase is InstancePhase.STARTING and seen.address is not None


async def eventually(check: Callable[[], T | None], describe: Callable[[], str], seconds: float = 20) -> T:
    """Poll until `check` gives something. Fails with what `describe` says."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        found = check()
        if found:
            return found
        if loop.time() > deadline:
            raise AssertionError(f"not within {seconds} s: {describe()}")
        await asyncio.sleep(0.02)
