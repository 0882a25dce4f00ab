"""A toolbox host in memory: the rules of the management API without a network, an engine or a gateway."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from support.reconcilers.memory_machine import Machine
from toolbox_dtma.wire import (
    CallBatch,
    Capacity,
    DesiredInstance,
    EngineFacts,
    Grant,
    GrantReport,
    HostConfig,
    HostFacts,
    InstanceList,
    InstanceReport,
    OwnerClaimed,
    ProblemCode,
    Usage,
    VolumePolicy,
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

BEFORE_STDIO = (
    "body.transport: Input should be 'streamable-http'; body.port: Field required; body.path: Field required;"
    " body.sessions: Extra inputs are not permitted"
)
"""What a host says to a stdio server that is older than they are."""
BEFORE_SSE = "body.transport: Input should be 'streamable-http' or 'stdio'"
"""What a host says to a server of the SSE transport that is older than they are."""


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
