"""`GuardedHost`: a host behind its slots and its circuit; answers go into the snapshot at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from toolbox_dtma.wire import (
    DesiredInstance,
    Grant,
    GrantReport,
    HostConfig,
    HostFacts,
    InstanceReport,
    OwnerClaimed,
    VolumePolicy,
)
from toolbox_operator.hosts.api import HostError, HostUnreachable, WatchableHost
from toolbox_operator.hosts.contact import Contact


class GuardedHost:
    """What reconcilers call. Raises `HostUnreachable` without a call while the circuit is open."""

    def __init__(self, contact: Contact):
        self._contact = contact

    async def claim(self, epoch: int) -> OwnerClaimed:
        async with self._slot() as host:
            return await host.claim(epoch)

    async def facts(self) -> HostFacts:
        async with self._slot() as host:
            return await host.facts()

    async def configure(self, config: HostConfig) -> None:
        async with self._slot() as host:
            await host.configure(config)

    async def put_instance(self, instance_id: str, desired: DesiredInstance) -> InstanceReport:
        async with self._slot() as host:
            report = await host.put_instance(instance_id, desired)
        self._contact.learn(report)
        return report

    async def get_instance(self, instance_id: str) -> InstanceReport | None:
        async with self._slot() as host:
            return await host.get_instance(instance_id)

    async def delete_instance(
        self, instance_id: str, *, uid: str, namespace: str, name: str, volume_policy: VolumePolicy | None = None
    ) -> None:
        async with self._slot() as host:
            await host.delete_instance(
                instance_id, uid=uid, namespace=namespace, name=name, volume_policy=volume_policy
            )
        self._contact.forget_instance(instance_id)

    async def put_grant(self, uid: str, grant: Grant) -> GrantReport:
        async with self._slot() as host:
            report = await host.put_grant(uid, grant)
        self._contact.learn(report)
        return report

    async def list_grants(self) -> tuple[GrantReport, ...]:
        async with self._slot() as host:
            return await host.list_grants()

    async def delete_grant(self, uid: str, *, namespace: str, name: str) -> None:
        async with self._slot() as host:
            await host.delete_grant(uid, namespace=namespace, name=name)
        self._contact.forget_grant(uid)

    @asynccontextmanager
    async def _slot(self) -> AsyncGenerator[WatchableHost]:
        _ = self._contact.host  # without contact nobody waits for a slot
        async with self._contact.slots:
            # Looked up again: contact may have been lost, or made anew with another client, while this one waited.
            host = self._contact.host
            try:
                yield host
            except HostUnreachable:
                self._contact.unanswered()
                raise
            except HostError:
                self._contact.answered()
                raise
            self._contact.answered()
