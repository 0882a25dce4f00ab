"""A session manager between a scripted broker and an engine of sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from support.dtma.sessions import Brokers, FakeSessions, ScriptedBroker, running
from toolbox_dtma.link.broker import CloseSession, OpenSession
from toolbox_dtma.link.messages import GrantPolicy
from toolbox_dtma.sessions.link import ControlLink
from toolbox_dtma.sessions.manager import SessionManager
from toolbox_dtma.settings import Timings
from toolbox_dtma.wire import Credential, Expose, Sessions


def grant(uid: str, instance: str = "i-1", **changes: Any) -> GrantPolicy:
    """A connection that may use an instance."""
    fields: dict[str, Any] = {
        "uid": uid, "instance": instance, "credentials": (Credential(value="a" * 64),),
        "server_expose": Expose(), "expose": Expose(),
    }  # fmt: skip
    return GrantPolicy(**(fields | changes))


def grants() -> dict[str, GrantPolicy]:
    """Connections `c-1` to `c-9` that may use `i-1`."""
    return {f"c-{n}": grant(f"c-{n}") for n in range(1, 10)}


@dataclass
class Managed:
    """The manager, and what it is told and tells."""

    timings: Timings
    engine: FakeSessions = field(default_factory=FakeSessions)
    grants: dict[str, GrantPolicy] = field(default_factory=grants)
    changed: list[str] = field(default_factory=list[str])
    needed: bool = False
    """Whether it asked for a broker."""

    def __post_init__(self) -> None:
        self.manager = SessionManager(
            engine=self.engine,
            socket_path="/run/broker.sock",
            grants=lambda: self.grants,
            need_broker=self._need,
            timings=self.timings,
            now=lambda: datetime.now(UTC),
            clock=asyncio.get_running_loop().time,
        )
        self.manager.on_change = self.changed.append

    def _need(self) -> None:
        self.needed = True

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """The manager at work."""
        async with running(asyncio.create_task(self.manager.run())):
            yield

    @contextlib.asynccontextmanager
    async def broker(self) -> AsyncGenerator[ScriptedBroker]:
        """A broker that is up; its end at the end."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, socket.create_server(("127.0.0.1", 0)) as listener:
            broker = await Brokers(ready=False)(listener, theirs)
        link = ControlLink(ours)

        async def listen() -> None:
            while (message := await link.receive()) is not None:
                assert isinstance(message, OpenSession | CloseSession)
                self.manager.broker_said(message)

        self.manager.broker_up(link)
        try:
            async with running(asyncio.create_task(listen())):
                yield broker
        finally:
            self.manager.broker_down()
            link.close()
            broker.kill()


TIMINGS = Timings(
    session_last_words=0.3,
    sessions_told=0.1,
    spare_retry_first=0.05,
    spare_after=0.05,
    session_open=20,
)


@dataclass
class Bench(Managed):
    """With one deployed instance, `i-1`."""

    timings: Timings = TIMINGS
    terms: Sessions = field(default_factory=lambda: Sessions(max_sessions=3, idle_seconds=60.0))

    def deploy(self, incarnation: str | None = "one", **terms: Any) -> None:
        """Have the engine know it in this incarnation, or not at all, with terms that differ in these."""
        if incarnation is None:
            self.engine.deployed.pop("i-1", None)
        else:
            self.engine.deployed["i-1"] = incarnation
        self.terms = self.terms.model_copy(update=terms)
        self.manager.deploy("i-1", self.terms, incarnation)
