"""What sessions of stdio servers cost on a real host, from their start to what is left of them."""

from __future__ import annotations

import os
import re
import secrets
import signal
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from localstack import images
from localstack.docker import Engine
from localstack.processes import Supervisor
from support.bench import by_hand
from support.bench.measure import DURATIONS, Report, Sample, Section, milliseconds
from support.bench.raw_calls import INITIALIZE, SESSION, Endpoint, RawConnection, message
from support.bench.system import Size
from support.hosts.holdings import Held, children, held
from support.hosts.stdio_host import StdioHost
from support.hosts.tiny_stdio_server import COMMAND
from support.poll import until

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

COLD_BOUND, SPARE_BOUND = 0.100, 0.050
AT_ONCE = 4
IDLE_SECONDS = 2.0
OPEN, RESTARTS = 8, 3
SERVED_BOUND = 5.0
"""Seconds until a new session works: the figure for what ends the session broker."""
GONE_BOUND = 5.0
ENDS, ENDED_BOUND = 8, 0.5
PING = message("ping")
# Without spaces: the script looks for this spelling.
WHOAMI = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"whoami","arguments":{}}}'

METHOD = """
A session is what an agent gets by `initialize`, from its connection to the gateway over TLS to the whole answer, on a
host of its own (DTMA, gateway, session broker). By hand: the same container, with the same limits and on the same
network, created, attached to and started with the engine's API alone, then `initialize` on its pipes. Cold: the server
has no container at all; p50 ≤ by hand + {cold:.0f} ms. With a spare: another agent uses the server, and a process that
waits has come to rest; beside it `initialize` of such a process on its pipes; p50 ≤ that + {spare:.0f} ms. In turns.
"""
CYCLES_METHOD = """
{at_once} agents at a time begin a session, ask once and end it. Then, when nobody has had one for {idle:.0f} s, what
there is more than before the first of them: containers, networks, and descriptors and threads of DTMA, session broker
and gateway together. Connections that are kept for a while count as descriptors: up to {kept}.
"""
RESTARTS_METHOD = """
The session broker is killed while {open} sessions are open: until a new session is served, and until all containers
that were there are gone.
"""
ENDS_METHOD = """
A session is open: from the request to DTMA that deletes its grant, or stops its server, until its process is gone.
"""
KEPT_CONNECTIONS = 8


BODY: dict[str, Any] = {
    "sessions": {"maxSessions": OPEN + AT_ONCE, "idleSeconds": IDLE_SECONDS},
    "limits": {"memoryBytes": 256 * 1024 * 1024, "cpuMillis": 1000, "pids": 64},
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A server."""

    title: str
    image: str | None
    """An example's; none for the tiny one."""
    changes: dict[str, Any]


SUBJECTS = (
    Subject("a shell script in an image of 2 MB", None, {"command": list(COMMAND)}),
    Subject("`mcp-server-time`, with the Python SDK", "time", {"command": []}),
)


@pytest.fixture(scope="module")
def host(docker_engine: Engine, supervisor: Supervisor, state_folder: Path) -> Generator[StdioHost]:
    """A host that serves nobody else."""
    del docker_engine
    host = StdioHost.started(supervisor, state_folder / "bench-stdio-host")
    yield host
    host.close()


@contextmanager
def _deployed(host: StdioHost, **changes: Any) -> Generator[str]:
    """A ready server without any container."""
    instance = str(uuid.uuid4())
    host.deploy(instance, **BODY, **changes)
    host.await_phase(instance, "Ready")
    host.await_no_sessions(instance)
    yield instance
    host.remove(instance)


def _endpoint(host: StdioHost, instance: str) -> Endpoint:
    return _endpoint_of(host, instance, host.grant(instance)[1])


def _endpoint_of(host: StdioHost, instance: str, token: str) -> Endpoint:
    return Endpoint(f"{host.url}/servers/{instance}/mcp", token, host.host.ca_file.read_text())


def _begun(endpoint: Endpoint) -> tuple[RawConnection, float]:
    """A session, and how long it took to get it."""
    begin = time.perf_counter()
    connection = RawConnection(endpoint)
    answer = connection.post(INITIALIZE)
    took = time.perf_counter() - begin
    assert answer.status == 200 and b'"result"' in answer.body, answer
    connection.adopt(answer.headers[SESSION])
    return connection, took


def _ended(connection: RawConnection) -> None:
    assert connection.delete().status == 204
    connection.close()


def _rest(*processes: int) -> bool:
    """Whether containers, each by the pid of its first process, have used no time for a while."""

    def used() -> list[list[str]]:
        by_parent, pids = children(), list(processes)
        for pid in pids:
            pids += by_parent.get(pid, [])
        return [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13] for pid in pids]

    before = used()
    threading.Event().wait(0.3)
    return len(before) > len(processes) and used() == before


def _by_hand(request: dict[str, Any]) -> tuple[float, float]:
    """From nothing to the answer of `initialize`; and that answer alone, of a process that has come to rest."""
    begin = time.perf_counter()
    with by_hand.started(request) as process:
        assert b'"result"' in process.ask(INITIALIZE)
        cold = time.perf_counter() - begin
    with by_hand.started(request) as process:
        pid = int(by_hand.asked("GET", f"/{process.container}/json")["State"]["Pid"])
        until("at rest", lambda: _rest(pid))
        begin = time.perf_counter()
        assert b'"result"' in process.ask(INITIALIZE)
        return cold, time.perf_counter() - begin


def _of_the_host(host: StdioHost, instance: str, endpoint: Endpoint) -> tuple[float, float]:
    """A session of a server without any container, and one for which a process waits."""
    host.await_no_sessions(instance)
    first, cold = _begun(endpoint)

    def spare() -> bool:
        running = [int(each["State"]["Pid"]) for each in host.sessions(instance).values() if each["State"]["Running"]]
        # Else it would be ended for being idle.
        assert first.post(PING).status == 200
        return len(running) == 2 and _rest(*running)

    until("a spare at rest", spare)
    second, warm = _begun(endpoint)
    for connection in (first, second):
        _ended(connection)
    return cold, warm


@pytest.fixture(scope="module")
def starts(report: Report) -> Section:
    """Where their times go."""
    method = METHOD.format(cold=COLD_BOUND * 1000, spare=SPARE_BOUND * 1000)
    return report.section("Start of a stdio session", method, ("", *DURATIONS))


@pytest.mark.parametrize("subject", SUBJECTS, ids=("shell", "sdk"))
def test_a_session_starts_as_fast_as_its_container_and_with_a_spare_at_once(
    host: StdioHost, docker_engine: Engine, supervisor: Supervisor, size: Size, starts: Section, subject: Subject
) -> None:
    label = f"bench=stdio-{secrets.token_hex(3)}"
    supervisor.leave_to_janitor({"label": label})
    image = {} if subject.image is None else {"image": images.built(docker_engine, subject.image)}
    with _deployed(host, **subject.changes, **image) as instance:
        endpoint = _endpoint(host, instance)
        connection, _ = _begun(endpoint)
        request = by_hand.same(next(iter(host.sessions(instance).values())), label)
        _ended(connection)
        pairs: list[tuple[tuple[float, float], tuple[float, float]]] = []
        for _ in range(size.session_starts):
            # What the host still removes would make what is done by hand slower.
            host.await_no_sessions(instance)
            pairs.append((_by_hand(request), _of_the_host(host, instance, endpoint)))
    for name, bound, number in (("cold", COLD_BOUND, 0), ("with a spare", SPARE_BOUND, 1)):
        alone, through = (Sample.of(pair[side][number] for pair in pairs) for side in (0, 1))
        what = "container and `initialize`" if number == 0 else "`initialize` of a process at rest"
        starts.add(f"{subject.title}: by hand, {what}", *alone.cells())
        most = alone.median + bound
        title = f"{subject.title}: {name} (p50 ≤ {milliseconds(most)})"
        starts.add(title, *through.cells(), met=through.median <= most)
    starts.check()


def _cycles(endpoint: Endpoint, turns: Iterator[int], most: int, failures: list[BaseException]) -> None:
    try:
        while next(turns) < most:
            connection, _ = _begun(endpoint)
            assert connection.post(PING).status == 200
            _ended(connection)
    except (AssertionError, OSError) as error:
        failures.append(error)


def _alone(host: StdioHost, instance: str) -> Held:
    host.await_no_sessions(instance, seconds=60)
    return held(host)


def test_sessions_that_come_and_go_leave_nothing_behind(host: StdioHost, size: Size, report: Report) -> None:
    method = CYCLES_METHOD.format(at_once=AT_ONCE, idle=IDLE_SECONDS, kept=KEPT_CONNECTIONS)
    header = ("sessions", "seconds", "per session (ms)", "containers", "networks", "descriptors", "threads")
    section = report.section("Sessions that come and go", method, header)
    with _deployed(host) as instance:
        endpoint, failures = _endpoint(host, instance), list[BaseException]()

        def run(most: int) -> float:
            turns, begin = count(), time.monotonic()
            work = (endpoint, turns, most, failures)
            threads = [threading.Thread(target=_cycles, args=work) for _ in range(AT_ONCE)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not failures, failures
            return time.monotonic() - begin

        run(2 * AT_ONCE)
        before = _alone(host, instance)
        seconds = run(size.session_cycles)

        def more(now: Held) -> Sequence[int]:
            networks = len(set(now.networks) - set(before.networks))
            rest = (now.descriptors - before.descriptors, now.threads - before.threads)
            return len(now.containers), networks, *rest

        def nothing(left: Sequence[int]) -> bool:
            containers, networks, descriptors, threads = left
            return not containers and not networks and descriptors <= KEPT_CONNECTIONS and threads <= 0

        deadline = time.monotonic() + 30
        while not nothing(left := more(_alone(host, instance))) and time.monotonic() < deadline:
            threading.Event().wait(0.5)
    cells = (f"{size.session_cycles:,}", f"{seconds:.0f}", milliseconds(seconds / size.session_cycles))
    section.add(*cells, *map(str, left), met=nothing(left))
    section.check()


def test_a_broker_that_is_killed_leaves_no_container(host: StdioHost, report: Report) -> None:
    section = report.section("Restart of the session broker", RESTARTS_METHOD.format(open=OPEN), ("", *DURATIONS))
    gone: list[float] = []
    served: list[float] = []
    with _deployed(host) as instance:
        endpoint = _endpoint(host, instance)
        for _ in range(RESTARTS):
            connections = [_begun(endpoint)[0] for _ in range(OPEN)]
            theirs = set(host.sessions(instance))
            os.kill(host.broker, signal.SIGKILL)
            begin = time.monotonic()
            until("served", lambda: _is_served(endpoint))
            served.append(time.monotonic() - begin)
            until("none left", lambda theirs=theirs: theirs & set(held(host).containers), lambda left: not left)
            gone.append(time.monotonic() - begin)
            for connection in connections:
                connection.close()
    title = f"all containers gone (max ≤ {milliseconds(GONE_BOUND)})"
    section.add(title, *Sample.of(gone).cells(), met=max(gone) <= GONE_BOUND)
    title = f"a new session (max ≤ {milliseconds(SERVED_BOUND)})"
    section.add(title, *Sample.of(served).cells(), met=max(served) <= SERVED_BOUND)
    section.check()


def test_sessions_end_with_their_grant_and_their_server_within_half_a_second(host: StdioHost, report: Report) -> None:
    section = report.section("End of stdio sessions", ENDS_METHOD, ("", *DURATIONS))
    revoked: list[float] = []
    stopped: list[float] = []
    for _ in range(ENDS):
        with _deployed(host) as instance:
            uid, token = host.grant(instance)
            revoked.append(_until_ended(host, instance, token, partial(host.revoke, uid)))
            stop = partial(host.deploy, instance, generation=2, state="Stopped", **BODY)
            stopped.append(_until_ended(host, instance, host.grant(instance)[1], stop))
    for title, taken in (("its grant is deleted", revoked), ("its server is stopped", stopped)):
        bound = f"{title} (max ≤ {milliseconds(ENDED_BOUND)})"
        section.add(bound, *Sample.of(taken).cells(), met=max(taken) <= ENDED_BOUND)
    section.check()


def _container_of(connection: RawConnection) -> str:
    answer = connection.post(WHOAMI).body
    found = re.search(rb'"text":"([0-9a-f]{64})"', answer)
    assert found is not None, answer
    return found[1].decode()


def _until_ended(host: StdioHost, instance: str, token: str, word: Callable[[], None]) -> float:
    """Seconds from the word until the process of a new session is gone."""
    connection, _ = _begun(_endpoint_of(host, instance, token))
    process = Path(f"/proc/{host.sessions(instance)[_container_of(connection)]['State']['Pid']}")
    begin = time.monotonic()
    telling = threading.Thread(target=word)
    telling.start()
    while process.exists():
        assert time.monotonic() - begin < 10, "it is still there"
        threading.Event().wait(0.002)
    took = time.monotonic() - begin
    telling.join()
    connection.close()
    return took


def _is_served(endpoint: Endpoint) -> bool:
    connection = RawConnection(endpoint)
    answer = connection.post(INITIALIZE)
    done = answer.status == 200 and b'"result"' in answer.body
    if done:
        connection.adopt(answer.headers[SESSION])
        assert connection.delete().status == 204
    connection.close()
    return done
