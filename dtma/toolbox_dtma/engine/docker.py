"""The Docker Engine behind the seam of `engine.api`."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

import structlog

from toolbox_dtma.engine.api import (
    NOTHING_SPENT,
    EngineUnavailable,
    ExitListener,
    Holder,
    NotDeployed,
    Seen,
    SeenListener,
    SessionStream,
    Spent,
    Wanted,
)
from toolbox_dtma.engine.client import DockerClient
from toolbox_dtma.engine.converge import Converger, RemovalBlocked
from toolbox_dtma.engine.failures import DockerRefused, Failure
from toolbox_dtma.engine.firewall import Address, Firewall, host_resolvers, iptables_runner, reserved_networks
from toolbox_dtma.engine.images import Images
from toolbox_dtma.engine.ledger import Ledger
from toolbox_dtma.engine.logs import read_logs
from toolbox_dtma.engine.models import ContainerSummary
from toolbox_dtma.engine.names import LABEL_HELPER, LABEL_HOST, LABEL_INSTANCE, LABEL_SESSION, HostNames
from toolbox_dtma.engine.networks import Networks
from toolbox_dtma.engine.sessions import SessionContainers
from toolbox_dtma.engine.timings import Timings
from toolbox_dtma.engine.volumes import Volumes
from toolbox_dtma.engine.watch import Watch
from toolbox_dtma.engine.world import World
from toolbox_dtma.wire import EngineFacts

log = structlog.stdlib.get_logger(__name__)

__all__ = ["DockerEngine", "RemovalBlocked"]


class DockerEngine:
    """Implements `engine.api.Engine` with one Docker Engine.

    `spec_key` is a secret of this host that never changes: with another one every container counts as changed.
    `runtime_dir` holds a small memory that may be lost (restart counts, what `:latest` meant).
    """

    def __init__(
        self,
        host_id: str,
        spec_key: bytes,
        runtime_dir: Path,
        docker_url: str | None = None,
        *,
        timings: Timings | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        resolvers: Callable[[], Sequence[Address]] = host_resolvers,
    ) -> None:
        timings = timings or Timings()
        names = HostNames(host_id)
        client = DockerClient(docker_url, timings)
        firewall = Firewall(names, iptables_runner(timings.command), resolvers=resolvers)
        volumes = Volumes(client, names)
        self._world = World(
            names=names,
            spec_key=spec_key,
            client=client,
            images=Images(client),
            networks=Networks(client, names, reserved=lambda: reserved_networks(resolvers())),
            volumes=volumes,
            firewall=firewall,
            sessions=SessionContainers(client, names, firewall, volumes, spec_key),
            ledger=Ledger(runtime_dir),
            timings=timings,
            clock=clock,
            report=self._report,
            # Jitter, not a secret.
            rng=rng or random.Random(),
        )
        self._listener: SeenListener | None = None
        self._convergers: dict[str, Converger] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._shown: dict[str, tuple[str, frozenset[str]]] = {}
        """Container id → state and networks at the last resync: what tells of a missed event, or one that Docker does
        not send for our labels, such as a network taken away."""

    async def run(self, listener: SeenListener) -> None:
        """Converge until cancelled."""
        if self._listener is not None:
            raise RuntimeError("the engine is already running")
        self._listener = listener
        try:
            for converger in tuple(self._convergers.values()):
                self._launch(converger)
            await Watch(
                self._world,
                changed=self._wake,
                connected=self._on_connected,
                lost=self._on_lost,
                resync=self._resync,
            ).run()
        finally:
            self._listener = None
            tasks = tuple(self._tasks.values())
            self._tasks.clear()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._world.sessions.close()
            await self._world.client.aclose()

    def want(self, wanted: Wanted) -> None:
        """Replace the desired state of an instance."""
        self._converger(wanted.id).want(wanted)

    async def remove(self, instance_id: str, *, volumes_of: Holder | None = None) -> None:
        """Forget the instance and remove its container and network; absent is success.

        With `volumes_of` that holder's volumes go too. Raises `EngineUnavailable` (`RemovalBlocked` when Docker
        refuses); the removal then goes on by itself.
        """
        done = self._converger(instance_id).remove(volumes_of)
        try:
            async with asyncio.timeout(self._world.timings.remove):
                await done
        except TimeoutError as error:
            raise EngineUnavailable("the removal takes long") from error

    async def sweep(self, known: frozenset[str], spent: Spent = NOTHING_SPENT) -> tuple[str, ...]:
        """Remove what carries this host's label for instances that are neither known nor wanted; their ids.

        To be called only with a complete set of known instances. Volumes stay, but for those `spent`. Raises
        `EngineUnavailable`.
        """
        host = {LABEL_HOST: self._world.names.host_id}
        try:
            containers = await self._world.client.containers(host)
            found = [item.labels.get(LABEL_INSTANCE) or item.labels.get(LABEL_HELPER) for item in containers]
            found += [item.labels.get(LABEL_INSTANCE) for item in await self._world.client.networks(host)]
        except DockerRefused as refused:
            raise EngineUnavailable(refused.message) from refused
        orphans = tuple(sorted({instance_id for instance_id in found if instance_id} - self._held(known)))
        for instance_id in orphans:
            log.info("removing an orphan", instance=instance_id)
            await self.remove(instance_id)
        for holder, uids in spent.items():
            if holder.instance not in self._held(known):
                await self._world.volumes.sweep(holder, uids)
        return orphans

    def _held(self, known: frozenset[str]) -> frozenset[str]:
        return known | {instance_id for instance_id, converger in self._convergers.items() if converger.wanted}

    async def teardown(self) -> None:
        """Remove this host's firewall chains; for a host that is given up. Raises `Failure`."""
        await self._world.firewall.teardown()

    async def logs(self, instance_id: str, *, tail: int, since: float | None, follow: bool) -> AsyncGenerator[bytes]:
        """Output of the instance's container: the running one, else the newest. Raises `KeyError`.

        Close the generator (`contextlib.aclosing`) when stopping early: it holds a connection.
        """
        listed = await self._world.client.containers(self._world.names.labels(instance_id))
        containers = [item for item in listed if LABEL_SESSION not in item.labels]
        if not containers:
            raise KeyError(instance_id)
        # Docker lists the newest first, and sorting is stable.
        chosen = sorted(containers, key=lambda item: item.state != "running")[0]
        try:
            history = read_logs(self._world.client, chosen.id, tail=tail, since=since, follow=follow)
            async with contextlib.aclosing(history) as chunks:
                async for chunk in chunks:
                    yield chunk
        except DockerRefused as refused:
            if refused.status == 404:
                raise KeyError(instance_id) from refused
            raise EngineUnavailable(refused.message) from refused

    def follow_sessions(self, listener: ExitListener) -> None:
        """Tell `listener` of sessions whose process ends by itself."""
        self._world.sessions.on_exit = listener

    async def open_session(self, instance_id: str, session: str) -> SessionStream:
        """A container of an instance's present deployment for one session.

        Raises `NotDeployed`, `EngineUnavailable`, `Failure`; nothing is left of it then.
        """
        converger = self._convergers.get(instance_id)
        deployment = converger.deployment if converger is not None else None
        if converger is None or deployment is None or self._listener is None:
            raise NotDeployed(instance_id)
        try:
            stream = await self._world.sessions.open(session, deployment)
        except Failure:
            # Somebody may have taken away the image or the network: both are seen at the next look.
            converger.wake()
            raise
        return SessionStream(deployment.id, stream)

    def end_session(self, session: str, *, grace: int = 0) -> None:
        """Have a session's container removed, killed at once or after `grace` seconds. Absent is success."""
        self._world.sessions.end(session, grace=grace)

    async def facts(self) -> EngineFacts:
        """Version facts; `available=False` while the engine does not answer."""
        try:
            version = await self._world.client.version()
        except (EngineUnavailable, DockerRefused):
            return EngineFacts(available=False)
        return EngineFacts(available=True, version=version.version, api_version=version.api_version)

    def _converger(self, instance_id: str) -> Converger:
        converger = self._convergers.get(instance_id)
        if converger is None:
            converger = self._convergers[instance_id] = Converger(instance_id, self._world)
            if self._listener is not None:
                self._launch(converger)
        return converger

    def _launch(self, converger: Converger) -> None:
        task = asyncio.ensure_future(converger.run())
        self._tasks[converger.id] = task
        task.add_done_callback(lambda done: self._on_end(converger, done))

    def _on_end(self, converger: Converger, task: asyncio.Task[None]) -> None:
        if task.cancelled() or self._tasks.get(converger.id) is not task:
            return
        del self._tasks[converger.id]
        if converger.busy:
            # Asked for something in the moment between its end and this callback.
            self._launch(converger)
        else:
            self._convergers.pop(converger.id, None)

    def _report(self, instance_id: str, seen: Seen) -> None:
        if self._listener is not None:
            self._listener(instance_id, seen)

    def _wake(self, instance_id: str) -> None:
        converger = self._convergers.get(instance_id)
        if converger is not None:
            converger.wake()

    async def _on_connected(self) -> None:
        # Docker rewrites its own chains when it starts.
        self._world.firewall.forget()
        await self._assert_firewall()
        await self._look_at_sessions()
        self._shown.clear()
        for converger in tuple(self._convergers.values()):
            converger.wake()
        log.info("following the Docker Engine", host=self._world.names.host_id)

    def _on_lost(self, message: str) -> None:
        log.warning("the Docker Engine is away", host=self._world.names.host_id, error=message)
        for converger in tuple(self._convergers.values()):
            converger.engine_lost(message)

    async def _resync(self) -> None:
        self._world.firewall.forget()
        await self._assert_firewall()
        listed = [item for item in await self._look_at_sessions() if LABEL_SESSION not in item.labels]
        shown = {
            item.id: (item.state, frozenset(end.network_id for end in item.network_settings.networks.values()))
            for item in listed
        }
        instances = {item.id: item.labels.get(LABEL_INSTANCE, "") for item in listed}
        alike = {key for key in shown if self._shown.get(key) == shown[key]}
        self._shown = shown
        for container_id in shown.keys() - alike:
            self._wake(instances[container_id])
        present = set(instances.values())
        for instance_id in tuple(self._convergers):
            if instance_id not in present:
                self._wake(instance_id)

    async def _look_at_sessions(self) -> tuple[ContainerSummary, ...]:
        """All containers of this host, after those of sessions were compared with what is open."""
        started = self._world.sessions.started
        listed = await self._world.client.containers({LABEL_HOST: self._world.names.host_id})
        self._world.sessions.look(listed, started)
        return listed

    async def _assert_firewall(self) -> None:
        try:
            await self._world.firewall.ensure()
        except Failure as failure:
            # Not fatal here: no container starts without it, and each start says so.
            log.warning("firewall not in place", error=failure.message)
