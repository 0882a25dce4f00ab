"""Instances: what owners want, what the engine and the probes show, and the reports made of both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from toolbox_dtma.approvals import Approvals
from toolbox_dtma.engine.api import Engine, Seen, Wanted
from toolbox_dtma.link.messages import Change, InstanceRoute
from toolbox_dtma.management import reports
from toolbox_dtma.management.events import EventLog
from toolbox_dtma.management.owners import Owners, Reader, Writer, check_identity
from toolbox_dtma.management.problems import Refused
from toolbox_dtma.management.removals import Removals
from toolbox_dtma.management.revocations import Revocations
from toolbox_dtma.management.volumes import left_by, removal_of, spent_by
from toolbox_dtma.policy.server import AckPending, PolicyServer
from toolbox_dtma.readiness import Failure, Probed, Readiness, Target
from toolbox_dtma.sessions.manager import SessionManager
from toolbox_dtma.settings import Timings
from toolbox_dtma.state.records import ApprovalsRecord, InstanceRecord, LeftVolumes, ProbedRecord
from toolbox_dtma.state.store import Commit, State
from toolbox_dtma.wire import (
    DeletedInstance,
    DesiredInstance,
    InstanceList,
    InstanceReport,
    InstanceState,
    ProblemCode,
    VolumePolicy,
)


@dataclass(slots=True)
class _Tracked:
    """One live instance."""

    record: InstanceRecord
    readiness: Readiness
    report: InstanceReport | None = None
    """As last published."""


class Instances:
    """Every instance of every owner."""

    def __init__(
        self,
        *,
        state: State,
        owners: Owners,
        engine: Engine,
        policy: PolicyServer,
        revocations: Revocations,
        events: EventLog,
        sessions: SessionManager,
        timings: Timings,
        clock: Callable[[], float],
        wake_prober: Callable[[], None],
    ):
        """`clock` gives monotonic seconds; `wake_prober` is called when a probe may be due."""
        self._state = state
        self._owners = owners
        self._engine = engine
        self._policy = policy
        self._revocations = revocations
        self._events = events
        self._sessions = sessions
        sessions.on_change, sessions.on_new_broker = self._refresh_known, self._probe_soon
        self._timings = timings
        self._clock = clock
        self._wake_prober = wake_prober
        self._tracked: dict[str, _Tracked] = {}
        self.removals = Removals(engine, timings, self._removed)

    # ------------------------------------------------------------------- start
    def load(self) -> None:
        """Take up what is on disk: begin to track, tell the engine, go on with removals."""
        for record in self._state.instances.values():
            if record.deleting:
                self.removals.begin(record.id, spent_by(record))
            else:
                self._track(record, recall=True)
                self._want(record)

    def phases(self) -> list[str]:
        """The phase of every instance of every owner."""
        return [tracked.report.observed.phase.value for tracked in self._tracked.values() if tracked.report]

    @property
    def unseen(self) -> tuple[str, ...]:
        """Instances the engine has not shown since the start."""
        return tuple(i for i, tracked in self._tracked.items() if tracked.readiness.seen is None)

    def _track(self, record: InstanceRecord, *, recall: bool) -> None:
        readiness = Readiness(record.desired, self._timings)
        probed = self._state.probed.get(record.id)
        if recall and probed is not None:
            sse = record.desired.transport == "sse"
            target = Target(probed.incarnation, probed.address, probed.port, probed.path, sse)
            readiness.remembered = (target, Probed(probed.report, probed.surface))
        self._tracked[record.id] = _Tracked(record, readiness)
        self._refresh(record.id)

    def _want(self, record: InstanceRecord) -> None:
        self._engine.want(Wanted(record.id, record.owner, record.desired))

    # ----------------------------------------------------------------- requests
    async def put(self, writer: Writer, instance_id: str, desired: DesiredInstance) -> InstanceReport:
        """Accept a desired instance. Raises `Refused`."""
        async with self._state.committing() as commit:
            await self._owners.fence(commit, writer)
            record = self._state.instances.get(instance_id)
            self._check_put(writer, record, desired)
            if record is None or record.deleting or record.desired != desired:
                before = record.desired.uid if record is not None else desired.uid
                if before != desired.uid:
                    # First: a late request of the object before must not take the id back.
                    await self._bury(commit, writer.owner, before)
                record = InstanceRecord(id=instance_id, owner=writer.owner, desired=desired)
                await commit.put_instance(record)
                self._take_up(record)
                await self._keep_approvals(commit, instance_id)
            return self._tracked_or_refuse(writer.owner, instance_id)

    def _check_put(self, writer: Writer, record: InstanceRecord | None, desired: DesiredInstance) -> None:
        if record is not None:
            held = record.desired
            check_identity(
                record.owner, held.namespace, held.name, writer=writer, claimed=(desired.namespace, desired.name)
            )
        ordered_away = record is not None and record.deleting and record.desired.uid == desired.uid
        if ordered_away or self._state.is_buried("instance", writer.owner, desired.uid):
            raise Refused(ProblemCode.DELETED, "this object was deleted or replaced by a newer one of its name")
        if record is not None and record.desired.uid == desired.uid and desired.generation < record.desired.generation:
            raise Refused(ProblemCode.STALE_GENERATION, f"the host holds generation {record.desired.generation}")

    def _take_up(self, record: InstanceRecord) -> None:
        tracked = self._tracked.get(record.id)
        if tracked is None:
            self._track(record, recall=False)
        else:
            tracked.record = record
            tracked.readiness.want(record.desired, self._clock())
            self._refresh(record.id)
        # A removal of the object before ends by itself and then hands over.
        if not self.removals.is_running(record.id):
            self._want(record)
        self._wake_prober()

    async def delete(
        self,
        writer: Writer,
        instance_id: str,
        *,
        uid: str,
        namespace: str,
        name: str,
        volume_policy: VolumePolicy | None = None,
    ) -> None:
        """Remove an instance with its grants; returns once nothing of it is left. Raises `Refused`.

        `volume_policy` is the last word about its volumes; without it the one that came with the instance holds. When
        the id has a newer holder than `uid`, only the tombstone is left.
        """
        async with self._state.committing() as commit:
            await self._owners.fence(commit, writer)
            record = self._state.instances.get(instance_id)
            if record is not None:
                held = record.desired
                check_identity(record.owner, held.namespace, held.name, writer=writer, claimed=(namespace, name))
            holds = record is not None and record.desired.uid == uid
            order = removal_of(record, volume_policy) if record is not None and holds else None
            if order is not None and order != record:
                # Before the tombstone: a crash between the two leaves an order that the next start carries out.
                await commit.put_instance(order)
            await self._bury(commit, writer.owner, uid, left_by(order) if order is not None else None)
            if order is not None:
                self._tracked.pop(instance_id, None)
                self._sessions.forget(instance_id)
                # In force before the files go: the order to delete is already durable.
                grants = self._state.grants_of(instance_id)
                gone = tuple(grant.uid for grant in grants)
                revision = self._policy.publish(Change(instances_gone=(instance_id,), grants_gone=gone))
                self._revocations.ended(uid, revision)
                for grant in grants:
                    await commit.drop_grant(grant.uid)
                self.removals.begin(instance_id, spent_by(order))
        if holds:
            await self.removals.wait(instance_id)
        try:
            await self._revocations.wait(uid)
        except AckPending as pending:
            raise Refused(ProblemCode.ACK_PENDING, str(pending)) from None

    async def _bury(self, commit: Commit, owner: str, uid: str, volumes: LeftVolumes | None = None) -> None:
        stone = self._state.tombstones.get(("instance", owner, uid))
        told = stone is not None and (volumes is None or stone.volumes == volumes)
        if not told or not self._state.is_buried("instance", owner, uid):
            await commit.bury("instance", owner, uid, volumes)

    async def _removed(self, instance_id: str) -> None:
        async with self._state.committing() as commit:
            record = self._state.instances.get(instance_id)
            if record is not None and record.deleting:
                await self._bury(commit, record.owner, record.desired.uid, left_by(record))
                await commit.drop_instance(instance_id)
                deleted = DeletedInstance(id=instance_id, uid=record.desired.uid)
                self._events.publish(record.owner, "deleted", deleted)
                record = None
            self.removals.forget(instance_id)
            if record is not None:
                self._want(record)

    def get(self, reader: Reader, instance_id: str) -> InstanceReport:
        """One report. Raises `Refused` (NotClaimed, OwnerMismatch, NotFound)."""
        self._owners.admit(reader)
        return self._tracked_or_refuse(reader.owner, instance_id)

    def list(self, reader: Reader) -> InstanceList:
        """All reports of an owner, complete as of the cursor. Raises `Refused` (NotClaimed)."""
        self._owners.admit(reader)
        reports = (t.report for t in self._tracked.values() if t.record.owner == reader.owner)
        return InstanceList(
            boot_id=self._events.boot_id,
            cursor=self._events.cursor,
            complete=True,
            items=tuple(report for report in reports if report is not None),
        )

    def logs(
        self, reader: Reader, instance_id: str, *, tail: int, since: float | None, follow: bool
    ) -> AsyncIterator[bytes]:
        """Container output. Raises `Refused`."""
        self.get(reader, instance_id)
        if self._tracked[instance_id].record.desired.sessions is not None:
            raise Refused(ProblemCode.NOT_FOUND, "a stdio server has no logs: what its sessions write is not kept")
        return self._engine.logs(instance_id, tail=tail, since=since, follow=follow)

    def _tracked_or_refuse(self, owner: str, instance_id: str) -> InstanceReport:
        record = self._state.instances.get(instance_id)
        if record is not None and record.owner != owner:
            raise Refused(ProblemCode.OWNER_MISMATCH)
        tracked = self._tracked.get(instance_id)
        if tracked is None or tracked.report is None:
            raise Refused(ProblemCode.NOT_FOUND, "no such instance")
        return tracked.report

    # ------------------------------------------------------------- observations
    def on_seen(self, instance_id: str, seen: Seen) -> None:
        """`SeenListener` of the engine."""
        tracked = self._tracked.get(instance_id)
        if tracked is not None:
            tracked.readiness.see(seen, self._clock())
            self._refresh(instance_id)
            self._wake_prober()

    def due(self) -> list[tuple[str, Target]]:
        """Probes to run now; they count as running. Reports whose start deadline passed are brought up to date."""
        now = self._clock()
        targets: list[tuple[str, Target]] = []
        for instance_id, tracked in self._tracked.items():
            target = tracked.readiness.begin(now)
            if target is not None:
                targets.append((instance_id, target))
            if tracked.readiness.probed is None:
                self._refresh(instance_id)
        return targets

    def next_due(self) -> float | None:
        """When `due` has something next, in monotonic seconds."""
        now = self._clock()
        times = (tracked.readiness.next_event(now) for tracked in self._tracked.values())
        return min((time for time in times if time is not None), default=None)

    async def probe_ended(self, instance_id: str, target: Target, result: Probed | Failure | None) -> None:
        """A probe ended; None when no worker could run it."""
        tracked = self._tracked.get(instance_id)
        if tracked is None or not tracked.readiness.finish(target, result, self._clock()):
            return
        self._refresh(instance_id)
        if isinstance(result, Probed):
            await self._remember(instance_id, target, result)

    async def _remember(self, instance_id: str, target: Target, result: Probed) -> None:
        record = ProbedRecord(
            incarnation=target.incarnation,
            address=target.address,
            port=target.port,
            path=target.path,
            report=result.report,
            surface=result.surface,
        )
        async with self._state.committing() as commit:
            if instance_id not in self._tracked:
                return
            if self._state.probed.get(instance_id) != record:
                await commit.put_probed(instance_id, record)
            await self._keep_approvals(commit, instance_id)

    def _approvals(self, tracked: _Tracked) -> Approvals:
        record = self._state.approvals.get(tracked.record.id) or ApprovalsRecord()
        return Approvals(record, self._seen(tracked)[1])

    def _pins(self, tracked: _Tracked) -> tuple[str, ...]:
        """Hashes that are in force: the instance's own, then those that its grants still carry."""
        grants = [record.grant for record in self._state.grants_of(tracked.record.id)]
        exposes = [tracked.record.desired.expose]
        exposes += [expose for grant in grants for expose in (grant.server_expose, grant.expose)]
        return tuple(dict.fromkeys(pin for expose in exposes if (pin := expose.approved_hash) is not None))

    async def _keep_approvals(self, commit: Commit, instance_id: str) -> None:
        """Write down what a pin approves, once the surface that it names was seen."""
        tracked = self._tracked[instance_id]
        approvals = self._approvals(tracked)
        record = approvals.to_keep(self._pins(tracked))
        if record != approvals.record:
            await commit.put_approvals(instance_id, record)

    # ------------------------------------------------------------------ results
    def _refresh_known(self, instance_id: str) -> None:
        if instance_id in self._tracked:
            self._refresh(instance_id)

    def _probe_soon(self, instance_id: str) -> None:
        tracked = self._tracked.get(instance_id)
        if tracked is not None:
            tracked.readiness.probe_soon(self._clock())
            self._wake_prober()

    def _refresh(self, instance_id: str) -> None:
        """Publish the report and the route, each only if it changed."""
        tracked = self._tracked[instance_id]
        self._tell_sessions(tracked)
        self._publish_route(tracked)
        report = self._report(tracked)
        if report != tracked.report:
            observed = report.observed.model_copy(update={"seq": self._events.next_seq()})
            tracked.report = report.model_copy(update={"observed": observed})
            self._events.publish(tracked.record.owner, "instance", tracked.report)

    def _report(self, tracked: _Tracked) -> InstanceReport:
        desired = tracked.record.desired
        observed = tracked.readiness.observe(self._clock())
        observed = observed.model_copy(
            update={
                "seq": tracked.report.observed.seq if tracked.report is not None else 0,
                "sessions": self._sessions.counts(tracked.record.id),
                "approval": self._approvals(tracked).verdict(desired.expose.approved_hash),
            }
        )
        return InstanceReport(
            id=tracked.record.id,
            uid=desired.uid,
            namespace=desired.namespace,
            name=desired.name,
            desired=reports.summary(desired),
            observed=observed,
        )

    def _publish_route(self, tracked: _Tracked) -> None:
        route = self._route(tracked)
        if self._policy.contents.instances.get(route.id) != route:
            self._policy.publish(Change(instances=(route,)))

    def _route(self, tracked: _Tracked) -> InstanceRoute:
        record = tracked.record
        target, probed = self._seen(tracked)
        last = self._policy.contents.instances.get(record.id)
        approvals, pins = self._approvals(tracked), self._pins(tracked)
        if reports.is_bridged(record.desired):
            bridge = self._sessions.bridge(record.id)
            if bridge is not None:
                return reports.bridged(record, bridge, probed, approvals, pins)
        elif target is not None:
            return reports.listening(record, target, probed, approvals, pins)
        return reports.without_target(record, last.incarnation if last else "", self._sessions.socket_path)

    def _tell_sessions(self, tracked: _Tracked) -> None:
        """What sessions depend on: as the engine shows it, once the instance is meant to have any."""
        id_, desired, seen = tracked.record.id, tracked.record.desired, tracked.readiness.seen
        runs = desired.state is InstanceState.RUNNING
        if desired.sessions is not None:
            self._sessions.deploy(id_, desired.sessions, seen.incarnation if runs and seen is not None else None)
        elif reports.is_bridged(desired):
            target = self._seen(tracked)[0] if runs else None
            self._sessions.stand(id_, reports.upstream_of(target), target.incarnation if target is not None else "")
        else:
            self._sessions.forget(id_)

    @staticmethod
    def _seen(tracked: _Tracked) -> tuple[Target | None, Probed | None]:
        """Where the container is reached, and the last conversation with it that worked."""
        readiness = tracked.readiness
        if readiness.seen is None and readiness.remembered is not None:
            # The engine has shown nothing yet: agents that are connected keep what they had.
            return readiness.remembered
        return readiness.target, readiness.probed
