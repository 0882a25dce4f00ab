"""Stdio servers through everything that is real: SDK client, gateway, session broker, DTMA and Docker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
import uuid
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from mcp.shared.exceptions import MCPError

from localstack import agent
from localstack.progress import SetupError
from support.engine.images import docker
from support.hosts.stdio_host import SESSIONS_TOLD, StdioHost, descriptors, told
from support.hosts.tiny_stdio_server import COMMAND
from support.poll import until
from toolbox_dtma.engine.names import LABEL_HOST

pytestmark = pytest.mark.integration


async def refused(stdio_host: StdioHost, instance: str, token: str) -> str:
    """Why an agent gets no session."""
    try:
        with agent.readable_errors():
            async with stdio_host.client(instance, token):
                raise AssertionError("it got a session")
    except SetupError as error:
        return str(error)


def alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


async def served_again(stdio_host: StdioHost, instance: str, token: str) -> None:
    """A new session is possible: the route comes back a moment after the broker."""
    deadline = time.monotonic() + 60
    while True:
        try:
            async with stdio_host.client(instance, token) as client:
                assert await told(client, "count") == "1"
                return
        except (ExceptionGroup, MCPError):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)


async def test_two_agents_have_two_containers_and_keep_apart(stdio_host: StdioHost, instance: str) -> None:
    seen = stdio_host.observed(instance)
    assert seen["container"] is None and seen["sessions"] == {"open": 0, "max": 4}
    assert [tool["name"] for tool in seen["probe"]["tools"]] == ["whoami", "count", "exit"]
    assert seen["probe"]["serverInfo"]["name"] == "tiny-stdio"
    until("no container of the probe", lambda: not stdio_host.sessions(instance))

    (_, one), (_, two) = stdio_host.grant(instance), stdio_host.grant(instance)
    async with stdio_host.client(instance, one) as first, stdio_host.client(instance, two) as second:
        where = {await told(first, "whoami"), await told(second, "whoami")}
        assert len(where) == 2 and where <= stdio_host.sessions(instance).keys()
        assert [await told(first, "count") for _ in range(3)] == ["1", "2", "3"]
        assert await told(second, "count") == "1"
        for container in stdio_host.sessions(instance).values():
            config = container["HostConfig"]
            assert config["LogConfig"]["Type"] == "none" and config["Memory"] == 32 * 1024 * 1024
            assert config["CapDrop"] == ["ALL"] and config["ReadonlyRootfs"] and config["PidsLimit"] == 32
        until("two open", lambda: stdio_host.observed(instance)["sessions"]["open"] == 2, seconds=SESSIONS_TOLD)
    until("no session but a spare", lambda: len(stdio_host.sessions(instance)) <= 1)


async def test_a_spare_serves_the_next_session_and_never_two(stdio_host: StdioHost, instance: str) -> None:
    _, token = stdio_host.grant(instance)
    until("no container of the probe", lambda: not stdio_host.sessions(instance))
    used: list[str] = []
    served = 0
    for _ in range(3):
        async with stdio_host.client(instance, token) as client:
            used.append(await told(client, "whoami"))
            spares = until("a spare", lambda: stdio_host.sessions(instance).keys() - set(used))
        async with stdio_host.client(instance, token) as client:
            used.append(await told(client, "whoami"))
        served += used[-1] in spares
    assert len(set(used)) == len(used)
    # Every 30 s a probe has a container for a moment, which may be taken for the spare: not twice.
    assert served >= 2


async def test_all_that_a_server_may_have_is_a_bound_and_a_closed_session_makes_room(
    stdio_host: StdioHost, instance: str
) -> None:
    _, token = stdio_host.grant(instance)
    async with AsyncExitStack() as three:
        for _ in range(3):
            await three.enter_async_context(stdio_host.client(instance, token))
        async with stdio_host.client(instance, token):
            why = await refused(stdio_host, instance, token)
            assert "All 4 sessions" in why
            # A probe may have one more for a moment.
            until("a container each", lambda: len(stdio_host.sessions(instance)) == 4)
        async with asyncio.timeout(60), stdio_host.client(instance, token) as client:
            assert await told(client, "count") == "1"


async def test_a_revoked_connection_loses_its_container_at_once(stdio_host: StdioHost, instance: str) -> None:
    (uid, token), (_, other) = stdio_host.grant(instance), stdio_host.grant(instance)
    async with stdio_host.client(instance, other) as kept:
        async with stdio_host.client(instance, token) as client:
            mine = await told(client, "whoami")
            pid = stdio_host.sessions(instance)[mine]["State"]["Pid"]
            await asyncio.to_thread(stdio_host.revoke, uid)
            await asyncio.to_thread(until, "ended", lambda: not alive(pid))
            with pytest.raises(Exception, match=r".+"):
                await told(client, "count")
        assert await told(kept, "count") == "1"
    until("its container to be gone", lambda: mine not in stdio_host.sessions(instance))


async def test_a_process_that_exits_ends_its_session_with_an_error(stdio_host: StdioHost, instance: str) -> None:
    _, token = stdio_host.grant(instance)
    async with stdio_host.client(instance, token) as client:
        mine = await told(client, "whoami")
        async with asyncio.timeout(60):
            with pytest.raises(MCPError, match="process has"):
                await client.call_tool("exit", {})
        until("its container to be gone", lambda: mine not in stdio_host.sessions(instance))
    async with stdio_host.client(instance, token) as client:
        assert await told(client, "count") == "1"


async def test_stopping_ends_every_session(stdio_host: StdioHost, instance: str) -> None:
    _, token = stdio_host.grant(instance)
    async with stdio_host.client(instance, token) as client:
        await told(client, "whoami")
        pids = [each["State"]["Pid"] for each in stdio_host.sessions(instance).values() if each["State"]["Running"]]
        assert pids
        await asyncio.to_thread(stdio_host.deploy, instance, generation=2, state="Stopped")
        await asyncio.to_thread(until, "ended", lambda: [pid for pid in pids if alive(pid)], lambda left: not left)
    stdio_host.await_phase(instance, "Stopped", generation=2)
    stdio_host.await_no_sessions(instance)
    stdio_host.deploy(instance, generation=3)
    stdio_host.await_phase(instance, "Ready", generation=3)
    async with stdio_host.client(instance, token) as client:
        assert await told(client, "count") == "1"


async def test_a_changed_environment_is_a_new_deployment(stdio_host: StdioHost, instance: str) -> None:
    stdio_host.deploy(instance, generation=2, env=[{"name": "VERSION", "value": "2"}], inputsHash="1" * 64)
    seen = stdio_host.await_phase(instance, "Ready", generation=2)
    assert seen["probe"]["serverInfo"]["version"] == "2"


def test_a_server_that_takes_longer_to_start_than_a_probe_is_otherwise_given_is_ready(
    stdio_host: StdioHost, instance: str
) -> None:
    command = ["sh", "-c", 'sleep 11; exec "$@"', "sh", *COMMAND]
    stdio_host.deploy(instance, generation=2, command=command, inputsHash="2" * 64)
    assert stdio_host.await_phase(instance, "Ready", generation=2)["probe"]["ok"]


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"command": ["no-such-program"]}, "StartFailed", "no-such-program"),
        ({"command": ["sh", "-c", "echo 'no API key' >&2; exit 4"]}, "ContainerExited", "code 4"),
        ({"command": ["sh", "-c", "echo this is no message; cat"]}, "ProbeFailed", ""),
        ({"image": "127.0.0.1:1/none:1"}, "ImagePullFailed", "127.0.0.1:1"),
    ],
)
def test_what_is_wrong_with_a_server_is_said_in_its_report(
    stdio_host: StdioHost, changes: dict[str, Any], reason: str, words: str
) -> None:
    name = str(uuid.uuid4())
    stdio_host.deploy(name, **changes)
    try:
        # The first report may say less: how a process ended is Docker's to tell, which it may do later.
        until(
            f"{reason}: {words}",
            lambda: stdio_host.observed(name),
            lambda seen: (seen["phase"], seen["reason"], words in seen["message"]) == ("Error", reason, True),
            seconds=90,
        )
    finally:
        stdio_host.remove(name)
    assert not stdio_host.sessions(name)


async def test_fifty_sessions_leave_nothing_behind(stdio_host: StdioHost, instance: str) -> None:
    _, token = stdio_host.grant(instance)
    assert stdio_host.host.dtma is not None

    async def one() -> None:
        async with stdio_host.client(instance, token) as client:
            assert await told(client, "count") == "1"

    async def settled() -> None:
        def alone() -> bool:
            return len(stdio_host.sessions(instance)) <= 1

        await asyncio.to_thread(until, "no session but a spare", alone)

    await asyncio.gather(one(), one(), one())
    await settled()
    parts = {"dtma": stdio_host.host.dtma.pid, "broker": stdio_host.broker}
    before = {part: descriptors(pid) for part, pid in parts.items()}
    threads = {part: len(os.listdir(f"/proc/{pid}/task")) for part, pid in parts.items()}
    networks = docker("network", "ls", "--quiet", "--filter", f"label={LABEL_HOST}={stdio_host.host.host_id}")
    for _ in range(17):
        await asyncio.gather(one(), one(), one())
    await settled()
    assert docker("network", "ls", "--quiet", "--filter", f"label={LABEL_HOST}={stdio_host.host.host_id}") == networks
    for part, pid in parts.items():
        # Connections to Docker, and of the gateway, are kept for some seconds for the next call.
        await asyncio.to_thread(
            until,
            f"no more descriptors of {part} than {before[part]} and some",
            lambda pid=pid: descriptors(pid),
            lambda count, most=before[part] + 6: count <= most,
        )
        assert len(os.listdir(f"/proc/{pid}/task")) <= threads[part] + 2, part


async def test_a_killed_broker_takes_its_sessions_along_and_comes_back(stdio_host: StdioHost, instance: str) -> None:
    _, token = stdio_host.grant(instance)
    async with stdio_host.client(instance, token) as client:
        mine = await told(client, "whoami")
        killed = stdio_host.broker
        os.kill(killed, signal.SIGKILL)
        await asyncio.to_thread(until, "its container to be gone", lambda: mine not in stdio_host.sessions(instance))
    until("another broker", lambda: stdio_host.broker not in (0, killed))
    stdio_host.await_phase(instance, "Ready")
    await served_again(stdio_host, instance, token)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_no_session_outlives_dtma_for_longer_than_its_next_start(
    stdio_host: StdioHost, instance: str, how: signal.Signals
) -> None:
    _, token = stdio_host.grant(instance)
    host = stdio_host.host
    async with stdio_host.client(instance, token) as client:
        mine, broker = await told(client, "whoami"), stdio_host.broker
        assert host.dtma is not None
        if how is signal.SIGKILL:
            host.dtma.kill()
        else:
            log, before = host.dtma.log, host.dtma.log.stat().st_size
            host.dtma.stop(grace=60)
            # Docker has 8 s to remove them; what it does not do in time is left over, and said.
            said = log.read_bytes()[before:].decode(errors="replace")
            assert not stdio_host.sessions(instance) or "left over for the next start" in said
        until("its broker to end with it", lambda: not alive(broker))
        await asyncio.to_thread(host.start_dtma)
        # After 30 s it would be found in any case.
        await asyncio.to_thread(
            until, "its container to be gone", lambda: mine not in stdio_host.sessions(instance), seconds=25
        )
    seen = stdio_host.await_phase(instance, "Ready")
    assert seen["sessions"]["open"] == 0
    await served_again(stdio_host, instance, token)


def test_the_broker_is_nobody_and_holds_no_way_to_docker(stdio_host: StdioHost, instance: str) -> None:
    del instance
    process = Path(f"/proc/{stdio_host.broker}")
    lines = (process / "status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"61750"}
    assert status["Groups"].split() == [] and int(status["CapEff"], 16) == 0
    targets: list[str] = []
    for descriptor in (process / "fd").iterdir():
        # A connection may be closed between two looks.
        with contextlib.suppress(FileNotFoundError):
            targets.append(str(descriptor.readlink()))
    assert targets
    assert not [target for target in targets if "docker" in target]
