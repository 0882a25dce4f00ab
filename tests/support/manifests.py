"""Objects of ours as tests apply them, and a server that answers within a tenth of a second of its start."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from localstack.kubernetes import Manifest

API_VERSION = "magictoolbox.dev/v1alpha1"

QUICK_SERVER = textwrap.dedent(
    """
    import json, os, socketserver, time, http.server
    TOOLS = [{"name": n, "description": n, "inputSchema": {"type": "object"}} for n in ("echo", "whoami")]
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def log_message(self, *_): pass
        def answer(self, status, body=b"", **headers):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)
        def do_GET(self): self.answer(405)
        def do_DELETE(self): self.answer(200)
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            method, params = asked.get("method"), asked.get("params") or {}
            if "id" not in asked: return self.answer(202)
            result = None
            if method == "initialize":
                result = {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}},
                          "serverInfo": {"name": "quick", "version": os.environ.get("VERSION", "1")}}
            elif method == "tools/list": result = {"tools": TOOLS}
            elif method == "ping": result = {}
            elif method == "tools/call":
                time.sleep(float((params.get("arguments") or {}).get("seconds", 0)))
                said = os.uname().nodename if params["name"] == "whoami" else json.dumps(params.get("arguments"))
                result = {"content": [{"type": "text", "text": said}]}
            reply = {"jsonrpc": "2.0", "id": asked["id"]}
            reply |= {"result": result} if result is not None else {"error": {"code": -32601, "message": "no"}}
            self.answer(200, json.dumps(reply).encode(), Content_Type="application/json")
    class Server(socketserver.ThreadingMixIn, http.server.HTTPServer): daemon_threads = True
    Server(("", 8000), Handler).serve_forever()
    """
).strip()
"""MCP over streamable HTTP with nothing but the standard library; `whoami` tells the container's host name.

A call with the argument `seconds` takes that long.
"""


def manifest(kind: str, namespace: str, name: str, spec: Mapping[str, Any], **metadata: Any) -> Manifest:
    """An object of our group."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, **metadata},
        "spec": dict(spec),
    }


def server(namespace: str, name: str, image: str, *, toolbox: str = "tbx-1", **spec: Any) -> Manifest:
    """An MCPServer on the given Toolbox of `mcp-system`, shared with nobody else unless `spec` says so."""
    defaults = {
        "toolboxRef": {"name": toolbox, "namespace": "mcp-system"},
        "image": image,
        "transport": "streamable-http",
        "port": 8000,
    }
    return manifest("MCPServer", namespace, name, {**defaults, **spec})


def quick_server(namespace: str, name: str, image: str, *, toolbox: str = "tbx-1", **spec: Any) -> Manifest:
    """The same with `QUICK_SERVER` as its process; the image needs Python (`hello` has it)."""
    quick = {"command": ["python3", "-S", "-c", QUICK_SERVER], "args": []}
    return server(namespace, name, image, toolbox=toolbox, **{**quick, **spec})


def connection(namespace: str, name: str, server: str, *, agent: str = "bot", **spec: Any) -> Manifest:
    """An AgentMCPConnection to a server of the same namespace, unless `spec` has another `serverRef`."""
    return manifest(
        "AgentMCPConnection", namespace, name, {"agent": {"name": agent}, "serverRef": {"name": server}, **spec}
    )
