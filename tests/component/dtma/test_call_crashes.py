"""Call records while DTMA is killed, and with real gateway workers."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from localstack import runtime
from localstack.processes import Command, User, launcher
from support.dtma.calls import entry, told
from support.dtma.host import DtmaHost, eventually, grant_body, instance_body
from support.dtma.worker import ScriptedWorker, connected
from support.gateway.mcp_http import call
from support.gateway.mcp_servers import real_server
from support.gateway.world import UNPRIVILEGED, credential
from toolbox_dtma.policy.process import LinuxProcesses
from toolbox_dtma.state.files import read_record, write_record
from toolbox_dtma.state.records import HostRecord
from toolbox_dtma.wire import CallBatch, CallRecord

pytestmark = pytest.mark.component


class Dtma:
    """`toolbox-dtma serve` as a process, on a folder whose engine is away."""

    def __init__(self, folder: Path):
        self.host = DtmaHost(folder)
        path = self.host.state_dir / "host.json"
        away = f"unix://{folder}/no-docker.sock"
        write_record(path, read_record(path, HostRecord).model_copy(update={"docker_url": away}))
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start and wait until it serves."""
        self._spawn()

        async def ready() -> bool:
            assert self.process is not None and self.process.poll() is None
            try:
                async with self.host.client() as client:
                    return (await client.get("/readyz")).status_code == 200
            except httpx.TransportError:
                return False

        await eventually(ready, bool, "ready", 30)

    def _spawn(self) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "toolbox_dtma", "serve", "--state-dir", str(self.host.state_dir)]
        with (self.host.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stderr=log)

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)


@pytest.fixture
def dtma(open_folder: Path) -> Generator[Dtma]:
    dtma = Dtma(open_folder)
    yield dtma
    dtma.kill()


async def everything(host: DtmaHost) -> list[CallRecord]:
    found: list[CallRecord] = []
    cursor = ""
    while True:
        async with host.client() as client:
            answer = await client.get("/v2/calls", params={"after": cursor})
        batch = CallBatch.model_validate_json(answer.raise_for_status().content)
        if not batch.items:
            assert batch.dropped == 0
            return found
        found += batch.items
        cursor = batch.cursor


async def test_dtma_killed_at_any_moment_loses_and_doubles_nothing(dtma: Dtma) -> None:
    await dtma.start()
    host = dtma.host
    await host.claimed()
    async with connected(ScriptedWorker(), host.socket_path), host.client() as client:
        (await client.put("/v2/instances/i-1", json=instance_body())).raise_for_status()
        (await client.put("/v2/grants/c-1", json=grant_body())).raise_for_status()
    told_already = 0
    enough = asyncio.Event()

    async def tell() -> None:
        """As a worker does: the same again until it is acknowledged. Also the last: DTMA may have it on disk."""
        nonlocal told_already
        message = told(1, entry(tool="0-a"), entry(tool="0-b"))
        while True:
            try:
                async with connected(ScriptedWorker(), host.socket_path) as worker:
                    while True:
                        await worker.tell(message)
                        told_already += 1
                        if enough.is_set():
                            return
                        first, second = entry(tool=f"{told_already}-a"), entry(tool=f"{told_already}-b")
                        message = told(told_already + 1, first, second)
            except (OSError, AssertionError, TimeoutError):
                # DTMA is away.
                await asyncio.sleep(0.05)

    telling = asyncio.create_task(tell())
    moments = random.Random(7)
    for _ in range(4):
        before = told_already

        async def progress(before: int = before) -> bool:
            return told_already > before + 3

        await eventually(progress, bool, "records are told", 30)
        await asyncio.sleep(moments.uniform(0.0, 0.03))
        dtma.kill()
        await dtma.start()
    enough.set()
    await asyncio.wait_for(telling, 30)
    expected = Counter(f"{number}-{letter}" for number in range(told_already) for letter in "ab")
    assert Counter(record.tool for record in await everything(host)) == expected


@contextmanager
def gateway_of(host: DtmaHost, workers: int) -> Generator[subprocess.Popen[bytes]]:
    """The real gateway, as its own user."""
    user = User(UNPRIVILEGED, UNPRIVILEGED)
    config = host.folder / "gateway" / "gateway.json"
    settings = json.loads(config.read_text()) | {"workers": workers}
    config.write_text(json.dumps(settings))
    python = runtime.for_user(user)
    argv = [python.python, "-m", "toolbox_dtma.gateway", "--config", str(config)]
    with (host.folder / "gateway.log").open("ab") as log:
        process = subprocess.Popen(
            launcher(Command("gateway", argv, user=user)),
            env={"PATH": os.environ["PATH"], **python.env},
            cwd=host.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)


async def test_an_orderly_stop_of_real_workers_loses_nothing(open_folder: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root to run the gateway as another user")
    host = DtmaHost(open_folder, processes=LinuxProcesses())
    path = host.state_dir / "host.json"
    uid = {"gateway_uid": UNPRIVILEGED, "gateway_gid": UNPRIVILEGED}
    write_record(path, read_record(path, HostRecord).model_copy(update=uid))
    await host.start()
    await host.claimed()
    token = "mtb_of-this-test"
    argument = "an argument that nobody may keep"
    names = [f"tool-{number}" for number in range(90)]
    try:
        with real_server() as server:
            async with host.client() as client:
                with gateway_of(host, 3) as gateway:
                    instance = instance_body(port=server.port)
                    (await client.put("/v2/instances/i-1", json=instance)).raise_for_status()
                    credentials = [credential(token).model_dump(mode="json", by_alias=True)]
                    grant = grant_body(credentials=credentials)

                    async def current() -> int:
                        return (await client.get("/v2/host")).json()["gateway"]["workersCurrent"]

                    await eventually(current, lambda number: number == 3, "three workers", 60)
                    (await client.put("/v2/grants/c-1", json=grant)).raise_for_status()
                    settings = json.loads((host.folder / "gateway" / "gateway.json").read_text())
                    url = f"https://127.0.0.1:{settings['listenPort']}/servers/i-1/mcp"
                    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json, text/event-stream"}

                    trust = ssl.create_default_context(cafile=str(host.state_dir / "ca.crt"))

                    async def one(name: str) -> None:
                        # Without a session the server refuses it: that is an answer like any other.
                        async with httpx.AsyncClient(verify=trust, timeout=15, trust_env=False) as http:
                            answer = await http.post(url, json=call(name, {"text": argument}), headers=headers)
                            assert answer.status_code == 400, answer.text

                    await asyncio.gather(*map(one, names))
                    gateway.send_signal(signal.SIGTERM)
                    assert await asyncio.to_thread(gateway.wait, 30) == 0
        records = await everything(host)
        assert Counter(record.tool for record in records) == Counter(names)
        assert {record.outcome.value for record in records} == {"rpc_error"}
        spool = b"".join(path.read_bytes() for path in (host.state_dir / "calls").iterdir())
        log = (host.folder / "gateway.log").read_bytes()
        for secret in (argument.encode(), token.encode()):
            assert secret not in spool and secret not in log
    finally:
        await host.stop()
