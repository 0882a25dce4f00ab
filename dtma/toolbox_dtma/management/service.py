"""The host as one object: everything the API calls, wired once."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Callable
from pathlib import Path

import structlog

from toolbox_dtma import __version__
from toolbox_dtma.certificates import Notice, PairFiles
from toolbox_dtma.engine.api import Engine, EngineUnavailable
from toolbox_dtma.link.messages import Change
from toolbox_dtma.management.calls import CallLog
from toolbox_dtma.management.events import EventLog
from toolbox_dtma.management.grants import Grants
from toolbox_dtma.management.instances import Instances
from toolbox_dtma.management.keys import Keys
from toolbox_dtma.management.owners import Owners, Reader, Writer
from toolbox_dtma.management.prober import Prober
from toolbox_dtma.management.problems import Refused
from toolbox_dtma.management.reserved import reserved
from toolbox_dtma.management.revocations import Revocations
from toolbox_dtma.management.volumes import spent_volumes
from toolbox_dtma.metrics import Gauges, Metrics, tally
from toolbox_dtma.policy.contents import PolicyItemTooLarge, check_size
from toolbox_dtma.policy.process import Processes, ProcessId
from toolbox_dtma.policy.server import PolicyServer
from toolbox_dtma.sessions.manager import SessionManager
from toolbox_dtma.sessions.process import SOCKET_NAME as BROKER_SOCKET_NAME
from toolbox_dtma.sessions.process import Broker, Spawn
from toolbox_dtma.settings import Bounds, Timings
from toolbox_dtma.state.records import ConfigRecord, WorkerRecord, WorkersRecord
from toolbox_dtma.state.store import State
from toolbox_dtma.wire import (
    PROTOCOL_VERSION,
    Capacity,
    GatewayFacts,
    HostConfig,
    HostFacts,
    InstancePhase,
    ProblemCode,
    Reserved,
    Usage,
)

log = structlog.get_logger("toolbox_dtma")

SOCKET_NAME = "gateway.sock"
REVISIONS_PER_BOOT = 1 << 22
"""Boot ids grow at least as fast as seconds do, so no run reaches the first revision of the next."""


class Service:
    """State, policy, instances, grants and events of one host."""

    def __init__(
        self,
        *,
        state: State,
        engine: Engine,
        processes: Processes,
        timings: Timings,
        bounds: Bounds,
        clock: Callable[[], float],
        certificate: PairFiles,
        spawn_broker: Spawn,
    ):
        """`clock` gives monotonic seconds. Nothing runs before `run()`."""
        self.state = state
        self.timings = timings
        self.bounds = bounds
        self.metrics = Metrics()
        self._engine = engine
        self._certificate = certificate
        self._sighted = asyncio.Event()
        self._gateway_available = True
        self.ready = asyncio.Event()
        self.owners = Owners(state)
        self.events = EventLog(state.boot_id, max_events=bounds.event_count, max_bytes=bounds.event_bytes)
        self.calls = CallLog(state=state, owners=self.owners, bounds=bounds, metrics=self.metrics.calls)
        self.policy = PolicyServer(
            keyring=state.keyring.keyring,
            first_revision=state.boot_id * REVISIONS_PER_BOOT,
            socket_path=Path(state.host.runtime_dir) / SOCKET_NAME,
            gateway_uid=state.host.gateway_uid,
            gateway_gid=state.host.gateway_gid,
            previous=tuple(ProcessId(w.pid, w.start_time, w.machine_boot) for w in state.workers.workers),
            save_workers=self._save_workers,
            processes=processes,
            timings=timings,
            bounds=bounds,
            clock=clock,
            observe_ack=self.metrics.ack,
            observe_cuts=self.metrics.cuts,
            take_calls=self.calls.take,
        )
        self._keys = Keys(state, self.policy, timings)
        revocations = Revocations(self.policy)
        self.grants = Grants(
            state=state, owners=self.owners, policy=self.policy, revocations=revocations, events=self.events
        )
        broker_socket = Path(state.host.runtime_dir) / BROKER_SOCKET_NAME
        self.sessions = SessionManager(
            engine=engine,
            socket_path=str(broker_socket),
            grants=lambda: self.policy.contents.grants,
            need_broker=lambda: self._broker.need(),
            timings=timings,
            now=state.now,
            clock=clock,
        )
        self._broker = Broker(broker_socket, state.host.gateway_gid, spawn_broker, self.sessions, timings, clock)
        self.policy.contents.applied = self.sessions.policy_changed
        self._prober = Prober(self.policy, self.sessions, timings, bounds, clock)
        self.instances = Instances(
            state=state,
            owners=self.owners,
            engine=engine,
            policy=self.policy,
            revocations=revocations,
            events=self.events,
            sessions=self.sessions,
            timings=timings,
            clock=clock,
            wake_prober=self._woken,
        )
        self.metrics.expose(self._gauges, state.instances)

    def _woken(self) -> None:
        if not self.instances.unseen:
            self._sighted.set()
        self._prober.wake()

    async def _save_workers(self, processes: tuple[ProcessId, ...]) -> None:
        workers = tuple(
            WorkerRecord(pid=p.pid, start_time=p.start_time, machine_boot=p.machine_boot) for p in processes
        )
        async with self.state.committing() as commit:
            await commit.put_workers(WorkersRecord(workers=workers))

    async def run(self) -> None:
        """Converge, push policy and probe until cancelled. Sets `ready` when callers may be served."""
        if self.state.config is not None:
            self.policy.publish(Change(config=self.state.config.config))
        await self.calls.load()
        await self.grants.load()
        self.instances.load()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._engine.run(self.instances.on_seen), name="engine")
                await self._first_sight()
                group.create_task(self._sweep(), name="sweep")
                listening = asyncio.Event()
                group.create_task(self.policy.run(started=listening), name="policy")
                group.create_task(self._broker.run(), name="session broker")
                group.create_task(self.sessions.run(), name="sessions")
                group.create_task(self._prober.run(self.instances), name="prober")
                group.create_task(self._follow_gateway(), name="gateway")
                group.create_task(self._keys.run(), name="keys")
                group.create_task(self._follow_certificate(), name="certificate")
                group.create_task(self.calls.run(), name="calls")
                await listening.wait()
                self.ready.set()
        finally:
            self.ready.clear()
            self.events.close()
            await self.instances.removals.close()

    async def _sweep(self) -> None:
        """Once a start: remove what a crash left behind, between Docker and the state on disk."""
        while True:
            try:
                spent = spent_volumes(self.state.tombstones.values())
                await self._engine.sweep(frozenset(self.state.instances), spent)
                return
            except EngineUnavailable as error:
                log.info("leftovers are looked for when the engine is back", error=str(error))
                await asyncio.sleep(self.timings.removal_retry)

    async def _first_sight(self) -> None:
        """Let the engine show what runs, so that a restart of DTMA alone looks like nothing to anyone."""
        if not self.instances.unseen:
            return
        try:
            async with asyncio.timeout(self.timings.first_sight):
                await self._sighted.wait()
        except TimeoutError:
            log.warning("the engine has not shown every instance yet; going on", unseen=len(self.instances.unseen))

    async def _follow_certificate(self) -> None:
        """Take up what whoever renews the certificate puts in its place."""
        while True:
            await asyncio.sleep(self.timings.certificate_poll)
            notice = self._certificate.poll()
            if notice is Notice.REFUSED:
                log.warning(notice.value, why=self._certificate.refused)
            elif notice is not None:
                log.info(notice.value, in_use_until=self._certificate.pair.expires.isoformat())

    async def _follow_gateway(self) -> None:
        """Tell owners when agents cannot reach anything any more, and when they can again."""
        while True:
            try:
                async with asyncio.timeout(self.timings.gateway_away):
                    await self.policy.staffed(True)
            except TimeoutError:
                log.warning("no gateway worker is connected; start `toolbox-dtma gateway`")
                self._gateway_is(available=False)
                await self.policy.staffed(True)
            self._gateway_is(available=True)
            await self.policy.staffed(False)

    def _gateway_is(self, *, available: bool) -> None:
        if self._gateway_available is not available:
            self._gateway_available = available
            for owner in self.state.owners:
                self.events.publish(owner, "gateway", self._gateway())

    def _gateway(self) -> GatewayFacts:
        return GatewayFacts(
            workers=self.policy.workers,
            workers_current=self.policy.workers_current,
            revision=self.policy.revision,
            available=self._gateway_available,
        )

    async def configure(self, writer: Writer, config: HostConfig) -> None:
        """Replace the gateway's configuration. Raises `Refused`."""
        try:
            check_size(config)
        except PolicyItemTooLarge as error:
            raise Refused(ProblemCode.TOO_LARGE, f"the configuration is too large: {error}") from None
        async with self.state.committing() as commit:
            await self.owners.fence(commit, writer)
            record = ConfigRecord(owner=writer.owner, config=config)
            if self.state.config != record:
                await commit.put_config(record)
                self.policy.publish(Change(config=config))

    async def facts(self, reader: Reader) -> HostFacts:
        """What the host is and has, and what this owner uses of it. Raises `Refused` (NotClaimed)."""
        items = self.instances.list(reader).items
        pages, page_size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        running = sum(i.observed.phase in (InstancePhase.READY, InstancePhase.STARTING) for i in items)
        return HostFacts(
            host_id=self.state.host.host_id,
            boot_id=self.state.boot_id,
            version=__version__,
            protocol=PROTOCOL_VERSION,
            engine=await self._engine.facts(),
            gateway=self._gateway(),
            os=platform.system().lower(),
            arch=platform.machine(),
            capacity=Capacity(cpus=os.cpu_count() or 1, memory_bytes=pages * page_size),
            reserved=self._reserved(),
            usage=Usage(instances=len(items), running=running, grants=len(self.grants.list(reader).items)),
            time=self.state.now(),
        )

    def _reserved(self) -> Reserved:
        return reserved(record.desired for record in self.state.instances.values())

    def _gauges(self) -> Gauges:
        taken = self._reserved()
        vitals = self.policy.vitals
        expiries = [each.certificate_expires for each in vitals if each.certificate_expires is not None]
        return Gauges(
            phases=tally(self.instances.phases()),
            grants=len(self.state.grants),
            grants_pending=self.grants.pending,
            sessions=self.sessions.open_sessions,
            reserved_memory_bytes=taken.memory_bytes,
            reserved_cpu_millis=taken.cpu_millis,
            policy_revision=self.policy.revision,
            workers=self.policy.workers,
            workers_current=self.policy.workers_current,
            tombstones=len(self.state.tombstones),
            boot_id=self.state.boot_id,
            calls_held=self.calls.held,
            calls_dropped=self.calls.dropped,
            certificate_expiry=self._certificate.pair.expires.timestamp(),
            certificate_refused=self._certificate.refused is not None,
            gateway_connections=sum(each.connections for each in vitals),
            gateway_certificate_expiry=min(expiries, default=None),
            gateway_certificate_refused=any(each.certificate_refused for each in vitals),
        )
