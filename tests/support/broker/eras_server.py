"""Small stdio servers of either era, each odd in its own way; a program with the name of one, and seconds to start.

`modern` knows no handshake, `legacy` says that it does not know what it is asked before a handshake, `silent` answers a
ping and else says nothing then, `exiting` ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

MODERN, LEGACY = "2026-07-28", "2025-11-25"
INFO = {"name": "odd", "version": "1"}


def answer(request: dict[str, Any], *, modern: bool, begun: bool) -> dict[str, Any] | None:
    """What a request gets; None says nothing."""
    method = request["method"]
    version = request.get("params", {}).get("_meta", {}).get("io.modelcontextprotocol/protocolVersion")
    unknown = {"error": {"code": -32601, "message": f"unknown: {method}"}}
    tools = [{"name": "pid", "inputSchema": {"type": "object"}}]
    text = {"content": [{"type": "text", "text": str(os.getpid())}]}
    if modern:
        if version != MODERN:
            return unknown
        cached = {"ttlMs": 0, "cacheScope": "private"}
        stamp = {"resultType": "complete", "_meta": {"io.modelcontextprotocol/serverInfo": INFO}}
        results: dict[str, dict[str, Any]] = {
            "server/discover": {"supportedVersions": [MODERN], "capabilities": {"tools": {}}, **cached},
            "tools/list": {"tools": tools, **cached},
            "tools/call": text,
        }
        return {"result": {**results[method], **stamp}} if method in results else unknown
    if not begun:
        return unknown
    results = {
        "initialize": {"protocolVersion": LEGACY, "capabilities": {"tools": {}}, "serverInfo": INFO},
        "tools/list": {"tools": tools},
        "tools/call": text,
    }
    return {"result": results[method]} if method in results else unknown


def command(kind: str, start: float = 0.0) -> list[str]:
    """How such a server is run, which takes so many seconds to start."""
    return [sys.executable, "-SE", __file__, kind, str(start)]


def main(kind: str, start: float) -> None:
    """Serve until the input ends."""
    time.sleep(start)
    begun = False
    for line in sys.stdin:
        request = json.loads(line)
        if "id" not in request:
            continue
        begun = begun or request["method"] == "initialize"
        if not begun and kind == "exiting":
            sys.exit("expected an initialize request")
        if request["method"] == "ping" and kind == "silent":
            said: dict[str, Any] | None = {"result": {}}
        elif not begun and kind == "silent":
            said = None
        else:
            said = answer(request, modern=kind == "modern", begun=begun)
        if said is not None:
            print(json.dumps({"jsonrpc": "2.0", "id": request["id"], **said}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
