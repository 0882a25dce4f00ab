"""What sessions that wait and answers that are long cost in memory."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from support import manifests
from support.bench.fast_server import fast_server
from support.bench.gateways import PROBER, WORKER, Gateway, Process, another_gateway
from support.bench.measure import Report
from support.bench.raw_calls import Endpoint, RawConnection, call
from support.bench.system import Bench, Size
from support.poll import until

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

MIB = 1 << 20
IDLE_BOUND, STREAM_BOUND = 150 * MIB, 5 * MIB
WARM_CALLS = 200
STREAMS = 3
PAUSE_SECONDS = 1.0
PAUSES = 2

METHOD = """
A gateway with two workers, over TLS. Idle sessions: {sessions:,} clients each initialise a session, call a tool once,
and keep their connection. Counted is the memory of the whole gateway, its supervisor and all workers, as PSS: what
processes share is divided among them. The process of each worker that holds the conversations of readiness probes is
counted apart, since sessions have no part in it. A formatter for terminals, which the logging library would load from
the environment of the tests and an installed host does not have, is hidden from it. A streamed answer: {megabytes} MB
from the server, in a gateway with one worker that has answered {warm} calls; the growth is the most that the worker's
RSS was in the meantime, less what it was before. Once the client reads as fast as it can, once it pauses {pauses} times
for {pause:.0f} s. Largest growth of {streams} answers each; the bound is {bound} MiB.
"""


def _mebibytes(count: float) -> str:
    return f"{count / MIB:.1f}"


def _pss(processes: list[Process], *, probers: bool) -> int:
    return sum(process.proportional_bytes for process in processes if (process.module == PROBER) is probers)


def _idle(gateway: Gateway, endpoint: Endpoint, count: int) -> tuple[int, int, int]:
    """Bytes before and with so many sessions, and those of the probers."""
    body = call("echo", text="x" * 100)
    until("both workers and their probers run", lambda: len(gateway.processes), lambda count: count == 5)
    first = RawConnection(endpoint)
    first.open_session()
    first.close()
    before = _pss(gateway.processes, probers=False)
    sessions: list[RawConnection] = []
    for _ in range(count):
        session = RawConnection(endpoint, seconds=60)
        session.open_session()
        assert session.post(body).status == 200
        sessions.append(session)
    processes = gateway.processes
    assert sum(process.module == WORKER for process in processes) == 2
    held = _pss(processes, probers=False)
    # All of them are still there.
    assert all(session.post(body).status == 200 for session in sessions)
    for session in sessions:
        session.close()
    return before, held, _pss(processes, probers=True)


def _growth(worker: Process, endpoint: Endpoint, size: int, pause: Callable[[int], None]) -> int:
    """Bytes by which the worker grew while it streamed an answer."""
    session = RawConnection(endpoint, seconds=60)
    session.open_session()
    worker.forget_peak()
    before = worker.resident_bytes()
    assert session.stream(call("large", bytes=size)) == 200
    received = 0
    for chunk in session.chunks():
        pause(received)
        received += len(chunk)
    session.close()
    assert received >= size
    return worker.resident_bytes(most=True) - before


def _at_full_speed(_received: int) -> None:
    """No pause."""


def _pausing(size: int) -> Callable[[int], None]:
    left = [size * (number + 1) // (PAUSES + 1) for number in range(PAUSES)]

    def pause(received: int) -> None:
        if left and received >= left[0]:
            del left[0]
            time.sleep(PAUSE_SECONDS)

    return pause


def test_idle_sessions_and_long_answers_cost_little_memory(size: Size, report: Report, own: Bench) -> None:
    method = METHOD.format(
        sessions=size.idle_sessions,
        megabytes=size.streamed_bytes // 1_000_000,
        warm=WARM_CALLS,
        pauses=PAUSES,
        pause=PAUSE_SECONDS,
        streams=STREAMS,
        bound=STREAM_BOUND // MIB,
    )
    section = report.section("Gateway memory", method, ("", "MiB before", "MiB", "growth in MiB"))
    own.ready(fast_server(own.namespace, "upstream", own.world.stack.image("everything")))
    own.ready(manifests.connection(own.namespace, "agent", "upstream"))
    secret = own.secret("agent")
    with another_gateway(own, "many-sessions", workers=2) as gateway:
        before, held, probers = _idle(gateway, gateway.endpoint(secret), size.idle_sessions)
        title = f"{size.idle_sessions:,} idle sessions (≤ {IDLE_BOUND // MIB} MiB)"
        cells = (_mebibytes(before), _mebibytes(held), _mebibytes(held - before))
        section.add(title, *cells, met=held <= IDLE_BOUND)
        section.add("beside them, the processes that probe", "", _mebibytes(probers), "")
    with another_gateway(own, "long-answers", workers=1) as gateway:
        endpoint, worker = gateway.endpoint(secret), gateway.worker()
        warm = RawConnection(endpoint)
        warm.open_session()
        for _ in range(WARM_CALLS):
            assert warm.post(call("echo", text="x" * 100)).status == 200
        warm.close()
        for title, pause in (
            ("at once", lambda: _at_full_speed),
            ("with pauses", lambda: _pausing(size.streamed_bytes)),
        ):
            before = worker.resident_bytes()
            grown = max(_growth(worker, endpoint, size.streamed_bytes, pause()) for _ in range(STREAMS))
            name = (
                f"an answer of {size.streamed_bytes // 1_000_000} MB, read {title} (≤ {STREAM_BOUND // MIB} MiB more)"
            )
            cells = (_mebibytes(before), _mebibytes(before + grown), _mebibytes(grown))
            section.add(name, *cells, met=grown <= STREAM_BOUND)
    section.check()
