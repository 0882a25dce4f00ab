"""In the middle of calls the process of a session, its container, the broker, DTMA or Docker ends by force.

Whoever waits hears a proper error at once, nothing is left behind, and new sessions are served within seconds of the
end of the cause.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from support.hosts.busy_sessions import all_busy, served
from support.hosts.far_host import FarHost
from support.hosts.holdings import Held, children, held
from support.hosts.prying_server import WAITING
from support.hosts.stdio_host import StdioHost
from support.poll import until

pytestmark = pytest.mark.faults

BUSY = 3
SOON = 20.0
"""Seconds in which new sessions have to be served after the end of a cause: many times what a busy machine takes."""
KEPT_CONNECTIONS = 8
"""Descriptors by which a part may differ: connections to Docker, and between the parts, are kept for a while."""


@pytest.fixture
async def leaving_nothing(far: FarHost, stdio_host: StdioHost, instance: str) -> AsyncGenerator[None]:
    """Whatever the test does: afterwards the host holds what it held before."""

    def settled(now: Held) -> bool:
        return len(now.containers) <= 1

    _, token = stdio_host.grant(instance)
    await served(stdio_host, instance, token, time.monotonic())
    before = until("no session but a spare", lambda: held(stdio_host), settled)
    yield
    # Nothing to do, unless the test failed before it mended what it had ended.
    await asyncio.to_thread(far.restore)

    def as_before(now: Held) -> bool:
        return (
            settled(now)
            and now.networks == before.networks
            and now.descriptors <= before.descriptors + KEPT_CONNECTIONS
            and now.threads <= before.threads + 2
        )

    until(f"no more than {before}", lambda: held(stdio_host), as_before)


def _first_process(host: StdioHost, instance: str) -> dict[str, int]:
    """The first process, by the pid it has here, of each container whose session is in the middle of a call."""
    pids = {id_: int(shown["State"]["Pid"]) for id_, shown in host.sessions(instance).items()}
    return {id_: pid for id_, pid in pids.items() if Path(f"/proc/{pid}/root/tmp/{WAITING}").exists()}


def _kill_process(far: FarHost, host: StdioHost, instance: str, container: str) -> None:
    # The first is what reaps others and passes signals on.
    (server,) = children()[_first_process(host, instance)[container]]
    os.kill(server, signal.SIGKILL)


def _kill_container(far: FarHost, host: StdioHost, instance: str, container: str) -> None:
    far.engine.docker("kill", container)


def _remove_container(far: FarHost, host: StdioHost, instance: str, container: str) -> None:
    far.engine.docker("rm", "--force", container)


Kill = Callable[[FarHost, StdioHost, str, str], None]


@pytest.mark.parametrize("kill", [_kill_process, _kill_container, _remove_container], ids=lambda kill: kill.__name__)
@pytest.mark.usefixtures("leaving_nothing")
async def test_a_session_whose_process_or_container_is_killed_ends_alone(
    far: FarHost, stdio_host: StdioHost, instance: str, kill: Kill
) -> None:
    _, token = stdio_host.grant(instance)
    async with all_busy(stdio_host, instance, BUSY) as sessions:
        waiting = await asyncio.to_thread(_first_process, stdio_host, instance)
        assert len(waiting) == BUSY
        await asyncio.to_thread(kill, far, stdio_host, instance, next(iter(waiting)))
        since = time.monotonic()
        calls = {each.call for each in sessions}
        done, _ = await asyncio.wait(calls, timeout=SOON, return_when=asyncio.FIRST_COMPLETED)
        (hit,) = [each for each in sessions if each.call in done]
        assert "process" in await hit.broken()
        assert await hit.refused() == 404
        for other in sessions:
            assert other is hit or await other.works(), "the others go on"
        assert await served(stdio_host, instance, token, since) < SOON


def _broker(_far: FarHost, host: StdioHost) -> None:
    os.kill(host.broker, signal.SIGKILL)


def _dtma(far: FarHost, _host: StdioHost) -> None:
    assert far.host.dtma is not None
    far.host.dtma.kill()


def _docker(far: FarHost, _host: StdioHost) -> None:
    far.engine.kill()


def _nothing(_far: FarHost, _host: StdioHost) -> None:
    """Who is watched over comes back without help."""


def _start_dtma(far: FarHost, _host: StdioHost) -> None:
    far.host.start_dtma()


def _start_docker(far: FarHost, _host: StdioHost) -> None:
    far.engine.start()


Act = Callable[[FarHost, StdioHost], None]


@pytest.mark.parametrize(
    ("kill", "mend"),
    [(_broker, _nothing), (_dtma, _start_dtma), (_docker, _start_docker)],
    ids=["the broker", "DTMA", "Docker"],
)
@pytest.mark.usefixtures("leaving_nothing")
async def test_all_sessions_end_with_what_they_depend_on_and_new_ones_come_with_it(
    far: FarHost, stdio_host: StdioHost, instance: str, kill: Act, mend: Act
) -> None:
    _, token = stdio_host.grant(instance)
    async with all_busy(stdio_host, instance, BUSY) as sessions:
        theirs = await asyncio.to_thread(_first_process, stdio_host, instance)
        assert len(theirs) == BUSY
        await asyncio.to_thread(kill, far, stdio_host)
        await asyncio.gather(*(each.broken() for each in sessions))
        # What the broker took as it ended is broken off (502); the rest finds no broker (503) or no session (404).
        assert {await each.refused() for each in sessions} <= {404, 502, 503}
        await asyncio.to_thread(mend, far, stdio_host)
        since = time.monotonic()
        assert await served(stdio_host, instance, token, since) < SOON
        assert {await each.refused() for each in sessions} == {404}
    await asyncio.to_thread(
        until, "their containers gone", lambda: theirs.keys() & set(far.containers()), lambda left: not left
    )
