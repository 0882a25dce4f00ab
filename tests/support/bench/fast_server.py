"""MCP over streamable HTTP as fast as Node.js answers, to put under a gateway whose cost is to be seen."""

from __future__ import annotations

import textwrap
from typing import Any

from localstack.kubernetes import Manifest
from support import manifests

FAST_SERVER = textwrap.dedent(
    """
    const http = require("http"), { randomUUID } = require("crypto");
    const tools = ["echo", "stream"].map(name => ({ name, description: name, inputSchema: { type: "object" } }));
    const results = {
      "initialize": params => ({ protocolVersion: params.protocolVersion, capabilities: { tools: {} },
                                 serverInfo: { name: "fast", version: "1" } }),
      "tools/list": () => ({ tools }),
      "ping": () => ({}),
      "tools/call": params => ({ content: [{ type: "text", text: JSON.stringify(params.arguments) }] }),
    };
    function stream(response) {
      let progress = 0;
      response.writeHead(200, { "Content-Type": "text/event-stream" });
      const params = () => ({ progressToken: 1, progress: ++progress });
      const event = () => JSON.stringify({ jsonrpc: "2.0", method: "notifications/progress", params: params() });
      const ticking = setInterval(() => response.write(`data: ${event()}\\n\\n`), 10);
      response.on("close", () => clearInterval(ticking));
    }
    function answer(asked, response) {
      const { id, method, params } = asked;
      if (id === undefined) return response.writeHead(202, { "Content-Length": 0 }).end();
      if (method === "tools/call" && params.name === "stream") return stream(response);
      const result = results[method];
      const outcome = result ? { result: result(params) } : { error: { code: -32601, message: "no" } };
      const body = Buffer.from(JSON.stringify({ jsonrpc: "2.0", id, ...outcome }));
      const session = method === "initialize" ? { "Mcp-Session-Id": randomUUID() } : {};
      response.writeHead(200, { "Content-Type": "application/json", "Content-Length": body.length, ...session });
      response.end(body);
    }
    const server = http.createServer((request, response) => {
      const parts = [];
      request.on("data", part => parts.push(part)).on("end", () => {
        if (request.method === "POST") return answer(JSON.parse(Buffer.concat(parts)), response);
        response.writeHead(request.method === "DELETE" ? 200 : 405, { "Content-Length": 0 }).end();
      });
    });
    server.keepAliveTimeout = 600000;
    server.listen(8000);
    process.on("SIGTERM", () => process.exit(0));
    """
).strip()
"""Tools: `echo`, and `stream`, which reports progress every 10 ms until somebody closes it."""


def fast_server(namespace: str, name: str, image: str, **spec: Any) -> Manifest:
    """An MCPServer with `FAST_SERVER` as its process; the image needs Node.js (`everything` has it)."""
    fast: dict[str, Any] = {"command": ["node", "-e", FAST_SERVER], "args": [], "resources": {"limits": {"cpu": "2"}}}
    return manifests.server(namespace, name, image, **(fast | spec))
