"""A whole gateway and DTMA through all that can go wrong, with a marker in what must never be written down."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import socket
import ssl
import subprocess
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from aiohttp import web

from localstack import runtime
from localstack.processes import Command, User, launcher
from support.dtma.host import FAST, DtmaHost, eventually, grant_body, instance_body
from support.gateway.mcp_http import call, request
from support.gateway.mcp_servers import ScriptedServer, Seen, raw_answer, scripted_server
from support.pairs import replace
from toolbox_dtma.policy.process import LinuxProcesses
from toolbox_dtma.state.files import read_record, write_record
from toolbox_dtma.state.records import HostRecord

pytestmark = [
    pytest.mark.component,
    pytest.mark.skipif(os.getuid() != 0, reason="starts the gateway as another user, which needs root"),
]

MARKER = "zqMARKERqz"
FORGED = "zqFORGEDqz"
"""A tool that is not there: the record of a call holds its name, and nothing else may."""
TOKEN, REVOKED = f"mtb_{MARKER}-good", f"mtb_{MARKER}-revoked"
GATEWAY = User(65534, 65534)
START = 90.0
"""Seconds that workers may take on a busy machine."""


class System:
    """A gateway of real processes on a DTMA of this process, with a server that a test scripts behind it."""

    def __init__(self, host: DtmaHost, script: ScriptedServer):
        self.host = host
        self.script = script
        self.config = host.folder / "gateway" / "gateway.json"
        self.log = host.folder / "gateway.log"
        self.port: int = json.loads(self.config.read_text())["listenPort"]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/servers/i-1/mcp"

    def start(self) -> None:
        found = runtime.for_user(GATEWAY)
        argv = [found.python, "-m", "toolbox_dtma.gateway", "--config", str(self.config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                launcher(Command("gateway", argv, user=GATEWAY)),
                env={"PATH": os.environ["PATH"], **found.env},
                cwd=self.host.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(30)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def client(self) -> httpx.AsyncClient:
        trust = ssl.create_default_context(cafile=str(self.host.state_dir / "ca.crt"))
        return httpx.AsyncClient(verify=trust, trust_env=False, timeout=30)

    async def until(self, what: str, look: Callable[[], Any]) -> Any:
        async def looked() -> Any:
            return look()

        return await eventually(looked, bool, what, START)

    async def workers(self, number: int) -> None:
        async def current() -> int:
            async with self.host.client() as client:
                return (await client.get("/v2/host")).json()["gateway"]["workersCurrent"]

        await eventually(current, lambda seen: seen == number, f"{number} workers", START)


def grant(token: str, **changes: Any) -> dict[str, Any]:
    digest = hashlib.sha256(token.encode()).hexdigest()
    return grant_body(credentials=[{"type": "sha256", "value": digest}], **changes)


@pytest_asyncio.fixture
async def system(open_folder: Path) -> AsyncGenerator[System]:
    host = DtmaHost(
        open_folder, processes=LinuxProcesses(), timings=FAST.model_copy(update={"probe_start_deadline": 0.6})
    )
    record = read_record(host.state_dir / "host.json", HostRecord)
    theirs = {"gateway_uid": GATEWAY.uid, "gateway_gid": GATEWAY.gid}
    write_record(host.state_dir / "host.json", record.model_copy(update=theirs))
    await host.start()
    await host.claimed()
    with scripted_server() as script:
        system = System(host, script)
        await asyncio.to_thread(system.start)
        try:
            await system.workers(2)
            async with host.client() as client:
                (await client.put("/v2/instances/i-1", json=instance_body(port=script.port))).raise_for_status()
                (await client.put("/v2/grants/c-1", json=grant(TOKEN))).raise_for_status()
                (await client.put("/v2/grants/c-2", json=grant(REVOKED, name="other"))).raise_for_status()
                (await client.delete("/v2/grants/c-2", params={"namespace": "team-a", "name": "other"}))
            yield system
        finally:
            # No probe is under way when the server goes.
            async with host.client() as client:
                await client.delete("/v2/instances/i-1", params={"uid": "uid-1", "namespace": "team-a", "name": "time"})
            await asyncio.to_thread(system.stop)
            await host.stop()


def headers(token: str = TOKEN, **more: str) -> dict[str, str]:
    known = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "Accept": "application/json"}
    return known | {name.replace("_", "-"): value for name, value in more.items()}


ARGUMENTS = call("get_time", {"secret": MARKER})

ASKED: list[tuple[dict[str, Any], int]] = [
    ({"headers": headers(), "json": ARGUMENTS}, 202),
    ({"headers": headers(f"mtb_{MARKER}-foreign"), "json": ARGUMENTS}, 401),
    ({"headers": headers(REVOKED), "json": ARGUMENTS}, 401),
    ({"headers": {**headers(), "Authorization": f"Basic {MARKER}"}, "json": ARGUMENTS}, 401),
    ({"headers": headers(), "path": f"/servers/{MARKER}/mcp", "json": ARGUMENTS}, 403),
    ({"headers": headers(), "path": f"/{MARKER}?token={MARKER}", "json": ARGUMENTS}, 404),
    ({"headers": headers(), "path": f"/servers/i-1/mcp?token={MARKER}", "json": ARGUMENTS}, 202),
    ({"headers": headers(), "method": "PATCH", "json": ARGUMENTS}, 405),
    ({"headers": headers(), "method": MARKER.upper(), "json": ARGUMENTS}, 400),
    ({"headers": headers(Mcp_Session_Id=f"mt1.{MARKER}"), "json": ARGUMENTS}, 404),
    ({"headers": headers(Last_Event_ID=MARKER), "method": "GET"}, 400),
    ({"headers": headers(Mcp_Method=MARKER), "json": ARGUMENTS}, 400),
    ({"headers": headers(Mcp_Name=MARKER), "json": ARGUMENTS}, 400),
    ({"headers": headers(MCP_Protocol_Version=MARKER), "json": ARGUMENTS}, 400),
    ({"headers": headers(Content_Encoding=MARKER), "json": ARGUMENTS}, 400),
    ({"headers": {**headers(), "Content-Type": MARKER}, "content": MARKER.encode()}, 400),
    ({"headers": headers(), "content": MARKER.encode()}, 400),
    ({"headers": headers(), "content": b'{"jsonrpc":"2.0","id":1,"method":"%s","method":"x"}' % MARKER.encode()}, 400),
    ({"headers": headers(), "content": b"\xff" + MARKER.encode()}, 400),
    ({"headers": headers(), "content": MARKER.encode() * 500_000}, 413),
    ({"headers": headers(), "json": [ARGUMENTS] * 60}, 400),
]

NARROW = {"tools": {"allow": ["get_time"], "deny": []}}

DENIED: list[tuple[dict[str, Any], int]] = [
    ({"headers": headers(), "json": call(FORGED, {"secret": MARKER})}, 200),
    ({"headers": headers(), "json": request(MARKER, {"secret": MARKER})}, 200),
    ({"headers": headers(), "json": [call(FORGED, {"secret": MARKER})]}, 200),
]


async def broken(asked: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
    """Ends in the middle of its answer."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = 999
    await response.prepare(asked)
    await response.write(MARKER.encode())
    assert asked.transport is not None
    asked.transport.abort()
    return response


async def crashing(_asked: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
    """What a server does that raises."""
    return web.Response(status=500, text=MARKER)


LIST = request("tools/list", {"secret": MARKER})
ANSWERED = [
    (crashing, ARGUMENTS),
    (broken, ARGUMENTS),
    (raw_answer(MARKER.encode(), "application/json", status=302, headers={"Location": f"/{MARKER}"}), ARGUMENTS),
    (raw_answer(MARKER.encode(), "application/json", status=401), ARGUMENTS),
    (raw_answer(MARKER.encode(), "application/json", headers={"Content-Encoding": MARKER}), ARGUMENTS),
    (raw_answer(b"{}", "application/json", headers={"Mcp-Session-Id": MARKER + "\x7f"}), ARGUMENTS),
    (raw_answer(MARKER.encode(), "application/json"), LIST),
    (raw_answer(b"{}", MARKER), LIST),
    (raw_answer(b"data: " + MARKER.encode() + b"\n\n", "text/event-stream"), LIST),
    (raw_answer(b"data: " + MARKER.encode(), "text/event-stream"), LIST),
    (raw_answer(MARKER.encode(), MARKER, status=503), LIST),
]


async def ask(system: System, http: httpx.AsyncClient, what: dict[str, Any]) -> int:
    """The status, 0 for a connection that was cut."""
    options = dict(what)
    url = f"https://127.0.0.1:{system.port}{options.pop('path', '/servers/i-1/mcp')}"
    try:
        return (await http.request(options.pop("method", "POST"), url, **options)).status_code
    except httpx.TransportError:
        return 0


def raw(system: System, *pieces: bytes, tls: bool = True) -> None:
    """Bytes that no HTTP client would send; the gateway closes."""
    trust = ssl.create_default_context(cafile=str(system.host.state_dir / "ca.crt"))
    with socket.create_connection(("127.0.0.1", system.port), timeout=30) as plain:
        connection = trust.wrap_socket(plain, server_hostname="localhost") if tls else plain
        with connection:
            try:
                for piece in pieces:
                    connection.sendall(piece)
                while connection.recv(65536):
                    pass
            except OSError:
                return


async def test_no_marker_is_in_any_log_metric_or_state(
    system: System, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    host, marker = system.host, MARKER.encode()
    async with system.client() as http:
        asked = [await ask(system, http, what) for what, _ in ASKED]
        assert asked == [status for _, status in ASKED]

        async with host.client() as client:
            narrow = grant(TOKEN, generation=2, expose=NARROW)
            (await client.put("/v2/grants/c-1", json=narrow)).raise_for_status()
        assert [await ask(system, http, what) for what, _ in DENIED] == [status for _, status in DENIED]
        for answer, message in ANSWERED:
            system.script.answer = answer
            await ask(system, http, {"headers": headers(), "json": message})

        # The probes meet the last of these servers: a conversation that fails.
        async def probed() -> str:
            async with host.client() as client:
                return (await client.get("/v2/instances/i-1")).json()["observed"]["phase"]

        system.script.answer = raw_answer(MARKER.encode(), "application/json")
        await eventually(probed, lambda phase: phase == "Error", "the probe fails", START)

    line = b"POST /" + marker + b" HTTP/1.1\r\nHost: " + marker + b"\r\nX-" + marker + b": " + marker + b"\r\n"
    await asyncio.to_thread(raw, system, line + b"X: " + marker * 9000 + b"\r\n\r\n")
    await asyncio.to_thread(raw, system, line + b"Transfer-Encoding: " + marker + b"\r\nContent-Length: 1\r\n\r\nx")
    await asyncio.to_thread(raw, system, marker + b"\r\n\r\n")
    await asyncio.to_thread(raw, system, marker * 100, tls=False)

    async def scraped() -> str:
        async with host.client() as client:
            return (await client.get("/metrics")).text

    counted = 'dtma_gateway_clients_cut_total{reason="handshake"}'
    await eventually(scraped, lambda text: counted in text, "what was cut is counted", START)

    async with host.client(token=MARKER) as client:
        assert (await client.get(f"/v2/instances/{MARKER}")).status_code == 401
    async with host.client() as client:
        assert (await client.put(f"/v2/grants/{MARKER}", content=marker)).status_code == 422
        bad = grant_body(credentials=[{"type": "sha256", "value": MARKER}])
        assert (await client.put("/v2/grants/c-9", json=bad)).status_code == 422
        assert (await client.put("/v2/grants/c-9", json={**bad, MARKER: MARKER})).status_code == 422

    # Files that cannot serve, a reload with them, a crash, and DTMA gone for a moment.
    key = host.folder / "gateway" / "tls.key"
    good = key.read_bytes()
    replace(key, f"-----BEGIN PRIVATE KEY-----\n{MARKER}\n-----END PRIVATE KEY-----\n".encode())
    await system.until("refused", lambda: [e for e in system.events() if e["event"] == "certificate-refused"])
    assert system.process is not None
    supervisor = next(event["pid"] for event in system.events() if event["role"] == "supervisor")
    os.kill(supervisor, signal.SIGHUP)
    await system.until("refused", lambda: [e for e in system.events() if e["event"] == "reload-refused"])
    replace(key, good)
    await system.until("accepted", lambda: [e for e in system.events() if e["event"] == "certificate-accepted"])
    os.kill(supervisor, signal.SIGHUP)
    await system.until("reloaded", lambda: [e for e in system.events() if e["event"] == "reloaded"])
    victim = [event["pid"] for event in system.events() if event["event"] == "serving"][-1]
    os.kill(victim, signal.SIGSEGV)
    await system.until("replaced", lambda: [e for e in system.events() if e["event"] == "worker-ended"])
    await system.workers(2)
    await host.restart()
    await system.until("back", lambda: [e for e in system.events() if e["event"] == "dtma-back"])

    metrics = await eventually(scraped, lambda text: "gateway_certificate_expiry" in text, "workers tell of it", START)
    out, err = capfd.readouterr()
    logs = {"gateway": system.log.read_text(), "DTMA": out + err + caplog.text, "metrics": metrics}
    told = {event.get("reason") for event in system.events()}
    assert {"unauthorized", "body", "headers", "session", "event-id", "denied"} <= told, told
    assert "refused" in logs["gateway"] and "gateway worker connected" in logs["DTMA"] and "dtma_requests" in metrics
    found = [
        f"{name}: {line}"
        for name, text in logs.items()
        for line in text.splitlines()
        if MARKER in line or FORGED in line
    ]
    assert found == []
    kept = [path for path in host.folder.rglob("*") if path.is_file()]
    assert len(kept) > 10
    assert [str(path) for path in kept if marker.lower() in path.read_bytes().lower()] == []
    recorded = {path.parent.name for path in kept if FORGED.encode() in path.read_bytes()}
    assert recorded == {"calls"}, "the denied calls, in the record alone"
