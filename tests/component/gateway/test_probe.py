"""The readiness probe, against good servers and bad ones."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web

from localstack.ports import free_port
from support.gateway.mcp_http import MODERN
from support.gateway.mcp_servers import Answer, RealServer, ScriptedServer, Seen, raw_answer
from support.gateway.threads import eventually
from support.gateway.world import World, running_world
from toolbox_dtma.gateway import probing
from toolbox_dtma.link.messages import ProbeRequest, Surface

pytestmark = pytest.mark.component

List = Callable[[str | None], dict[str, Any]]


def mcp(list_tools: List, *, session: str = "s", capabilities: dict[str, Any] | None = None) -> Answer:
    """A small server of the handshake era whose tools/list answers as told, by cursor."""

    async def answer(_request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if seen.method != "POST":
            return web.Response(status=405 if seen.method == "GET" else 200)
        message = json.loads(seen.body)
        match message["method"]:
            case "initialize":
                result: dict[str, Any] = {
                    "protocolVersion": "2025-06-18",
                    "capabilities": {"tools": {}} if capabilities is None else capabilities,
                    "serverInfo": {"name": "scripted", "version": "9"},
                }
            case "tools/list":
                params: dict[str, Any] = message.get("params") or {}
                result = list_tools(params.get("cursor"))
            case method if "id" in message:
                error = {"code": -32601, "message": method}
                return web.json_response({"jsonrpc": "2.0", "id": message["id"], "error": error})
            case _:
                return web.Response(status=202)
        document = {"jsonrpc": "2.0", "id": message["id"], "result": result}
        return web.json_response(document, headers={"Mcp-Session-Id": session})

    return answer


def tools(*names: str, **more: Any) -> dict[str, Any]:
    """A page of tools."""
    return {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in names], **more}


def names_in(surface: Surface) -> Surface:
    """A surface without the hashes of its tools."""
    assert len(surface.hashes) == len(surface.tools)
    return surface.model_copy(update={"hashes": ()})


def test_a_real_server_is_ready_with_all_its_tools(gateway: World, everyday: RealServer) -> None:
    result = gateway.dtma.probe(everyday.port, "/mcp")
    report = result.report
    assert (report.ok, report.protocol_version, report.tools_total, result.refused) == (True, MODERN, 4, False)
    assert names_in(result.surface) == everyday.surface
    assert report.server_info is not None
    assert (report.server_info.name, report.server_info.version) == ("everyday", "1.2.3")
    assert report.tools[0].description == "The time, which never changes here."
    assert "tools" in report.capabilities


def test_every_page_is_read_and_the_session_closed(gateway: World, script: ScriptedServer) -> None:
    script.answer = mcp(lambda cursor: tools("c") if cursor else tools("a", "b", nextCursor="more"))
    result = gateway.dtma.probe(script.port, "/mcp")
    assert (result.report.ok, result.report.protocol_version, result.surface.tools) == (
        True,
        "2025-06-18",
        ("a", "b", "c"),
    )
    assert script.seen[-1].method == "DELETE" and script.seen[-1].all("Mcp-Session-Id") == ["s"]
    assert {host for seen in script.seen for host in seen.all("Host")} == {f"localhost:{script.port}"}
    assert {value for seen in script.seen for value in seen.all("Accept-Encoding")} == {"identity"}


def test_many_tools_are_all_in_the_surface_and_cut_in_the_report(gateway: World, script: ScriptedServer) -> None:
    names = [f"tool-{n}" for n in range(1000)]
    script.answer = mcp(lambda _cursor: tools(*names))
    result = gateway.dtma.probe(script.port, "/mcp")
    assert list(result.surface.tools) == names
    assert (len(result.report.tools), result.report.tools_total, result.report.tools_truncated) == (256, 1000, True)


def test_a_server_without_tools_is_ready(gateway: World, script: ScriptedServer) -> None:
    script.answer = mcp(lambda _cursor: tools(), capabilities={"prompts": {}})
    result = gateway.dtma.probe(script.port, "/mcp")
    assert result.report.ok and result.surface.tools == () and result.report.capabilities == ("prompts",)


def test_prompts_that_cannot_be_listed_are_unknown_and_the_server_is_ready(
    gateway: World, script: ScriptedServer
) -> None:
    script.answer = mcp(lambda _cursor: tools("a"), capabilities={"tools": {}, "prompts": {}, "resources": {}})
    result = gateway.dtma.probe(script.port, "/mcp")
    assert result.report.ok
    assert names_in(result.surface) == Surface(tools=("a",), prompts=None, resources=None)


def test_nothing_that_listens_is_told_apart(gateway: World) -> None:
    result = gateway.dtma.probe(free_port(), "/mcp")
    assert (result.report.ok, result.refused, result.report.message) == (False, True, "nothing listens on its port")


def counting(cursor: str | None) -> dict[str, Any]:
    """Pages without end."""
    number = int(cursor or "0")
    return tools(f"t{number}", nextCursor=str(number + 1))


BAD: list[tuple[str, Answer, str]] = [
    ("a repeated cursor", mcp(lambda _cursor: tools("a", nextCursor="again")), "repeats a cursor"),
    ("pages without end", mcp(counting), "100 pages"),
    ("too many tools", mcp(lambda _cursor: tools(*(f"t{n}" for n in range(1001)))), "more than 1000 tools"),
    ("an endless name", mcp(lambda _cursor: tools("x" * 600)), "512 characters"),
    ("a huge answer", mcp(lambda _cursor: tools("x" * (5 << 20))), "too much data"),
    ("many large answers", mcp(lambda c: counting(c) | {"_meta": {"x": "y" * (1 << 20)}}), "too much data"),
    ("tools of another shape", mcp(lambda _cursor: {"tools": "many"}), "ValidationError"),
    ("a web page", raw_answer(b"<html>", "text/html"), "text/html"),
    ("not JSON", raw_answer(b"{", "application/json"), ""),
    ("deep nesting", raw_answer(b"[" * 1_000_000, "application/json"), ""),
    ("a redirect", raw_answer(b"", "text/plain", status=307, headers={"Location": "/elsewhere"}), "redirect (307)"),
    ("a coding", raw_answer(b"x", "application/json", headers={"Content-Encoding": "gzip"}), "encoding"),
    ("an error", raw_answer(b"", "text/plain", status=500), ""),
    ("endless events", raw_answer(b": x\n\n" * (1 << 20), "text/event-stream"), "too much data"),
]


@pytest.mark.parametrize(("answer", "said"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_bad_server_is_not_ready_and_the_report_says_why(
    gateway: World, script: ScriptedServer, answer: Answer, said: str
) -> None:
    script.answer = answer
    result = gateway.dtma.probe(script.port, "/mcp")
    assert not result.report.ok and result.surface == Surface() and not result.refused
    assert result.report.message and said in result.report.message and len(result.report.message) <= 256
    assert len(gateway.dtma.workers) == gateway.workers, "no worker was lost"


def test_a_server_that_does_not_answer_costs_no_more_than_the_deadline(gateway: World, script: ScriptedServer) -> None:
    async def drip(request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(b":\n")

    async def silent(_request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    for answer in (silent, drip):
        script.answer = answer
        result = gateway.dtma.probe(script.port, "/mcp", deadline=1.0)
        assert not result.report.ok
        assert result.report.message in ("it did not answer in time", "it answered with too much data")


def prober_of(worker: int) -> int | None:
    """The pid of a worker's prober process, None while it has none."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(") ")[2].split()
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if fields[1] == str(worker) and fields[0] != "Z" and b"toolbox_dtma.gateway.prober" in command:
            return int(stat.parent.name)
    return None


def test_a_prober_that_dies_or_hangs_is_replaced_and_costs_one_probe(everyday: RealServer) -> None:
    with running_world(workers=1) as world:
        worker = world.dtma.workers[0].pid
        assert world.dtma.probe(everyday.port, "/mcp").report.ok
        for signal_, deadline in ((signal.SIGKILL, 10.0), (signal.SIGSTOP, 1.0)):
            prober = eventually(lambda: prober_of(worker), "a prober runs", seconds=20)
            os.kill(prober, signal_)
            first = world.dtma.probe(everyday.port, "/mcp", deadline=deadline)
            assert first.report.ok or first.report.message in (
                "the probe of it hung",
                "the process that probed it ended",
            )
            assert world.dtma.probe(everyday.port, "/mcp").report.ok
            assert prober_of(worker) != prober
        assert [hello.pid for hello in world.dtma.workers] == [worker]


async def test_a_prober_that_takes_long_to_start_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "python"
    slow.write_text(f'#!/bin/sh\nsleep 5\nexec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setattr(probing, "MARGIN_SECONDS", 0.0)
    prober = probing.Probing(structlog.get_logger())
    try:
        request = ProbeRequest(probe=1, address="127.0.0.1", port=free_port(), path="/mcp", deadline=4.0)
        result = await prober.probe(request)
        assert result.report.message not in ("the probe of it hung", "the process that probed it ended")
    finally:
        await prober.close()
