"""Leader election on a Lease, and the fence that comes from it (design §4).

A candidate takes the Lease only after it saw it unchanged for the holder's whole leaseDuration on its own
monotonic clock; clocks of different machines are never compared. Every write carries the resourceVersion.
`check` fails once `renew_deadline` has passed since the start of the last renewal that succeeded, which is
before anyone else may take over.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog

from toolbox_operator.api.meta import GROUP, Body, Key
from toolbox_operator.kube.api import LEASES, AlreadyExists, Conflict, KubeError, Missing
from toolbox_operator.kube.client import slim
from toolbox_operator.kube.rest import KubeRest, collection_path, object_path
from toolbox_operator.runtime import Clock, Fenced, Timings

log = structlog.get_logger(__name__)

LEASE_NAME = "magic-toolbox-operator"
LABEL_LEASE = f"{GROUP}/lease"
"""On the operator's own Lease, so that it can be watched without seeing any other."""
REQUEST_DEADLINE = 5.0


class LeadershipLost(Exception):
    """Another process leads, or may: end this one."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """The Lease as a candidate last saw it change, and when on its own clock."""

    version: str
    at: float


class Elector:
    """One candidate. `acquire`, then `hold` for as long as the process leads, then `release`."""

    def __init__(
        self,
        rest: KubeRest,
        *,
        namespace: str,
        identity: str,
        owner: str,
        clock: Clock,
        timings: Timings,
        name: str = LEASE_NAME,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._rest = rest
        self._key = Key(namespace, name)
        self._identity = identity
        self._owner = owner
        self._clock = clock
        self._timings = timings
        self._sleep = sleep
        self._deadline = min(REQUEST_DEADLINE, timings.lease_renew_deadline / 2)
        self._lease: Body | None = None
        self._renewed = 0.0
        self._seen: _Seen | None = None
        self._writing = asyncio.Lock()
        self._contacted = False
        self._taking = False
        """Whether a request for the Lease may have taken effect without an answer."""

    @property
    def key(self) -> Key:
        """Where the Lease is."""
        return self._key

    @property
    def owner(self) -> str:
        return self._owner

    @property
    def leading(self) -> bool:
        """Whether `check` would pass now."""
        return self._lease is not None and self._clock.monotonic() < self._renewed + self._timings.lease_renew_deadline

    @property
    def contacted(self) -> bool:
        """Whether the API server has answered at least once."""
        return self._contacted

    @property
    def epoch(self) -> int:
        if self._lease is None:
            raise Fenced("this process does not lead")
        return int(self._lease["spec"]["leaseTransitions"])

    def check(self) -> None:
        if not self.leading:
            raise Fenced("the lease is not held, or was not renewed in time")

    async def acquire(self) -> None:
        """Returns once this process leads. Retries for ever; errors of the API server are logged."""
        while not await self._try_acquire():
            # Jitter keeps two candidates from colliding for ever.
            await self._sleep(self._timings.lease_retry * random.uniform(0.8, 1.2))
        log.info("leadership acquired", lease=str(self._key), identity=self._identity, epoch=self.epoch)

    async def hold(self) -> None:
        """Renew until the Lease is lost: raises `LeadershipLost`. Cancel it only after every worker ended."""
        while True:
            await self._sleep(self._timings.lease_retry)
            # Checked before, too: after a pause of the process a renewal might still succeed, but work that
            # was refused meanwhile has been dropped.
            if self.leading:
                try:
                    await self._write(0)
                except KubeError as error:
                    log.warning("lease not renewed", lease=str(self._key), error=str(error))
            if not self.leading:
                self._lease = None
                raise LeadershipLost(f"the lease {self._key} was not renewed in time")

    async def raise_epoch(self, above: int) -> None:
        async with self._writing:
            self.check()
            if self.epoch > above:
                return
        try:
            await self._write(above + 1)
        except LeadershipLost as error:
            raise Fenced(str(error)) from error
        log.warning("epoch raised: a host knew a higher one", lease=str(self._key), epoch=self.epoch)

    async def release(self) -> None:
        """Let another candidate take over at once. Does nothing when the Lease is not held any more.

        `acquire` and `hold` may have been cancelled with a request on its way, which takes effect all the same.
        """
        async with self._writing:
            lease, self._lease = (self._lease if self.leading else None), None
            if lease is None and not self._taking:
                return
            try:
                released = await self._let_go(lease)
            except KubeError as error:
                log.warning("lease not released; others wait until it expires", error=str(error))
            else:
                log.info("leadership released" if released else "lease not held any more", lease=str(self._key))

    async def _let_go(self, lease: Body | None) -> bool:
        """`lease` as it was last answered, None if that is not known. Returns whether it was ours still."""
        if lease is not None:
            with contextlib.suppress(Conflict):
                await self._put(self._released(lease))
                return True
        current = await self._get()
        if current is None:
            return False
        mine = self._holds(current) if lease is None else self._is_mine(current, lease)
        if mine:
            await self._put(self._released(current))
        return mine

    async def _try_acquire(self) -> bool:
        started = self._clock.monotonic()
        try:
            current = await self._get()
            if current is None:
                self._taking = True
                self._lease = await self._create()
            elif self._may_take(current):
                transitions = int(_spec_of(current).get("leaseTransitions") or 0) + 1
                now = self._now()
                self._taking = True
                self._lease = await self._put(
                    {**current, "spec": self._spec(transitions, acquired=now, renewed=now)},
                )
            else:
                return False
        except (Conflict, AlreadyExists):
            self._taking = False
            return False
        except KubeError as error:
            log.warning("cannot take part in the election", lease=str(self._key), error=str(error))
            return False
        self._taking = False
        self._renewed = started
        self._contacted = True
        return True

    def _may_take(self, current: Body) -> bool:
        """Free, ours from an earlier life under the same identity, or unchanged for its whole duration."""
        spec = _spec_of(current)
        holder = spec.get("holderIdentity")
        if not holder or holder == self._identity:
            return True
        version, now = current["metadata"]["resourceVersion"], self._clock.monotonic()
        if self._seen is None or self._seen.version != version:
            self._seen = _Seen(version, now)
        duration = float(spec.get("leaseDurationSeconds") or self._timings.lease_duration)
        return now - self._seen.at >= duration

    async def _write(self, at_least: int) -> None:
        """Renew, with leaseTransitions not below `at_least`. Raises `LeadershipLost` when another holds the Lease."""
        async with self._writing:
            lease = self._lease
            if lease is None:
                raise LeadershipLost(f"the lease {self._key} is not held")
            started = self._clock.monotonic()
            try:
                self._lease = await self._put(self._renewal(lease, at_least))
            except Conflict:
                # An answer of ours was lost, or someone annotated the Lease: only its content tells.
                current = await self._get()
                if current is None or not self._is_mine(current, lease):
                    self._lease = None
                    raise LeadershipLost(f"another process took the lease {self._key}") from None
                self._lease = await self._put(self._renewal(current, at_least))
            except Missing:
                self._lease = None
                raise LeadershipLost(f"the lease {self._key} was deleted") from None
            self._renewed = started

    def _holds(self, current: Body) -> bool:
        return _spec_of(current).get("holderIdentity") == self._identity

    def _is_mine(self, current: Body, held: Body) -> bool:
        mine, other = _spec_of(held), _spec_of(current)
        # Not below: a raise whose answer was lost has already counted up.
        same_term = int(other.get("leaseTransitions") or 0) >= int(mine["leaseTransitions"])
        return (
            same_term
            and self._holds(current)
            and other.get("acquireTime") == mine["acquireTime"]
            and current["metadata"]["uid"] == held["metadata"]["uid"]
        )

    def _renewal(self, lease: Body, at_least: int) -> dict[str, Any]:
        spec = lease["spec"]
        transitions = max(int(spec["leaseTransitions"]), at_least)
        return {**lease, "spec": self._spec(transitions, acquired=spec["acquireTime"], renewed=self._now())}

    def _released(self, lease: Body) -> dict[str, Any]:
        spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": self._now()}
        return {**lease, "spec": spec}

    def _spec(self, transitions: int, *, acquired: str, renewed: str) -> dict[str, Any]:
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._timings.lease_duration)),
            "acquireTime": acquired,
            "renewTime": renewed,
            "leaseTransitions": transitions,
        }

    async def _get(self) -> Body | None:
        try:
            body = await self._rest.request("GET", object_path(LEASES, self._key), deadline=self._deadline)
        except Missing:
            return None
        self._contacted = True
        return slim(body, LEASES)

    async def _create(self) -> Body:
        now = self._now()
        body = {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {
                "namespace": self._key.namespace,
                "name": self._key.name,
                "labels": {LABEL_LEASE: self._key.name},
            },
            "spec": self._spec(1, acquired=now, renewed=now),
        }
        path = collection_path(LEASES, self._key.namespace)
        return slim(await self._rest.request("POST", path, deadline=self._deadline, body=body), LEASES)

    async def _put(self, lease: Body) -> Body:
        metadata: dict[str, Any] = dict(lease["metadata"])
        metadata["labels"] = {**metadata.get("labels", {}), LABEL_LEASE: self._key.name}
        body = {**lease, "metadata": metadata}
        path = object_path(LEASES, self._key)
        return slim(await self._rest.request("PUT", path, deadline=self._deadline, body=body), LEASES)

    def _now(self) -> str:
        return micro_time(self._clock.now())


def _spec_of(lease: Body) -> dict[str, Any]:
    """The spec; a Lease that someone made by hand may have none."""
    return lease.get("spec") or {}


def micro_time(moment: datetime) -> str:
    """`metav1.MicroTime`."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
