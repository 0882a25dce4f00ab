"""A scripted server with sessions, for tests that look at what reaches it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

from support.gateway.mcp_servers import ScriptedServer, Seen


async def scripted(_request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
    """A server with sessions and no stream of its own; it never answers `x`."""
    if seen.method == "GET":
        return web.Response(status=405)
    message: dict[str, Any] = json.loads(seen.body) if seen.body else {}
    if "id" not in message:
        return web.Response(status=202)
    if message["method"] == "initialize":
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"], "result": {"protocolVersion": "2024-11-05"}}
        return web.json_response(answer, headers={"Mcp-Session-Id": "up"})
    if message.get("params", {}).get("name") == "x":
        await asyncio.Event().wait()
    return web.json_response({"jsonrpc": "2.0", "id": message["id"], "result": {"content": []}})


def said(script: ScriptedServer) -> list[str]:
    """What the server was asked, in order."""
    return [json.loads(seen.body).get("method", "response") if seen.body else seen.method for seen in script.seen]
