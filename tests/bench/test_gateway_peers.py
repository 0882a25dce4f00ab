"""The gateway beside other gateways that are written in Python."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from localstack.processes import Supervisor
from support import manifests
from support.bench.elsewhere import ELSEWHERE
from support.bench.fast_server import fast_server
from support.bench.gateways import PLAIN, another_gateway, direct
from support.bench.load import LOOPS, Loop, in_turn, opened
from support.bench.measure import Report
from support.bench.peers import contextforge, fastmcp
from support.bench.raw_calls import call
from support.bench.system import Bench, Size

# ContextForge's environment is fetched at the first run.
pytestmark = [pytest.mark.bench, pytest.mark.timeout(900), pytest.mark.usefixtures("host_first")]

TIMES = 50
SESSIONS = 16
SLICES = 3

METHOD = """
The same closed loop with {sessions} sessions, over plain HTTP, to the same server in its container: through this
gateway with its two workers; through FastMCP's proxy as it comes; and through ContextForge with one process and SQLite,
without its pages and its own rate limit. Each is in an environment of its own with pinned packages, and the only one
that has anything to do while its slice of {seconds:.1f} s lasts. {elsewhere} The bound: at least {times} times the
calls per second of each of the others.
"""


def test_the_gateway_relays_at_least_50_times_the_calls_of_python_peers(
    size: Size, report: Report, own: Bench, supervisor: Supervisor, tmp_path: Path
) -> None:
    seconds = size.loop_seconds / SLICES
    method = METHOD.format(sessions=SESSIONS, seconds=seconds, times=TIMES, elsewhere=ELSEWHERE)
    section = report.section("Against Python peers", method, ("", *LOOPS[:-1], "the gateway's are"))
    server = own.ready(fast_server(own.namespace, "upstream", own.world.stack.image("everything")))
    own.ready(manifests.connection(own.namespace, "agent", "upstream"))
    url = direct(own, server).url
    with ExitStack() as running:
        gateway = running.enter_context(another_gateway(own, "peer-of-peers", **PLAIN, workers=2))
        peers = [running.enter_context(start(supervisor, tmp_path, url)) for start in (fastmcp, contextforge)]
        ours = Loop("this gateway", gateway.endpoint(own.secret("agent")), call("echo", text="x" * 100))
        others = [Loop(peer.title, peer.endpoint, call(peer.tool, text="x" * 100)) for peer in peers]
        with opened((ours, *others), sessions=SESSIONS, warm=1):
            in_turn((ours, *others), slices=SLICES, seconds=seconds)
    section.add(ours.title, *ours.cells()[:-1], "")
    for loop in others:
        times = ours.rate / loop.rate
        section.add(f"{loop.title} (≥ {TIMES} ×)", *loop.cells()[:-1], f"{times:.0f} ×", met=times >= TIMES)
    section.check()
