"""`Hosts`: one connection, one watch and one snapshot per Toolbox, and calls that cannot hurt each other.

Contact with a host is made, lost and found again here; nothing is decided: a change only requeues the keys it
touches. While contact is missing, calls fail at once instead of waiting for a deadline (the circuit is open); the
connecting task is the one that tries (half-open). Each host has its own slots, so that a slow one holds up
nothing but itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from toolbox_operator.api.meta import Key
from toolbox_operator.domain.host import HostFailure, HostState, HostView
from toolbox_operator.hosts.api import Host, HostSettings, HostUnreachable, WatchableHost
from toolbox_operator.hosts.calls import CallPull, CallSink
from toolbox_operator.hosts.client import HttpHost
from toolbox_operator.hosts.contact import Contact
from toolbox_operator.hosts.guard import GuardedHost
from toolbox_operator.runtime import Clock, Leadership, Requeue, Timings

Connect = Callable[[HostSettings], WatchableHost]


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A Toolbox whose host cannot be contacted yet."""

    since: float
    lease: float
    failure: HostFailure

    def view(self, now: float) -> HostView:
        left = self.since + self.lease - now
        if left <= 0:
            return HostView(HostState.LOST, failure=self.failure)
        return HostView(HostState.UNREACHABLE, failure=self.failure, lost_in=left)


class Hosts:
    """The hosts of all Toolboxes, by key of the Toolbox. To be closed with `aclose`."""

    def __init__(
        self,
        *,
        leadership: Leadership,
        queue: Requeue,
        clock: Clock,
        timings: Timings,
        connect: Connect | None = None,
        rng: random.Random | None = None,
        calls: CallSink | None = None,
    ):
        """`calls`: where the hosts' call records go; None: they stay on the hosts."""
        self._leadership = leadership
        self._queue = queue
        self._clock = clock
        self._timings = timings
        self._connect: Connect = connect or self._over_https
        self._rng = rng or random.Random()
        self._calls = calls
        self._contacts: dict[Key, Contact] = {}
        self._pulls: dict[Key, CallPull] = {}
        self._waiting: dict[Key, _Waiting] = {}

    async def ensure(self, key: Key, uid: str, settings: HostSettings, *, lease: float) -> HostView:
        """Keep contact with a Toolbox's host from now on, with these settings; `lease` in seconds.

        Raises ValueError when the CA is not usable.
        """
        contact = self._contacts.get(key)
        if contact is not None and (contact.uid != uid or contact.settings.endpoint != settings.endpoint):
            # Another incarnation or another machine: nothing known of the old one may be taken for the new one.
            await self.drop(key)
            contact = None
        if contact is None:
            contact = Contact(
                key=key,
                uid=uid,
                settings=settings,
                lease=lease,
                host=self._connect(settings),
                leadership=self._leadership,
                queue=self._queue,
                clock=self._clock,
                timings=self._timings,
                rng=self._rng,
            )
            self._contacts[key] = contact
            self._waiting.pop(key, None)
            contact.start()
            if self._calls is not None:
                self._pulls[key] = pull = CallPull(
                    contact,
                    self._calls,
                    leadership=self._leadership,
                    clock=self._clock,
                    timings=self._timings,
                    rng=self._rng,
                )
                pull.start()
        elif contact.settings != settings:
            await contact.replace(settings, self._connect(settings))
        contact.lease = lease
        return contact.view()

    def cannot(self, key: Key, failure: HostFailure, *, lease: float) -> HostView:
        """Contact cannot even be tried, for want of a token or a CA: the lease runs nevertheless.

        A contact that exists already goes on with what it has.
        """
        if contact := self._contacts.get(key):
            return contact.view()
        since = self._waiting[key].since if key in self._waiting else self._clock.monotonic()
        self._waiting[key] = _Waiting(since, lease, failure)
        return self._waiting[key].view(self._clock.monotonic())

    def admit(self, key: Key, host_id: str) -> None:
        """The Toolbox accepts this host as its own: it may be configured, listed and written to."""
        if contact := self._contacts.get(key):
            contact.admit(host_id)

    def refuse(self, key: Key, changed: HostFailure | None = None) -> None:
        """The Toolbox must not use this host: nothing is told to it until `admit`.

        `changed`: it is another one than before, of which nothing more is heard.
        """
        if contact := self._contacts.get(key):
            contact.refuse(changed)

    def view(self, key: Key) -> HostView | None:
        """What is known of a Toolbox's host; None when its Toolbox was not reconciled yet."""
        if contact := self._contacts.get(key):
            return contact.view()
        waiting = self._waiting.get(key)
        return None if waiting is None else waiting.view(self._clock.monotonic())

    def all(self) -> dict[Key, HostView]:
        """What is known of every host."""
        return {key: contact.view() for key, contact in self._contacts.items()}

    def pulls(self) -> Mapping[Key, CallPull]:
        """The pulling of call records, by Toolbox."""
        return self._pulls

    def host(self, key: Key) -> Host:
        """The host to call. Raises `HostUnreachable` when there is no contact."""
        contact = self._contacts.get(key)
        if contact is None:
            raise HostUnreachable("no contact with the host yet")
        return GuardedHost(contact)

    async def drop(self, key: Key) -> None:
        """Stop keeping contact. Nothing changes on the host."""
        self._waiting.pop(key, None)
        if (pull := self._pulls.pop(key, None)) is not None:
            await pull.aclose()
        contact = self._contacts.pop(key, None)
        if contact is not None:
            await contact.aclose()

    async def aclose(self) -> None:
        """Stop keeping contact with every host."""
        for key in list(self._contacts):
            await self.drop(key)

    def _over_https(self, settings: HostSettings) -> WatchableHost:
        return HttpHost(settings, self._leadership, self._timings)
