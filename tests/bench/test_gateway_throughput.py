"""How many calls one gateway worker relays."""

from __future__ import annotations

import pytest

from support import manifests
from support.bench.elsewhere import ELSEWHERE
from support.bench.fast_server import fast_server
from support.bench.gateways import PLAIN, another_gateway, direct
from support.bench.load import LOOPS, Loop, in_turn, opened
from support.bench.measure import Report
from support.bench.raw_calls import call
from support.bench.system import Bench, Size

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300), pytest.mark.usefixtures("host_first")]

BOUND = 3000
SESSIONS = 16
WARM_CALLS = 50
SLICES = 3

METHOD = """
{sessions} sessions, each of which makes its next `tools/call` (100 bytes of arguments) as soon as the one before is
answered, to a bare Node.js server in its container; through a gateway with one worker, whose policy, credentials,
session ids and call records are in force. The server, the worker and the load generator share the machine's cores.
The server answers in JSON, or with an event stream of one event, which the gateway reads line by line. Slices of
{seconds:.1f} s of every way in turn; calls per second are those of the slice in the middle. The bound is for plain
HTTP: ≥ {bound:,} calls per second; TLS is reported beside it. {elsewhere} Times are milliseconds.
"""


def test_a_worker_relays_at_least_3000_calls_per_second(size: Size, report: Report, own: Bench) -> None:
    seconds = size.loop_seconds / SLICES
    method = METHOD.format(sessions=SESSIONS, seconds=seconds, bound=BOUND, elsewhere=ELSEWHERE)
    section = report.section("Relay throughput", method, ("", *LOOPS))
    server = own.ready(fast_server(own.namespace, "upstream", own.world.stack.image("everything")))
    own.ready(manifests.connection(own.namespace, "agent", "upstream"))
    secret = own.secret("agent")
    json, events = call("echo", text="x" * 100), call("echo_events", text="x" * 100)
    with (
        another_gateway(own, "one-plain-worker", **PLAIN, workers=1) as plain,
        another_gateway(own, "one-tls-worker", workers=1) as tls,
    ):
        loops = [
            Loop("direct, JSON", direct(own, server), json),
            Loop("direct, events", direct(own, server), events),
        ]
        for title, gateway in (("plain HTTP", plain), ("TLS", tls)):
            for kind, body in (("JSON", json), ("events", events)):
                loops.append(Loop(f"{title}, {kind}", gateway.endpoint(secret), body, gateway.worker()))
        with opened(loops, sessions=SESSIONS, warm=WARM_CALLS):
            in_turn(loops, slices=SLICES, seconds=seconds)
    for loop in loops:
        bounded = loop.title.startswith("plain")
        section.add(
            loop.title + f" (≥ {BOUND:,})" * bounded, *loop.cells(), met=loop.rate >= BOUND if bounded else None
        )
    section.check()
