"""Gateway workers as real processes: killed, stopped, foreign, gone with a restart."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.dtma.host import DtmaHost, code_of, eventually, grant_body, instance_body
from support.dtma.worker import ScriptedWorker
from toolbox_dtma.link.framing import read_frame
from toolbox_dtma.policy.process import LinuxProcesses, ProcessId
from toolbox_dtma.settings import Timings
from toolbox_dtma.wire import GatewayFacts

pytestmark = pytest.mark.component

SCRIPT = Path(__file__).parents[2] / "support" / "dtma" / "worker.py"
TIMINGS = Timings(ack_deadline=8, worker_lost=60, silence=1.0, first_sight=0.1, graceful_stop=1)


class Workers:
    """Started processes, all killed at the end."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, socket: Path) -> subprocess.Popen[bytes]:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen([sys.executable, str(SCRIPT), str(socket)], env=environment)
        self.started.append(process)
        return process

    def end(self) -> None:
        for process in self.started:
            process.kill()
            process.wait(timeout=10)


@pytest.fixture
def workers() -> Generator[Workers]:
    workers = Workers()
    yield workers
    workers.end()


async def real(
    host: DtmaHost, workers: Workers, number: int = 1, timings: Timings = TIMINGS
) -> list[subprocess.Popen[bytes]]:
    """The host again, with the kernel's view of processes, this many workers and one grant."""
    await host.stop()
    host.processes, host.timings = LinuxProcesses(), timings
    await host.start()
    async with host.client() as client:
        (await client.put("/v2/instances/i-1", json=instance_body())).raise_for_status()
    started = [workers.start(host.socket_path) for _ in range(number)]
    await current(host, number)
    assert (await put(host)).status_code == 200
    return started


async def current(host: DtmaHost, number: int) -> None:
    async def gateway() -> dict[str, Any]:
        async with host.client() as client:
            return (await client.get("/v2/host")).json()["gateway"]

    await eventually(gateway, lambda seen: seen["workersCurrent"] == number, f"{number} current workers", 30)


async def put(host: DtmaHost) -> httpx.Response:
    async with host.client() as client:
        return await client.put("/v2/grants/c-1", json=grant_body())


async def revoke(host: DtmaHost) -> httpx.Response:
    async with host.client() as client:
        return await client.delete("/v2/grants/c-1", params={"namespace": "team-a", "name": "bot-time"})


async def test_a_stopped_process_is_killed_and_the_revocation_goes_through(host: DtmaHost, workers: Workers) -> None:
    # The other one may be held up for some time by a busy machine, too.
    stopped, other = await real(host, workers, 2, TIMINGS.model_copy(update={"silence": 4.0}))
    stopped.send_signal(signal.SIGSTOP)
    assert (await revoke(host)).status_code == 204
    assert stopped.wait(timeout=10) == -signal.SIGKILL
    assert other.poll() is None


async def test_a_process_that_hangs_while_nothing_is_due_is_killed_and_one_that_answers_is_not(
    host: DtmaHost, workers: Workers
) -> None:
    stopped, other = await real(host, workers, 2, TIMINGS.model_copy(update={"hung": 6.0}))
    stopped.send_signal(signal.SIGSTOP)
    await current(host, 1)
    assert await asyncio.to_thread(stopped.wait, 20) == -signal.SIGKILL
    assert other.poll() is None


async def test_a_gateway_without_a_worker_for_a_while_is_down_and_every_owner_is_told(
    host: DtmaHost, workers: Workers
) -> None:
    (worker,) = await real(host, workers, 1, TIMINGS.model_copy(update={"gateway_away": 0.3}))

    async def available() -> bool:
        async with host.client() as client:
            return (await client.get("/v2/host")).json()["gateway"]["available"]

    assert await available()
    async with asyncio.timeout(30), host.client() as client, client.stream("GET", "/v2/events") as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        worker.kill()
        async for line in lines:
            if line == "event: gateway":
                break
        told = GatewayFacts.model_validate_json((await anext(lines)).removeprefix("data: "))
        assert not told.available
    assert not await available()
    workers.start(host.socket_path)
    await eventually(available, bool, "available again", 30)


async def test_a_process_that_died_is_not_waited_for(host: DtmaHost, workers: Workers) -> None:
    (worker,) = await real(host, workers)
    worker.kill()
    worker.wait(timeout=10)
    assert (await revoke(host)).status_code == 204


async def test_after_a_restart_a_process_of_before_is_waited_for_until_it_is_dead(
    host: DtmaHost, workers: Workers
) -> None:
    (worker,) = await real(host, workers)
    worker.send_signal(signal.SIGSTOP)
    await host.restart()
    with host.timed(ack_deadline=0.6):
        assert code_of(await revoke(host)) == "AckPending"
    worker.kill()
    worker.wait(timeout=10)
    assert (await revoke(host)).status_code == 204


async def test_a_socket_peer_of_another_user_gets_no_policy(host: DtmaHost) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root to become another user")
    code = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        "os.write(1, b'in'); sys.exit(len(s.recv(1)))"
    )

    def foreign(*, refused_by_mode: bool) -> subprocess.CompletedProcess[bytes]:
        os.chmod(host.socket_path.parent, 0o750 if refused_by_mode else 0o755)
        os.chmod(host.socket_path, 0o660 if refused_by_mode else 0o666)
        return subprocess.run(
            ["/usr/bin/python3", "-c", code, str(host.socket_path)],
            user=65534,
            group=65534,
            extra_groups=[],
            capture_output=True,
            timeout=10,
            check=False,
        )

    by_mode = await asyncio.to_thread(foreign, refused_by_mode=True)
    assert b"Permission denied" in by_mode.stderr
    by_credentials = await asyncio.to_thread(foreign, refused_by_mode=False)
    assert (by_credentials.stdout, by_credentials.returncode) == (b"in", 0), by_credentials.stderr


@pytest.mark.parametrize("frame", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x02{}", b"\x00\x00\x00\x05nope!", b"\x00\x00"])
async def test_a_peer_that_does_not_speak_the_protocol_is_hung_up_on(host: DtmaHost, frame: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(host.socket_path)
    writer.write(frame)
    writer.write_eof()
    async with asyncio.timeout(20):
        assert await read_frame(reader) is None
    writer.close()


async def test_a_worker_that_acknowledges_the_future_is_hung_up_on(host: DtmaHost) -> None:
    worker = ScriptedWorker(acks=False)
    task = asyncio.create_task(worker.run(host.socket_path))

    async def loaded() -> int:
        return worker.snapshots

    await eventually(loaded, bool, "loaded")
    worker.revision += 1000
    await worker.acknowledge()
    async with asyncio.timeout(20):
        await task


def test_a_reused_pid_is_another_process() -> None:
    processes = LinuxProcesses()
    me = processes.identify(os.getpid())
    assert me is not None
    assert not processes.is_dead(me)
    assert processes.is_dead(ProcessId(me.pid, me.start_time + 1, me.machine_boot))
    assert processes.is_dead(ProcessId(me.pid, me.start_time, "another-boot"))
    processes.kill(ProcessId(me.pid, me.start_time + 1, me.machine_boot))


def test_a_zombie_is_dead() -> None:
    processes = LinuxProcesses()
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    identity = processes.identify(child.pid)
    assert identity is not None
    processes.kill(identity)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert processes.is_dead(identity)
    assert processes.identify(child.pid) is None
    child.wait(timeout=10)
    assert child.stdin is not None
    child.stdin.close()


async def test_a_process_that_no_longer_counts_never_serves_again(host: DtmaHost, workers: Workers) -> None:
    (worker,) = await real(host, workers)
    worker.send_signal(signal.SIGSTOP)
    host.timings = TIMINGS.model_copy(update={"worker_lost": 0.5})
    await host.restart()
    assert (await revoke(host)).status_code == 204
    # Continued now, it would take the loss of its socket for new, and serve what was revoked for 30 s more.
    assert worker.wait(timeout=10) == -signal.SIGKILL
