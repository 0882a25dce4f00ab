"""A toolbox host in memory: the rules of the management API without a network, an engine or a gateway."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from toolbox_dtma.wire import (
    CallBatch,
    CallRecord,
    Capacity,
    ContainerReport,
    DeletedInstance,
    DesiredInstance,
    DesiredSummary,
    EngineFacts,
    GatewayFacts,
    Grant,
    GrantProgrammed,
    GrantReport,
    HostConfig,
    HostFacts,
    InstanceList,
    InstancePhase,
    InstanceReason,
    InstanceReport,
    InstanceState,
    ObservedInstance,
    OwnerClaimed,
    ProbeReport,
    ProblemCode,
    ServerInfo,
    SessionCounts,
    ToolApproval,
    ToolSummary,
    Usage,
    VolumePolicy,
    canonical_hash,
)
from toolbox_operator.hosts.api import (
    HostEvent,
    HostProblem,
    HostSettings,
    HostUnauthorized,
    HostUnreachable,
    PulledCalls,
)
from toolbox_operator.runtime import Leadership

Outcome = tuple[InstancePhase, InstanceReason, str]
BEFORE_STDIO = (
    "body.transport: Input should be 'streamable-http'; body.port: Field required; body.path: Field required;"
    " body.sessions: Extra inputs are not permitted"
)
"""What a host says to a stdio server that is older than they are."""
BEFORE_SSE = "body.transport: Input should be 'streamable-http' or 'stdio'"
"""What a host says to a server of the SSE transport that is older than they are."""
TOOLS = ("get_time", "get_zone", "set_zone")


def surface_hash(tools: Mapping[str, str]) -> str:
    """The hash of a surface, as if a gateway had made it."""
    return f"sha256:{hashlib.sha256(repr(sorted(tools.items())).encode()).hexdigest()}"


@dataclass
class Machine:
    """One host, shared by every driver that connects to it."""

    host_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    reachable: bool = True
    acks: bool = True
    """Whether gateway workers acknowledge at once."""
    engine: bool = True
    gateway: bool = True
    time: datetime | None = None
    token: str | None = None
    """What it has to be claimed with; None: anything."""
    boot_id: int = 1
    seq: int = 0
    epochs: dict[str, int] = field(default_factory=dict[str, int])
    desired: dict[str, DesiredInstance] = field(default_factory=dict[str, DesiredInstance])
    reports: dict[str, InstanceReport] = field(default_factory=dict[str, InstanceReport])
    grants: dict[str, Grant] = field(default_factory=dict[str, Grant])
    acked: dict[str, bool] = field(default_factory=dict[str, bool])
    buried: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    config: HostConfig | None = None
    calls: list[str] = field(default_factory=list[str])
    outcome: Outcome | None = None
    """What becomes of instances; None: they do what their spec says."""
    too_old_for: frozenset[str] = frozenset()
    """Members of a grant's JSON that this host does not know."""
    too_old_for_instances_with: frozenset[str] = frozenset()
    """The same of an instance's."""
    volumes: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    """Instance ids, and names of volumes they have, or left."""
    restarts: int = 0
    tools: dict[str, str] = field(default_factory=lambda: dict.fromkeys(TOOLS, "1"))
    """What servers list: names, and what stands for their definitions."""
    approved: dict[str, dict[str, str]] = field(default_factory=dict[str, "dict[str, str]"])
    """Surfaces that were pinned when they were seen, by their hashes."""
    spool: list[CallRecord] = field(default_factory=list[CallRecord])
    """Call records that nobody acknowledged yet."""
    taken: int = 0
    """How many were acknowledged."""
    dropped: int = 0
    page: int = 500
    knows_stdio: bool = True
    knows_sse: bool = True
    open_sessions: int = 0
    """Of every server that speaks stdio."""
    old: bool = False
    """It knows of no call records."""
    before_call: Callable[[str], None] = lambda _: None
    after_call: Callable[[str], None] = lambda _: None
    _watchers: set[asyncio.Queue[HostEvent | None]] = field(default_factory=set[asyncio.Queue[HostEvent | None]])

    def connect(self, leadership: Leadership) -> Callable[[HostSettings], FakeHost]:
        """What `Hosts` opens drivers with."""
        return lambda settings: FakeHost(self, leadership, settings)

    def cut(self) -> None:
        """Nobody reaches the host, and watches end."""
        self.reachable = False
        self.end_watches()

    def end_watches(self) -> None:
        """The streams of events end; the host stays reachable."""
        for watcher in self._watchers:
            watcher.put_nowait(None)

    def heal(self) -> None:
        """The host can be reached again."""
        self.reachable = True

    def beat(self) -> None:
        """A heartbeat to every watch."""
        for watcher in self._watchers:
            watcher.put_nowait(HostEvent())

    def set_outcome(self, outcome: Outcome | None) -> None:
        """Have every instance change to this."""
        self.outcome = outcome
        for instance_id in self.reports:
            self.observe(instance_id)

    def observe(self, instance_id: str) -> None:
        """Report on an instance anew."""
        desired = self.desired[instance_id]
        self.seq += 1
        report = self._report(instance_id, desired)
        self.reports[instance_id] = report
        self._tell(report)

    def acknowledge(self) -> None:
        """Every worker acknowledges everything."""
        self.acks = True
        for uid in [uid for uid, acked in self.acked.items() if not acked]:
            self.acked[uid] = True
            report = self.grant_report(uid)
            self._tell(
                GrantProgrammed(
                    uid=uid, generation=report.generation, content_hash=report.content_hash, programmed=True
                )
            )

    def grant_report(self, uid: str) -> GrantReport:
        """A grant as it is reported."""
        grant = self.grants[uid]
        return GrantReport(
            uid=uid,
            namespace=grant.namespace,
            name=grant.name,
            instance=grant.instance,
            generation=grant.generation,
            content_hash=canonical_hash(grant),
            programmed=self.acked[uid],
        )

    def refuse_unknown(self, body: Grant | DesiredInstance) -> None:
        """As a host does that is too old for what is in a request."""
        foreign = self.too_old_for if isinstance(body, Grant) else self.too_old_for_instances_with
        if unknown := sorted(foreign & body.model_dump(by_alias=True).keys()):
            detail = "; ".join(f"body.{name}: Extra inputs are not permitted" for name in unknown)
            raise HostProblem(ProblemCode.INVALID, detail)

    def drop(self, instance_id: str) -> None:
        """Forget an instance and its grants."""
        desired = self.desired.pop(instance_id)
        self.reports.pop(instance_id)
        for uid in [uid for uid, grant in self.grants.items() if grant.instance == instance_id]:
            del self.grants[uid]
        self.seq += 1
        self._tell(DeletedInstance(id=instance_id, uid=desired.uid))

    def gateway_facts(self) -> GatewayFacts:
        """What the host says of its gateway."""
        workers = 2 if self.gateway else 0
        return GatewayFacts(workers=workers, workers_current=workers, revision=1, available=self.gateway)

    def gateway_is(self, *, available: bool) -> None:
        """The gateway goes down, or comes back."""
        self.gateway = available
        self._tell(self.gateway_facts())

    def _tell(self, data: InstanceReport | DeletedInstance | GrantProgrammed | GatewayFacts) -> None:
        for watcher in self._watchers:
            watcher.put_nowait(HostEvent(data=data, cursor=f"{self.boot_id}:{self.seq}"))

    def _report(self, instance_id: str, desired: DesiredInstance) -> InstanceReport:
        phase, reason, message = self.outcome or (
            (InstancePhase.STOPPED, InstanceReason.STOPPED, "")
            if desired.state is InstanceState.STOPPED
            else (InstancePhase.READY, InstanceReason.READY, "")
        )
        probe = approval = None
        if phase is InstancePhase.READY or (phase, reason) == (InstancePhase.PENDING, InstanceReason.STOPPED):
            # The second is about to stop: its probe is the last one there was.
            approval = self._approval(desired.expose.approved_hash)
            probe = ProbeReport(
                ok=True,
                protocol_version="2025-11-25",
                server_info=ServerInfo(name=desired.name, version="1"),
                tools=tuple(ToolSummary(name=name, hash=f"sha256:{words}") for name, words in self.tools.items()),
                tools_total=len(self.tools),
                tools_hash=surface_hash(self.tools),
            )
        states = {InstancePhase.STOPPED: "exited", InstancePhase.ERROR: "exited", InstancePhase.PENDING: "created"}
        return InstanceReport(
            id=instance_id,
            uid=desired.uid,
            namespace=desired.namespace,
            name=desired.name,
            desired=DesiredSummary(
                generation=desired.generation,
                inputs_hash=desired.inputs_hash,
                image=desired.image,
                port=desired.port,
                path=desired.path,
                state=desired.state,
            ),
            observed=ObservedInstance(
                generation=desired.generation,
                inputs_hash=desired.inputs_hash,
                seq=self.seq,
                phase=phase,
                reason=reason,
                message=message,
                container=None
                if desired.sessions is not None
                else ContainerReport(
                    name=f"mtb-{desired.name}",
                    id="c" * 64,
                    image=desired.image,
                    state=states.get(phase, "running"),
                    restarts=self.restarts,
                ),
                sessions=None
                if desired.sessions is None
                else SessionCounts(open=self.open_sessions, max=desired.sessions.max_sessions),
                probe=probe,
                approval=approval,
            ),
        )

    def show(self, **tools: str) -> None:
        """Have every server list these tools from now on."""
        self.tools = tools
        for instance_id in self.reports:
            self.observe(instance_id)

    def _approval(self, pin: str | None) -> ToolApproval | None:
        if pin is None:
            return None
        if pin == surface_hash(self.tools):
            self.approved[pin] = dict(self.tools)
        known = self.approved.get(pin, {})
        hidden = tuple(name for name, words in self.tools.items() if known.get(name) != words)
        return ToolApproval(hash=pin, known=pin in self.approved, hidden=hidden, hidden_total=len(hidden))

    def have_sessions(self, number: int) -> None:
        """So many sessions are open now, of every server that speaks stdio."""
        self.open_sessions = number
        for instance_id in self.reports:
            self.observe(instance_id)

    async def watch(self) -> AsyncGenerator[HostEvent]:
        """Events from now on, until the host is cut off."""
        watcher: asyncio.Queue[HostEvent | None] = asyncio.Queue()
        self._watchers.add(watcher)
        try:
            while (event := await watcher.get()) is not None:
                yield event
        finally:
            self._watchers.discard(watcher)
        raise HostUnreachable("connection reset")


class FakeHost:
    """A `WatchableHost` of one machine."""

    def __init__(self, machine: Machine, leadership: Leadership, settings: HostSettings):
        self.machine = machine
        self.settings = settings
        self._leadership = leadership

    async def claim(self, epoch: int) -> OwnerClaimed:
        self._enter("claim")
        if self.machine.token not in (None, self.settings.token):
            raise HostUnauthorized("not the token")
        owner = self._leadership.owner
        known = self.machine.epochs.get(owner, -1)
        if epoch < known:
            raise HostProblem(ProblemCode.FENCED_EPOCH, "a higher epoch is known", current=known)
        self.machine.epochs[owner] = epoch
        return OwnerClaimed(epoch=epoch, host_id=self.machine.host_id)

    async def facts(self) -> HostFacts:
        self._enter("facts")
        machine = self.machine
        return HostFacts(
            host_id=machine.host_id,
            boot_id=machine.boot_id,
            version="0.1.0",
            protocol=2,
            engine=EngineFacts(available=machine.engine, version="20.10.24"),
            gateway=machine.gateway_facts(),
            os="linux",
            arch="x86_64",
            capacity=Capacity(cpus=2, memory_bytes=1 << 33),
            usage=Usage(instances=0, running=0, grants=0),
            time=machine.time,
        )

    async def configure(self, config: HostConfig) -> None:
        self._mutate("configure")
        self.machine.config = config

    async def list_instances(self) -> InstanceList:
        self._enter("list_instances")
        machine = self.machine
        return InstanceList(
            boot_id=machine.boot_id,
            cursor=f"{machine.boot_id}:{machine.seq}",
            complete=True,
            items=tuple(machine.reports.values()),
        )

    async def put_instance(self, instance_id: str, desired: DesiredInstance) -> InstanceReport:
        self._mutate(f"put_instance {desired.name}")
        machine = self.machine
        if desired.transport == "stdio" and not machine.knows_stdio:
            raise HostProblem(ProblemCode.INVALID, BEFORE_STDIO)
        if desired.transport == "sse" and not machine.knows_sse:
            raise HostProblem(ProblemCode.INVALID, BEFORE_SSE)
        held = machine.desired.get(instance_id)
        if held is not None and (held.namespace, held.name) != (desired.namespace, desired.name):
            raise HostProblem(ProblemCode.IDENTITY_MISMATCH, "this id belongs to another object")
        if ("instance", desired.uid) in machine.buried:
            raise HostProblem(ProblemCode.DELETED, "deleted")
        if held is not None and held.uid == desired.uid and desired.generation < held.generation:
            raise HostProblem(ProblemCode.STALE_GENERATION, "newer generation held")
        machine.refuse_unknown(desired)
        if held != desired:
            machine.desired[instance_id] = desired
            machine.volumes |= {(instance_id, volume.name) for volume in desired.volumes}
            machine.observe(instance_id)
        self._leave(f"put_instance {desired.name}")
        return machine.reports[instance_id]

    async def get_instance(self, instance_id: str) -> InstanceReport | None:
        self._enter("get_instance")
        return self.machine.reports.get(instance_id)

    async def delete_instance(
        self, instance_id: str, *, uid: str, namespace: str, name: str, volume_policy: VolumePolicy | None = None
    ) -> None:
        self._mutate(f"delete_instance {name}")
        machine = self.machine
        held = machine.desired.get(instance_id)
        if held is not None and (held.namespace, held.name) != (namespace, name):
            raise HostProblem(ProblemCode.IDENTITY_MISMATCH, "this id belongs to another object")
        machine.buried.add(("instance", uid))
        if held is not None and held.uid == uid:
            machine.drop(instance_id)
            if (volume_policy or held.volume_policy) is VolumePolicy.DELETE:
                machine.volumes = {volume for volume in machine.volumes if volume[0] != instance_id}
        self._leave(f"delete_instance {name}")

    async def put_grant(self, uid: str, grant: Grant) -> GrantReport:
        self._mutate(f"put_grant {grant.name}")
        machine = self.machine
        if ("grant", uid) in machine.buried:
            raise HostProblem(ProblemCode.DELETED, "deleted")
        machine.refuse_unknown(grant)
        if grant.instance not in machine.desired:
            raise HostProblem(ProblemCode.INSTANCE_UNKNOWN, "no such instance")
        held = machine.grants.get(uid)
        if held is not None and grant.generation < held.generation:
            raise HostProblem(ProblemCode.STALE_GENERATION, "newer generation held")
        if held != grant:
            machine.grants[uid] = grant
            machine.acked[uid] = machine.acks
        self._leave(f"put_grant {grant.name}")
        if not machine.acked[uid]:
            raise HostProblem(ProblemCode.ACK_PENDING, "1 of 2 workers")
        return machine.grant_report(uid)

    async def list_grants(self) -> tuple[GrantReport, ...]:
        self._enter("list_grants")
        return tuple(self.machine.grant_report(uid) for uid in self.machine.grants)

    async def delete_grant(self, uid: str, *, namespace: str, name: str) -> None:
        self._mutate(f"delete_grant {name}")
        self.machine.buried.add(("grant", uid))
        self.machine.grants.pop(uid, None)
        self._leave(f"delete_grant {name}")
        if not self.machine.acks:
            raise HostProblem(ProblemCode.ACK_PENDING, "1 of 2 workers")

    def watch(self, cursor: str) -> AsyncGenerator[HostEvent]:
        self._enter("watch")
        return self.machine.watch()

    async def calls(self, after: str | None) -> PulledCalls:
        self._enter("calls" if after is None else f"calls after {after}")
        machine = self.machine
        machine.before_call("calls")
        if machine.old:
            raise HostProblem(ProblemCode.NOT_FOUND, "no such path")
        if after is not None:
            acknowledged = int(after) - machine.taken
            del machine.spool[:acknowledged]
            machine.taken += max(0, acknowledged)
        items = tuple(machine.spool[: machine.page])
        batch = CallBatch(cursor=str(machine.taken + len(items)), items=items, dropped=machine.dropped)
        self._leave("calls")
        return PulledCalls(batch)

    async def aclose(self) -> None:
        pass

    def _enter(self, call: str) -> None:
        if not self.machine.reachable:
            raise HostUnreachable("connection refused")
        self.machine.calls.append(call)

    def _mutate(self, call: str) -> None:
        self._leadership.check()
        self._enter(call)
        self.machine.before_call(call)
        known = self.machine.epochs.get(self._leadership.owner)
        if known is None:
            raise HostProblem(ProblemCode.NOT_CLAIMED, "claim first")
        if self._leadership.epoch < known:
            raise HostProblem(ProblemCode.FENCED_EPOCH, "a higher epoch is known", current=known)

    def _leave(self, call: str) -> None:
        self.machine.after_call(call)
