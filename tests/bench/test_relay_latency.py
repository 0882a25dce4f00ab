"""What the gateway adds to a call, over the same call straight to the container."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import pytest

from support import manifests
from support.bench.elsewhere import ELSEWHERE
from support.bench.fast_server import fast_server
from support.bench.gateways import PLAIN, another_gateway, direct
from support.bench.measure import DURATIONS, Report, Sample, Section, milliseconds
from support.bench.pacing import PROCESSES, Pacers
from support.bench.raw_calls import Endpoint, RawConnection, call
from support.bench.system import Bench, Size

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600), pytest.mark.usefixtures("host_first")]

P50_BOUND, P99_BOUND = 0.001, 0.005
WARM_CALLS = 300
SESSIONS = 16
CALLS_PER_SECOND = 1000
SLICES = 15
BODY = call("echo", text="x" * 100)

METHOD = """
`tools/call` with 100 bytes of arguments to a bare Node.js server in its container: from this machine straight to the
container's address, and through the gateway, whose policy, credentials and session ids are in force as for any agent.
Blocking sockets, kept alive. At 1 session: one call at a time, every way in turn. At {sessions} sessions: {rate}
calls per second altogether, from {processes} processes, each at its planned moment, from which the time is counted even
if the call before it is late; slices of {seconds} s of every way in turn. Plain HTTP is what a gateway speaks on
loopback, behind something that ends TLS; TLS is what agents use otherwise. {elsewhere} Overhead is the difference of
the percentiles; p50 ≤ 1 ms and p99 ≤ 5 ms.
"""


@dataclass(slots=True)
class Way:
    """A way to the same server."""

    title: str
    endpoint: Endpoint
    seconds: list[float] = field(default_factory=list[float])

    def open(self) -> RawConnection:
        """A session, warmed up."""
        connection = RawConnection(self.endpoint)
        connection.open_session()
        for _ in range(WARM_CALLS):
            assert connection.post(BODY).status == 200
        return connection


@pytest.fixture
def ways(own: Bench) -> Generator[list[Way]]:
    """Directly, through a gateway in plain HTTP, and over TLS."""
    server = own.ready(fast_server(own.namespace, "upstream", own.world.stack.image("everything")))
    own.ready(manifests.connection(own.namespace, "agent", "upstream"))
    secret = own.secret("agent")
    with another_gateway(own, "plain-gateway", **PLAIN, workers=2) as plain:
        yield [
            Way("direct", direct(own, server)),
            Way("gateway, plain HTTP", plain.endpoint(secret)),
            Way("gateway, TLS", Endpoint.of_secret(secret)),
        ]


def _report(section: Section, ways: Sequence[Way], load: str) -> None:
    direct, *relayed = [(way, Sample.of(way.seconds)) for way in ways]
    section.add(f"{load}: {direct[0].title}", *direct[1].cells(), "", "")
    for way, sample in relayed:
        p50, p99 = (sample.at(share) - direct[1].at(share) for share in (0.5, 0.99))
        cells = (f"{load}: {way.title}", *sample.cells(), milliseconds(p50), milliseconds(p99))
        section.add(*cells, met=p50 <= P50_BOUND and p99 <= P99_BOUND)


def _one_at_a_time(ways: Sequence[Way], calls: int) -> None:
    connections = [way.open() for way in ways]

    for _ in range(calls):
        for way, connection in zip(ways, connections, strict=True):
            begin = time.perf_counter()
            status = connection.post(BODY).status
            way.seconds.append(time.perf_counter() - begin)
            assert status == 200
    for connection in connections:
        connection.close()


def _paced(ways: Sequence[Way], seconds: int) -> None:
    per_session = CALLS_PER_SECOND * seconds // SLICES // SESSIONS
    with ExitStack() as running:
        pacers = [running.enter_context(Pacers(way.endpoint, BODY, sessions=SESSIONS, warm=WARM_CALLS)) for way in ways]
        for _ in range(SLICES):
            for way, paced in zip(ways, pacers, strict=True):
                way.seconds += paced.slice(rate=CALLS_PER_SECOND, per_session=per_session)


def test_a_relayed_call_takes_at_most_1_ms_longer_in_the_median_and_5_ms_at_p99(
    size: Size, report: Report, ways: list[Way]
) -> None:
    method = METHOD.format(
        sessions=SESSIONS,
        rate=f"{CALLS_PER_SECOND:,}",
        processes=PROCESSES,
        seconds=size.paced_seconds / SLICES,
        elsewhere=ELSEWHERE,
    )
    section = report.section("Relay latency", method, ("", *DURATIONS, "p50 overhead", "p99 overhead"))
    for load, run in (
        ("1 session", partial(_one_at_a_time, ways, size.calls)),
        (f"{SESSIONS} sessions", partial(_paced, ways, size.paced_seconds)),
    ):
        run()
        _report(section, ways, load)
        for way in ways:
            way.seconds.clear()
    section.check()
