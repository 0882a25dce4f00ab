"""Counts calls to hosts by outcome, around the driver that makes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Self, TypeVar

from toolbox_dtma.wire import (
    DesiredInstance,
    Grant,
    GrantReport,
    HostConfig,
    HostFacts,
    InstanceList,
    InstanceReport,
    OwnerClaimed,
    VolumePolicy,
)
from toolbox_operator.hosts.api import HostError, HostEvent, HostProblem, HostSettings, PulledCalls, WatchableHost
from toolbox_operator.hosts.client import HttpHost
from toolbox_operator.metrics import Metrics
from toolbox_operator.runtime import Fenced, Leadership, Timings

T = TypeVar("T")


class MeasuredHost:
    """A `WatchableHost` that reports every call of another to the metrics."""

    def __init__(self, host: WatchableHost, metrics: Metrics) -> None:
        self._host = host
        self._metrics = metrics

    @classmethod
    def connect(cls, leadership: Leadership, timings: Timings, metrics: Metrics) -> Callable[[HostSettings], Self]:
        """How the registry of hosts opens one: over HTTPS, measured."""
        return lambda settings: cls(HttpHost(settings, leadership, timings), metrics)

    async def claim(self, epoch: int) -> OwnerClaimed:
        return await self._count("claim", self._host.claim(epoch))

    async def facts(self) -> HostFacts:
        return await self._count("facts", self._host.facts())

    async def configure(self, config: HostConfig) -> None:
        await self._count("configure", self._host.configure(config))

    async def put_instance(self, instance_id: str, desired: DesiredInstance) -> InstanceReport:
        return await self._count("put_instance", self._host.put_instance(instance_id, desired))

    async def get_instance(self, instance_id: str) -> InstanceReport | None:
        return await self._count("get_instance", self._host.get_instance(instance_id))

    async def delete_instance(
        self, instance_id: str, *, uid: str, namespace: str, name: str, volume_policy: VolumePolicy | None = None
    ) -> None:
        call = self._host.delete_instance(
            instance_id, uid=uid, namespace=namespace, name=name, volume_policy=volume_policy
        )
        await self._count("delete_instance", call)

    async def list_instances(self) -> InstanceList:
        return await self._count("list_instances", self._host.list_instances())

    async def put_grant(self, uid: str, grant: Grant) -> GrantReport:
        return await self._count("put_grant", self._host.put_grant(uid, grant))

    async def list_grants(self) -> tuple[GrantReport, ...]:
        return await self._count("list_grants", self._host.list_grants())

    async def delete_grant(self, uid: str, *, namespace: str, name: str) -> None:
        await self._count("delete_grant", self._host.delete_grant(uid, namespace=namespace, name=name))

    def watch(self, cursor: str) -> AsyncGenerator[HostEvent]:
        """Events, uncounted: a stream is one long call."""
        return self._host.watch(cursor)

    async def calls(self, after: str | None) -> PulledCalls:
        return await self._count("calls", self._host.calls(after))

    async def aclose(self) -> None:
        await self._host.aclose()

    async def _count(self, call: str, awaitable: Awaitable[T]) -> T:
        outcome = "error"
        try:
            result = await awaitable
            outcome = "ok"
            return result
        except HostProblem as problem:
            outcome = str(problem.code)
            raise
        except (HostError, Fenced) as error:
            outcome = type(error).__name__
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._metrics.host_call(call, outcome)
