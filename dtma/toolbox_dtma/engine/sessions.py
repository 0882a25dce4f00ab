"""Containers of sessions: made, attached and started for one session each, and removed with it, whoever ended it.

A session's container carries its session's name as a label. Those of sessions that this process does not hold are left
over from a crash, and go with the next look at the engine.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog

from toolbox_dtma.engine.api import EngineUnavailable, NotDeployed, SessionExit
from toolbox_dtma.engine.client import DockerClient
from toolbox_dtma.engine.deployment import Deployment
from toolbox_dtma.engine.failures import DockerRefused, create_failure, start_failure
from toolbox_dtma.engine.firewall import Firewall
from toolbox_dtma.engine.models import ContainerSummary
from toolbox_dtma.engine.names import LABEL_INSTANCE, LABEL_SESSION, HostNames
from toolbox_dtma.engine.session_spec import session_config
from toolbox_dtma.engine.volumes import Volumes

log = structlog.stdlib.get_logger(__name__)

_STARTS = 4
"""Sessions that are begun at a time: they must not keep the engine from everything else."""
_REMOVALS = 8
_CLOSING_SECONDS = 8.0
"""What removing everything at the end may take; the next start removes the rest."""


@dataclass(slots=True)
class _Live:
    """One session of this run."""

    instance: str
    container: str
    """Its name, which is known before its id is."""
    making: bool = False
    """Whether it had its turn: Docker may have been asked for its container."""
    made: bool = False
    """Whether Docker has done all that was asked of it."""
    started: bool = False
    """Whether its caller has it."""
    out_of_memory: bool = False
    exit: SessionExit | None = None


@dataclass(frozen=True, slots=True)
class _Ending:
    """One removal under way."""

    instance: str
    task: asyncio.Task[None]


class SessionContainers:
    """Every session's container of this host."""

    def __init__(
        self, client: DockerClient, names: HostNames, firewall: Firewall, volumes: Volumes, spec_key: bytes
    ) -> None:
        self._client = client
        self._names = names
        self._firewall = firewall
        self._volumes = volumes
        self._spec_key = spec_key
        self._starts = asyncio.Semaphore(_STARTS)
        self._removals = asyncio.Semaphore(_REMOVALS)
        self._live: dict[str, _Live] = {}
        self._ends: dict[str, _Ending] = {}
        self._begun: dict[asyncio.Task[socket.socket], _Live] = {}
        """What is being made."""
        self._asked: dict[str, asyncio.Task[None]] = {}
        self.on_exit: Callable[[str, SessionExit], None] = lambda session, exit_: None
        """Called with a session whose process ended by itself."""

    async def open(self, session: str, deployment: Deployment) -> socket.socket:
        """A started container, and the socket of its streams, which the caller owns.

        Raises `Failure`, `EngineUnavailable`, `NotDeployed` if it was ended meanwhile; nothing is left of it then.
        """
        name = self._names.session_container(deployment.wanted.id, deployment.wanted.desired.name, session)
        self._live[session] = live = _Live(deployment.wanted.id, name)
        work = asyncio.create_task(self._make(session, live, deployment), name=f"begin session {name}")
        self._begun[work] = live
        work.add_done_callback(self._begun.pop)
        try:
            # What Docker was asked for cannot be taken back: if nobody waits any more, it is removed once it is there.
            stream = await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(lambda done: self._unclaimed(session, done))
            raise
        if session not in self._live:
            stream.close()
            raise NotDeployed(deployment.wanted.id)
        live.started = True
        if live.exit is not None:
            # After the caller has taken up the session, which it can only then be told of.
            asyncio.get_running_loop().call_soon(self.on_exit, session, live.exit)
        return stream

    async def _make(self, session: str, live: _Live, deployment: Deployment) -> socket.socket:
        try:
            async with self._starts:
                if session not in self._live:
                    raise NotDeployed(live.instance)
                live.making = True
                stream = await self._started(live.container, session, deployment)
        except BaseException:
            self._live.pop(session, None)
            self._begin_removal(session, live.instance, live.container, grace=0)
            raise
        live.made = True
        if session not in self._live:
            self._begin_removal(session, live.instance, live.container, grace=0)
        return stream

    def _unclaimed(self, session: str, done: asyncio.Task[socket.socket]) -> None:
        if not done.cancelled() and done.exception() is None:
            done.result().close()
        self.end(session, grace=0)

    async def _started(self, name: str, session: str, deployment: Deployment) -> socket.socket:
        wanted = deployment.wanted
        await self._volumes.make(wanted)
        try:
            await self._client.create(name, session_config(self._names, deployment, session, self._spec_key))
        except DockerRefused as refused:
            raise create_failure(refused) from refused
        if wanted.desired.volumes:
            await self._hand_over_volumes(wanted.id, name)
        # Before it starts, so that not a byte of its output is missed.
        stream = await self._attached(name)
        try:
            # No process of ours runs a moment without the firewall.
            await self._firewall.ensure()
            await self._client.start(name)
        except DockerRefused as refused:
            stream.close()
            raise start_failure(refused) from refused
        except BaseException:
            stream.close()
            raise
        return stream

    async def _hand_over_volumes(self, instance_id: str, name: str) -> None:
        """Only the first session of a new volume finds anything to do; none that has begun before it can be in one."""
        container = await self._client.container(name)
        if container is None:
            raise NotDeployed(instance_id)
        await self._volumes.hand_over(instance_id, container)

    async def _attached(self, name: str) -> socket.socket:
        try:
            return await self._client.attach(name)
        except DockerRefused as refused:
            raise start_failure(refused) from refused

    def end(self, session: str, *, grace: int) -> None:
        """Have a session's container removed: killed at once, or after `grace` seconds of a request to end."""
        live = self._live.pop(session, None)
        # One that is not made yet goes as soon as it is.
        if live is not None and live.made:
            self._begin_removal(session, live.instance, live.container, grace)

    def _begin_removal(self, session: str, instance: str, container: str, grace: int) -> None:
        task = asyncio.create_task(self._remove(container, grace), name=f"end session {container}")
        self._ends[session] = _Ending(instance, task)
        task.add_done_callback(lambda _: self._ends.pop(session, None))

    async def _remove(self, container: str, grace: int) -> None:
        try:
            if grace:
                await self._client.stop(container, grace=grace)
            else:
                # By itself first: it is in force long before the network is taken down.
                await self._client.kill(container)
            async with self._removals:
                await self._client.remove(container)
        except (EngineUnavailable, DockerRefused) as error:
            log.warning("a session's container is removed later", container=container, error=str(error))

    async def clear(self, instance_id: str) -> None:
        """Remove every session of an instance, known or left over. Raises `EngineUnavailable`, `DockerRefused`."""
        for session, live in tuple(self._live.items()):
            if live.instance == instance_id:
                self.end(session, grace=0)
        # What is being made ends in a removal, and may have no container yet that is listed.
        begun = [work for work, live in self._begun.items() if live.instance == instance_id and live.making]
        # Not gathered: a caller that is cancelled must not end them half done.
        if begun:
            await asyncio.wait(begun)
        if ends := [ending.task for ending in self._ends.values() if ending.instance == instance_id]:
            await asyncio.wait(ends)
        for summary in await self._client.containers(self._names.labels(instance_id)):
            if LABEL_SESSION in summary.labels:
                await self._client.remove(summary.id)

    @property
    def started(self) -> frozenset[str]:
        """Sessions whose process was started and not yet ended by us."""
        return frozenset(session for session, live in self._live.items() if live.started)

    def look(self, listed: Iterable[ContainerSummary], started: frozenset[str]) -> None:
        """Compare with all containers of the host: remove strays, tell of sessions that ended unseen.

        `started` as it was before the list was asked for: what began since then may not be in it.
        """
        present: set[str] = set()
        for summary in listed:
            session = summary.labels.get(LABEL_SESSION)
            if session is None:
                continue
            present.add(session)
            instance = summary.labels.get(LABEL_INSTANCE, "")
            if session not in self._live and session not in self._ends:
                log.info("removing a session that was left over", instance=instance)
                self._begin_removal(session, instance, summary.id, grace=0)
            elif session in started and summary.state in {"exited", "dead"}:
                self._ask_how_it_ended(session, summary.id)
        for session in started - present:
            self._exited(session, SessionExit())

    def _ask_how_it_ended(self, session: str, container: str) -> None:
        live = self._live.get(session)
        if live is None or live.exit is not None or session in self._asked:
            return
        task = asyncio.create_task(self._how_it_ended(session, container), name=f"exit of session {container}")
        self._asked[session] = task
        task.add_done_callback(lambda _: self._asked.pop(session, None))

    async def _how_it_ended(self, session: str, container: str) -> None:
        """Docker's event of an exit may come late, or not at all; what it keeps of the container says the same."""
        try:
            found = await self._client.container(container)
        except (EngineUnavailable, DockerRefused) as error:
            log.info("how a session ended is asked again", container=container, error=str(error))
            return
        exit_ = SessionExit() if found is None else SessionExit(found.state.exit_code, found.state.oom_killed)
        self._exited(session, exit_)

    def happened(self, session: str, action: str, attributes: dict[str, str]) -> None:
        """An event of Docker about a session's container."""
        live = self._live.get(session)
        if live is None:
            return
        if action == "oom":
            live.out_of_memory = True
        elif action == "die":
            code = attributes.get("exitCode", "")
            self._exited(session, SessionExit(int(code) if code.isdecimal() else None, live.out_of_memory))

    def _exited(self, session: str, exit_: SessionExit) -> None:
        live = self._live.get(session)
        if live is not None and live.exit is None:
            live.exit = exit_
            if live.started:
                self.on_exit(session, exit_)

    async def close(self) -> None:
        """End every session; what the engine does not do in time is left over for the next start."""
        for task in tuple(self._asked.values()):
            task.cancel()
        for session in tuple(self._live):
            self.end(session, grace=0)
        try:
            async with asyncio.timeout(_CLOSING_SECONDS):
                # Those that are still being made end in a removal.
                await asyncio.gather(*self._begun, return_exceptions=True)
                await asyncio.gather(*(ending.task for ending in self._ends.values()))
        except TimeoutError:
            log.warning("sessions are left over for the next start", number=len(self._ends) + len(self._begun))
