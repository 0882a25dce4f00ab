"""The policy a worker obeys: DTMA's snapshot and deltas, indexed for requests. No I/O."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from toolbox_dtma.gateway.sessions import SessionIds
from toolbox_dtma.gateway.upstream.connection import Origin
from toolbox_dtma.gateway.view import View
from toolbox_dtma.link.messages import Change, Delta, GrantPolicy, InstanceRoute, Snapshot
from toolbox_dtma.wire import HostConfig

Clock = Callable[[], float]
"""Seconds: Unix time or a monotonic clock, as the parameter's name says."""


class PolicyOutOfOrder(Exception):
    """DTMA sent something that does not follow from what it sent before."""


class Admitted(NamedTuple):
    """A credential that is valid now, and its grant."""

    grant: GrantPolicy
    digest: str
    ends_at: float | None
    """Unix time at which the credential or the grant ends by itself."""


@dataclass(frozen=True, slots=True)
class Target:
    """An instance as requests need it."""

    route: InstanceRoute
    origin: Origin | None

    @classmethod
    def of(cls, route: InstanceRoute) -> Target:
        """Work out where requests go: `None` while nothing can be reached."""
        if route.state != "running":
            return cls(route, None)
        if route.bridge is not None:
            return cls(route, Origin("", 0, route.incarnation, route.bridge))
        if route.address is None:
            return cls(route, None)
        return cls(route, Origin(route.address, route.port, route.incarnation))


@dataclass(frozen=True, slots=True)
class Applied:
    """What a change means for what is running."""

    revision: int
    touched: frozenset[str]
    """Connections whose running requests must be looked at again."""


class _Tables:
    """One whole policy. A change that raises leaves it as it was."""

    def __init__(self) -> None:
        self.config: HostConfig | None = None
        self.sessions: SessionIds | None = None
        self.grants: dict[str, GrantPolicy] = {}
        self.targets: dict[str, Target] = {}
        self.by_digest: dict[str, tuple[GrantPolicy, ...]] = {}
        self.views: dict[str, View] = {}
        """Worked out when they are first asked for."""

    def change(self, change: Change) -> frozenset[str]:
        """Apply puts, then deletes. Returns the connections concerned. Raises `PolicyOutOfOrder`."""
        try:
            sessions = SessionIds(change.keyring) if change.keyring is not None else self.sessions
        except ValueError as error:
            raise PolicyOutOfOrder(f"unusable key ring: {error}") from error
        targets = [Target.of(route) for route in change.instances]
        self.views.clear()
        self.sessions = sessions
        self.targets.update((target.route.id, target) for target in targets)
        for instance in change.instances_gone:
            self.targets.pop(instance, None)
        for grant in change.grants:
            self._forget(grant.uid)
            self.grants[grant.uid] = grant
            for credential in grant.credentials:
                self.by_digest[credential.value] = (*self.by_digest.get(credential.value, ()), grant)
        for uid in change.grants_gone:
            self._forget(uid)
        self.config = change.config if change.config is not None else self.config
        return frozenset(grant.uid for grant in change.grants) | frozenset(change.grants_gone)

    def _forget(self, uid: str) -> None:
        grant = self.grants.pop(uid, None)
        for credential in grant.credentials if grant is not None else ():
            left = tuple(g for g in self.by_digest.get(credential.value, ()) if g.uid != uid)
            if left:
                self.by_digest[credential.value] = left
            else:
                self.by_digest.pop(credential.value, None)


class PolicyState:
    """The policy in force. Methods never suspend, so a request sees one revision or the next, never a mixture."""

    def __init__(self, *, unix_clock: Clock, monotonic: Clock, grace_seconds: float):
        self._unix = unix_clock
        self._monotonic = monotonic
        self._grace = grace_seconds
        self._tables = _Tables()
        self._parts: dict[int, Snapshot] = {}
        self._loaded = False
        self._lost_at: float | None = None
        self.revision = 0

    @property
    def config(self) -> HostConfig | None:
        """What the operator configured for this host; None before it did."""
        return self._tables.config

    @property
    def sessions(self) -> SessionIds | None:
        """The key ring; None before the first one."""
        return self._tables.sessions

    def connection_lost(self) -> None:
        """The socket is gone: the grace period begins, unless it already has."""
        self._parts.clear()
        if self._loaded and self._lost_at is None:
            self._lost_at = self._monotonic()

    @property
    def serving(self) -> bool:
        """Whether the policy may be used: a snapshot came, and DTMA was there within the grace period."""
        left = self.grace_left
        return self._loaded and (left is None or left > 0)

    @property
    def grace_left(self) -> float | None:
        """Seconds until the last policy must not be used any more; None while DTMA is there."""
        return None if self._lost_at is None else self._lost_at + self._grace - self._monotonic()

    def apply(self, message: Snapshot | Delta) -> Applied | None:
        """Take over a message; None while parts of a snapshot are missing. Raises `PolicyOutOfOrder`."""
        if isinstance(message, Snapshot):
            return self._snapshot(message)
        if not self._loaded or self._lost_at is not None or self._parts:
            raise PolicyOutOfOrder("a delta came before the snapshot was complete")
        if message.revision <= self.revision:
            raise PolicyOutOfOrder(f"revision {message.revision} came after {self.revision}")
        touched = self._tables.change(message.change)
        self.revision = message.revision
        return Applied(self.revision, touched)

    def _snapshot(self, part: Snapshot) -> Applied | None:
        if any(p.revision != part.revision or p.parts != part.parts for p in self._parts.values()):
            raise PolicyOutOfOrder("a snapshot began before the previous one was complete")
        self._parts[part.part] = part
        if len(self._parts) < part.parts:
            return None
        tables = _Tables()
        for _, each in sorted(self._parts.items()):
            tables.change(each.change)
        self._parts.clear()
        before, self._tables = self._tables, tables
        self._loaded, self._lost_at = True, None
        self.revision = part.revision
        return Applied(self.revision, frozenset(before.grants))

    def authenticate(self, token: str) -> tuple[Admitted, ...]:
        """Every grant that this token opens now; empty for an unknown or ended one."""
        # What is looked up is a hash of the secret: timing tells nothing about any stored one.
        digest = hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()
        found = (self._admit(grant, digest) for grant in self._tables.by_digest.get(digest, ()))
        return tuple(admitted for admitted in found if admitted is not None)

    def still_admitted(self, uid: str, digest: str, instance: str) -> Admitted | None:
        """The same credential of the same connection, for the same instance, by the policy in force now."""
        grant = self._tables.grants.get(uid)
        return None if grant is None or grant.instance != instance else self._admit(grant, digest)

    def _admit(self, grant: GrantPolicy, digest: str) -> Admitted | None:
        now = self._unix()
        for credential in grant.credentials:
            if hmac.compare_digest(credential.value, digest):
                ends = [m.timestamp() for m in (credential.not_after, grant.expires_at) if m is not None]
                ends_at = min(ends, default=None)
                return Admitted(grant, digest, ends_at) if ends_at is None or now < ends_at else None
        return None

    def target(self, instance: str) -> Target | None:
        """The instance, None if DTMA does not know it."""
        return self._tables.targets.get(instance)

    def view(self, uid: str) -> View | None:
        """What a connection sees of its instance now; None once it is gone."""
        tables = self._tables
        known = tables.views.get(uid)
        grant = tables.grants.get(uid)
        if known is None and grant is not None:
            target = tables.targets.get(grant.instance)
            exposes = (grant.server_expose, grant.expose)
            route = target.route if target is not None else None
            known = tables.views[uid] = (
                View.of(exposes, route.surface, route.approvals) if route is not None else View.of(exposes, None)
            )
        return known
