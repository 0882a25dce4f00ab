"""What the session manager keeps in memory: instances, their sessions and their spares."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field

from toolbox_dtma.engine.api import SessionStream
from toolbox_dtma.link.broker import SessionOpened, Upstream
from toolbox_dtma.sessions.spares import BackOff, Use
from toolbox_dtma.wire import SessionCounts, Sessions

BITS = 128
PROBE_IDLE_SECONDS = 60.0


class BrokerAway(Exception):
    """There is no session broker now. `lately`: it may only be on its way back."""

    def __init__(self, *, lately: bool) -> None:
        super().__init__("the session broker does not run")
        self.lately = lately


def new_name() -> str:
    """A name that nobody can guess, for a session or a ticket."""
    return secrets.token_hex(BITS // 8)


@dataclass(frozen=True, slots=True)
class Bridge:
    """How the gateway reaches the sessions of an instance."""

    path: str
    incarnation: str
    """Changes with every deployment, every stop and every broker process: session ids of before are refused."""


@dataclass(eq=False, slots=True)
class Spare:
    """A process that nobody has spoken to, started or about to be."""

    name: str
    task: asyncio.Task[SessionStream]
    since: float

    @property
    def ready(self) -> SessionStream | None:
        """The process, once it was started."""
        failed = not self.task.done() or self.task.cancelled() or self.task.exception() is not None
        return None if failed else self.task.result()

    def discard(self) -> None:
        """Close its stream, now or once there is one."""
        self.task.cancel()
        self.task.add_done_callback(_closed)


def _closed(task: asyncio.Task[SessionStream]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().stream.close()


@dataclass(eq=False, slots=True)
class Session:
    """One session of a connection, or of a probe, from the moment it was asked for."""

    name: str
    instance: str
    connection: str
    """Empty for a probe."""
    request: int
    """What the broker asked with."""
    opened: bool = False
    """Whether the broker has it."""
    opening: asyncio.Task[None] | None = None

    def answer(self, instance: Instance, incarnation: str) -> SessionOpened:
        """What the broker is told once it is open."""
        return SessionOpened(
            request=self.request,
            session=self.name,
            idle_seconds=instance.terms.idle_seconds if self.connection else PROBE_IDLE_SECONDS,
            incarnation=incarnation,
            upstream=instance.upstream,
        )


@dataclass(slots=True)
class Instance:
    """One stdio server, or one that stands."""

    terms: Sessions
    deployed: str | None
    """Names what sessions are opened with; None while none can be."""
    stands: bool = False
    """Whether one container serves all sessions, and not one each."""
    upstream: Upstream | None = None
    """Where that one is."""
    incarnation: str = ""
    spare: Spare | None = None
    back_off: BackOff = field(default_factory=BackOff)
    last_used: float | None = None
    open: int = 0
    """Sessions of connections, those that are being opened included."""
    awaited: int = 0
    """Those of them whose process is still being made."""
    spare_after: float = 0.0
    """A while after the last process that somebody waited for."""
    told: SessionCounts | None = None
    told_at: float = 0.0

    def serves(self, route: str) -> bool:
        """Whether a session can be begun by a route; an empty one is not known.

        By the route of before it would end as soon as its worker learns of the present one, unseen by us.
        """
        return self.deployed is not None and route in ("", self.incarnation)

    @property
    def may_have_spare(self) -> float:
        """From when on a spare may be begun."""
        return max(self.spare_after, self.back_off.not_before)

    @property
    def use(self) -> Use:
        """How it is used."""
        return Use(
            deployed=self.deployed is not None,
            open_sessions=self.open,
            max_sessions=self.terms.max_sessions,
            last_used=self.last_used,
            idle_seconds=self.terms.idle_seconds,
        )

    @property
    def counts(self) -> SessionCounts:
        """As they are now."""
        return SessionCounts(open=self.open, max=self.terms.max_sessions)
