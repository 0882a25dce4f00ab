"""A machine in memory that could be a toolbox host: what it holds, and what becomes of it."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from toolbox_dtma.wire import (
    CallRecord,
    ContainerReport,
    DeletedInstance,
    DesiredInstance,
    DesiredSummary,
    GatewayFacts,
    Grant,
    GrantProgrammed,
    GrantReport,
    HostConfig,
    InstancePhase,
    InstanceReason,
    InstanceReport,
    InstanceState,
    ObservedInstance,
    ProbeReport,
    ProblemCode,
    ServerInfo,
    SessionCounts,
    ToolApproval,
    ToolSummary,
    canonical_hash,
)
from toolbox_operator.hosts.api import (
    HostEvent,
    HostProblem,
    HostUnreachable,
)

Outcome = tuple[InstancePhase, InstanceReason, str]
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
