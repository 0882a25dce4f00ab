"""Two operators, one of which leads, each behind proxies of its own before Kubernetes and PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.poll import until
from support.proxies.api_proxy import ApiProxy
from support.proxies.background_proxy import BackgroundProxy, proxy_in_background
from support.proxies.faults import Match, Request
from support.system.arena import Arena
from support.system.replica import Replica
from toolbox_dtma.wire import EPOCH_HEADER

NAMES = ("operator-a", "operator-b")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the two."""

    replica: Replica
    proxy: ApiProxy
    sql: BackgroundProxy
    clock: Path
    """A file with the seconds by which its wall clock is off."""

    def turn_clock(self, seconds: str) -> None:
        """Have its wall clock off by so much; it may read the file at any moment."""
        beside = self.clock.with_suffix(".new")
        beside.write_text(seconds)
        os.replace(beside, self.clock)


@dataclass(frozen=True, slots=True)
class Pair:
    """The two, whoever leads now."""

    arena: Arena
    candidates: tuple[Candidate, Candidate]

    @property
    def epoch(self) -> int:
        """Of the Lease as it is now."""
        return int(self.arena.api.lease()["leaseTransitions"])

    def roles(self) -> tuple[Candidate, Candidate]:
        """Who leads and who waits, once exactly one leads and the other is alive."""

        def look() -> tuple[Candidate, ...]:
            leads = [one for one in self.candidates if one.replica.leads and one.replica.probe("/readyz")[0] == 200]
            waits = [one for one in self.candidates if one not in leads and one.replica.probe("/readyz")[0] == 200]
            return (*leads, *waits) if len(leads) == len(waits) == 1 else ()

        leader, standby = until("one leads, one waits", look, seconds=90)
        return leader, standby

    def take_over(self, stopped: Candidate, standby: Candidate) -> None:
        """Stop the leader, as a long pause of its machine would, and wait until the other has taken over."""
        before = self.epoch
        stopped.replica.pause()
        until("another epoch", lambda: self.epoch, lambda epoch: epoch > before, seconds=60)
        standby.replica.await_leading()

    def wake(self, stopped: Candidate) -> None:
        """Let it go on: it must end, and be started again as the one that waits."""
        before = len(stopped.replica.exits)
        stopped.replica.resume()
        assert stopped.replica.await_exit(before + 1) == 1
        until("waiting", lambda: stopped.replica.probe("/readyz")[0], lambda status: status == 200, seconds=60)

    def clear(self) -> None:
        """No faults."""
        self.arena.host_proxy.clear()
        for one in self.candidates:
            one.proxy.clear()
            one.sql.thaw()
            one.turn_clock("0")
            one.replica.resume()


def of_epoch(epoch: int, method: str, path: str) -> Match:
    """Calls to the host under one epoch."""

    def matches(request: Request) -> bool:
        fits = request.method == method and request.target.startswith(path)
        return fits and request.headers.get(EPOCH_HEADER) == str(epoch)

    return matches


@contextmanager
def started(arena: Arena) -> Generator[Pair]:
    """Both at the same time, with nobody leading before."""
    parts = arena.world.stack.parts
    with ExitStack() as stack:
        candidates: list[Candidate] = []
        for name in NAMES:
            sql = stack.enter_context(proxy_in_background("127.0.0.1", parts.postgres.port))
            clock = arena.folder / f"{name}.clock"
            clock.write_text("0")
            program = ("-m", "support.system.jumping_clock", str(clock))
            watched = stack.enter_context(arena.operator(name, dsn=sql.in_front_of(arena.dsn), program=program))
            candidates.append(Candidate(watched.replica, watched.proxy, sql, clock))
        pair = Pair(arena, (candidates[0], candidates[1]))
        try:
            yield pair
        finally:
            pair.clear()
