"""Containers that do what they should not, as commands for an image with Python."""

from __future__ import annotations

import textwrap
from typing import Any

from support.manifests import QUICK_SERVER

PORT = 8000

_ANSWERS = textwrap.dedent(
    """
    import http.server, json, socketserver
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def log_message(self, *_): pass
        def reply(self, status, kind, body):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        def do_GET(self): self.reply(405, "text/plain", b"")
        do_DELETE = do_GET
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if "id" not in asked: return self.reply(202, "text/plain", b"")
            method, params = asked["method"], asked.get("params") or {}
            status, kind, body = answer(method, params)
            if isinstance(body, dict):
                if method == "initialize":
                    body = {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}},
                            "serverInfo": {"name": "odd", "version": "1"}}
                elif method != "tools/list":
                    return self.reply(200, kind, json.dumps({"jsonrpc": "2.0", "id": asked["id"],
                        "error": {"code": -32601, "message": "no"}}).encode())
                body = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": body}).encode()
            self.reply(status, kind, body)
    class Server(socketserver.ThreadingMixIn, http.server.HTTPServer): daemon_threads = True
    """
)
_SERVE = f'Server(("", {PORT}), Handler).serve_forever()\n'


def python(program: str) -> dict[str, Any]:
    """The members of a spec that run a program."""
    return {"command": ["python3", "-S", "-c", textwrap.dedent(program).strip()], "args": []}


def answering(expression: str) -> dict[str, Any]:
    """An HTTP server that answers each request with `(status, content type, body)` from `method` and `params`.

    A body that is a dict is the result of tools/list in a conversation that otherwise works.
    """
    return python(f"{_ANSWERS}\ndef answer(method, params): return {expression}\n{_SERVE}")


HTML = answering('200, "text/html", b"<html><h1>It works!</h1></html>"')
NOT_FOUND = answering('404, "text/plain", b"no such page"')
NOT_JSON = answering('200, "application/json", b"{jsonrpc: 2.0, "')
TOO_MANY_TOOLS = answering(
    '200, "application/json", {"tools": [{"name": f"t{i}", "inputSchema": {"type": "object"}} for i in range(1001)]}'
)
SAME_CURSOR = answering('200, "application/json", {"tools": [], "nextCursor": "again"}')
SILENT = python(
    f"""
    import socket
    listener, taken = socket.create_server(("", {PORT})), []
    while True:
        taken.append(listener.accept())
    """
)
"""Accepts connections and says nothing."""
CRASHING = python("import sys; print('no configuration'); sys.exit(3)")
WRITING = python("open('/srv/state', 'w').write('mine')")
"""Needs a root filesystem that can be written to."""
READING_A_SECRET = python("open('/etc/shadow').read()")
"""Needs a file that only root may read."""
HUNGRY = python("held = bytearray(256 * 1024 * 1024); import threading; threading.Event().wait()")
ONE_PATH = python(
    QUICK_SERVER.replace(
        "def do_POST(self):", 'def do_POST(self):\n        if self.path != "/mcp": return self.answer(404)'
    )
)
"""Speaks MCP on /mcp, and nowhere else."""
