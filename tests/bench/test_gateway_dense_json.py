"""What large and dense JSON does to the calls of others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from support import manifests
from support.bench.fast_server import fast_server
from support.bench.gateways import PLAIN, another_gateway
from support.bench.measure import Report, Sample, milliseconds
from support.bench.raw_calls import Endpoint, RawConnection, call, message
from support.bench.system import Bench, Size

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

BOUND = 0.005
MIB = 1 << 20
WARM_CALLS = 100
WINDOW_CALLS = 30
"""Calls of a window at least, however short what runs beside it is."""

METHOD = """
One worker, plain HTTP. One agent calls a tool one call at a time, another one sends large JSON to a server of its own,
one body after the other; or it lists tools through a connection
that hides some, so that the gateway has to read all of an answer as large as that. For each of {bodies} bodies the
slowest call of the first agent in the meantime is taken, and in turn the slowest while the same body goes through
a second gateway: the same work on the same cores, but not in the worker that the first agent's calls go through.
Overhead is the difference of the percentiles of these slowest calls, and what is bounded is that of the 95th: ≤ 5 ms.
Milliseconds.
"""

Send = Callable[[], None]


def _filled(unit: str, size: int) -> bytes:
    """A call with an array of this element, of about so many bytes."""
    count = size // (len(unit) + 1)
    inside = ",".join([unit] * count)
    params = f'{{"name":"echo","arguments":{{"text":"","x":[{inside}]}}}}'
    return f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}'.encode()


BODIES = {
    "1 MiB of arrays 60 deep": _filled("[" * 58 + "]" * 58, MIB),
    "1 MiB of objects in objects": _filled('{"a":{"b":{}}}', MIB),
    "4 MiB of numbers": _filled("0", 4 * MIB - 1024),
}
ANSWERS = {"an answer with 1 MiB of arrays 60 deep": ("[" * 58 + "]" * 58, MIB)}


@dataclass(slots=True)
class Caller:
    """Calls one at a time, while something else runs."""

    connection: RawConnection
    body: bytes

    def slowest_while(self, send: Send, *, at_least: int) -> float:
        """Seconds of the slowest of the calls that began before `send` ended."""
        running = threading.Thread(target=send)
        slowest, calls = 0.0, 0
        running.start()
        while calls < at_least or running.is_alive():
            begin = time.perf_counter()
            assert self.connection.post(self.body).status == 200
            slowest = max(slowest, time.perf_counter() - begin)
            calls += 1
        running.join()
        return slowest


def _sender(endpoint: Endpoint, body: bytes, status: int = 200) -> tuple[RawConnection, Send]:
    connection = RawConnection(endpoint, seconds=60)
    connection.open_session()
    first = connection.post(body)
    assert first.status == status, first

    def send() -> None:
        assert connection.post(body).status == status

    return connection, send


def test_large_json_never_holds_up_other_calls_for_more_than_5_ms(size: Size, report: Report, own: Bench) -> None:
    method = METHOD.format(bodies=size.dense_bodies)
    header = ("", "n", "p50", "p95", "max", "p50 overhead", "p95 overhead")
    section = report.section("Calls beside large JSON", method, header)
    image = own.world.stack.image("everything")
    for name in ("upstream", "sink"):
        own.ready(fast_server(own.namespace, name, image))
    own.ready(manifests.connection(own.namespace, "agent", "upstream"))
    own.ready(manifests.connection(own.namespace, "large", "sink"))
    narrow = {"tools": {"allow": ["echo"]}}
    own.ready(manifests.connection(own.namespace, "narrow", "sink", expose=narrow))
    with (
        another_gateway(own, "dense-json", **PLAIN, workers=1) as gateway,
        another_gateway(own, "dense-json-elsewhere", **PLAIN, workers=1) as elsewhere,
    ):
        caller = Caller(RawConnection(gateway.endpoint(own.secret("agent"))), call("echo", text="x" * 100))
        caller.connection.open_session()
        for _ in range(WARM_CALLS):
            assert caller.connection.post(caller.body).status == 200
        kinds = {title: ("large", body) for title, body in BODIES.items()}
        for title, (unit, length) in ANSWERS.items():
            params = {"dense": unit, "count": length // (len(unit) + 1)}
            kinds[title] = ("narrow", message("tools/list", params))
        for title, (connection, body) in kinds.items():
            secret = own.secret(connection)
            ways = [_sender(each.endpoint(secret), body) for each in (gateway, elsewhere)]
            slowest: list[list[float]] = [[], []]
            for _ in range(size.dense_bodies):
                for (_, send), seconds in zip(ways, slowest, strict=True):
                    seconds.append(caller.slowest_while(send, at_least=WINDOW_CALLS))
            for opened, _ in ways:
                opened.close()
            _report(section.add, title, *map(Sample.of, slowest))
        caller.connection.close()
    section.check()


def _report(add: Callable[..., None], title: str, beside: Sample, elsewhere: Sample) -> None:
    def cells(sample: Sample) -> tuple[str, ...]:
        values = (sample.at(0.5), sample.at(0.95), sample.seconds[-1])
        return str(len(sample.seconds)), *map(milliseconds, values)

    over = [beside.at(share) - elsewhere.at(share) for share in (0.5, 0.95)]
    add(f"{title}, elsewhere", *cells(elsewhere), "", "")
    add(title, *cells(beside), *map(milliseconds, over), met=over[1] <= BOUND)
