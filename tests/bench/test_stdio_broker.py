"""What a server on stdio costs through the session broker, over talking to its process directly."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from support.bench.measure import DURATIONS, Report, Sample, Section, milliseconds
from support.bench.raw_calls import INITIALIZE, Endpoint, RawConnection, call
from support.bench.system import Size
from support.broker.programs import Spawned
from support.broker.world import Broker, running_broker
from support.gateway.world import World, running_world

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

P50_BOUND = 0.002
MIB = 1 << 20
SESSIONS, MEMORY_BOUND = 100, 100 * MIB
AT_ONCE = 16
WARM_CALLS = 200
BODY = call("echo", text="x" * 100)

PROGRAM = """
import json, sys
for line in sys.stdin.buffer:
    message = json.loads(line)
    if "id" in message:
        result = message.get("params", {}).get("arguments") or {"protocolVersion": "2025-11-25"}
        sys.stdout.buffer.write(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode() + b"\\n")
        sys.stdout.buffer.flush()
"""
ARGV = [sys.executable, "-S", "-E", "-c", PROGRAM]

METHOD = """
`tools/call` with 100 bytes of arguments to a program that answers lines of its standard input: over pipes, through the
broker's socket as a worker of the gateway uses it, and from an agent's connection (plain HTTP) through gateway and
broker. One call at a time, every way in turn; p50 ≤ {bound:.0f} ms over the pipes. At {at_once} sessions: all call as
fast as they can, for the broker's throughput, without a bound. In place of Docker, a thread for each direction puts
what the process writes into frames. Memory: RSS of the broker with {sessions} open sessions that were called once.
"""


@dataclass(slots=True)
class Way:
    """A way to the same program."""

    title: str
    call: Callable[[], None]
    seconds: list[float] = field(default_factory=list[float])


@pytest.fixture(scope="module")
def broker() -> Generator[Broker]:
    """A broker that this process may talk to."""
    with running_broker() as broker:
        yield broker


@pytest.fixture(scope="module")
def gateways_broker() -> Generator[Broker]:
    """A broker of the gateway's user."""
    with running_broker(unprivileged=True) as broker:
        yield broker


@pytest.fixture(scope="module")
def gateway() -> Generator[World]:
    """A gateway that speaks plain HTTP."""
    with running_world(tls=False, workers=1) as world:
        yield world


def _instance(broker: Broker) -> str:
    return broker.dtma.instance(lambda _request: Spawned(ARGV))


def _session(endpoint: Endpoint) -> RawConnection:
    connection = RawConnection(endpoint)
    connection.open_session()
    return connection


def _on(broker: Broker, instance: str) -> Endpoint:
    url = f"http://localhost/instances/{instance}/mcp"
    return Endpoint(url, unix=str(broker.path), connection=str(uuid.uuid4()))


def _asked(connection: RawConnection) -> Callable[[], None]:
    def ask() -> None:
        assert connection.post(BODY).status == 200

    return ask


def _piped(process: subprocess.Popen[bytes]) -> Callable[[], None]:
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None and stdout is not None

    def ask() -> None:
        stdin.write(BODY + b"\n")
        stdin.flush()
        assert stdout.readline().startswith(b"{")

    return ask


def test_a_call_over_stdio_takes_at_most_2_ms_longer_than_to_the_process_itself(
    size: Size, report: Report, broker: Broker, gateways_broker: Broker, gateway: World
) -> None:
    section = _section(report)
    agent = gateway.connect(gateway.bridged(_instance(gateways_broker), gateways_broker.path))
    with ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(ARGV, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        stack.callback(process.kill)
        near, far = _session(_on(broker, _instance(broker))), _session(Endpoint(agent.url, agent.token))
        for connection in (near, far):
            stack.callback(connection.close)
        ways = [
            Way("direct, over pipes", _piped(process)),
            Way("broker", _asked(near)),
            Way("gateway and broker", _asked(far)),
        ]
        for way in ways:
            for _ in range(WARM_CALLS):
                way.call()
        for _ in range(size.calls):
            for way in ways:
                begin = time.perf_counter()
                way.call()
                way.seconds.append(time.perf_counter() - begin)
    direct, *others = [(way, Sample.of(way.seconds)) for way in ways]
    section.add(direct[0].title, *direct[1].cells(), "", "")
    for way, sample in others:
        over, ratio = sample.median - direct[1].median, sample.median / direct[1].median
        section.add(way.title, *sample.cells(), milliseconds(over), f"{ratio:.1f} ×", met=over <= P50_BOUND)
    calls, seconds = _throughput(broker, size.loop_seconds)
    title = f"broker, {AT_ONCE} sessions: {calls / seconds:,.0f} calls per second"
    section.add(title, *[""] * (len(DURATIONS) + 2))
    section.check()


def _section(report: Report) -> Section:
    method = METHOD.format(bound=P50_BOUND * 1000, at_once=AT_ONCE, sessions=SESSIONS)
    return report.section("Servers on stdio", method, ("", *DURATIONS, "p50 overhead", "ratio"))


def _throughput(broker: Broker, seconds: float) -> tuple[int, float]:
    """Calls that were answered, and the time that it took."""
    instance = _instance(broker)
    connections = [_session(_on(broker, instance)) for _ in range(AT_ONCE)]
    counts = [0] * AT_ONCE
    begin = time.perf_counter()

    def keep_asking(number: int) -> None:
        while time.perf_counter() - begin < seconds:
            assert connections[number].post(BODY).status == 200
            counts[number] += 1

    threads = [threading.Thread(target=keep_asking, args=(number,)) for number in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - begin
    for connection in connections:
        connection.close()
    assert all(counts), "a session got no answer at all"
    return sum(counts), took


def test_100_open_sessions_take_at_most_100_mib(report: Report) -> None:
    section = report.section(
        "Memory of the session broker",
        f"RSS of a fresh broker, and of the same with {SESSIONS} sessions that were called once and stay open.",
        ("", "MiB before", "MiB", "KiB per session"),
    )
    with running_broker() as broker:
        instance = _instance(broker)
        before = broker.memory
        connections = [RawConnection(_on(broker, instance), seconds=60) for _ in range(SESSIONS)]
        for connection in connections:
            answer = connection.post(INITIALIZE)
            assert answer.status == 200
            connection.adopt(answer.headers["mcp-session-id"])
            assert connection.post(BODY).status == 200
        held = broker.memory
        # All of them are still there.
        assert all(connection.post(BODY).status == 200 for connection in connections)
        for connection in connections:
            connection.close()
    each = (held - before) / SESSIONS / 1024
    cells = (f"{before / MIB:.1f}", f"{held / MIB:.1f}", f"{each:.0f}")
    section.add(f"{SESSIONS} sessions (≤ {MEMORY_BOUND // MIB} MiB)", *cells, met=held <= MEMORY_BOUND)
    section.check()
