"""MCP over streamable HTTP as fast as Node.js answers, to put under a gateway whose cost is to be seen."""

from __future__ import annotations

import textwrap
from typing import Any

from localstack.kubernetes import Manifest
from support import manifests

FAST_SERVER = textwrap.dedent(
    """
    const http = require("http"), { randomUUID } = require("crypto");
    const names = ["echo", "echo_events", "large", "stream"];
    const tools = names.map(name => ({ name, description: name, inputSchema: { type: "object" } }));
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
    function large(id, size, response) {
      const part = Buffer.alloc(65536, "x");
      let left = size;
      response.writeHead(200, { "Content-Type": "application/json" });
      response.write(`{"jsonrpc":"2.0","id":${JSON.stringify(id)},"result":{"content":[{"type":"text","text":"`);
      const more = () => {
        while (left > 0) {
          left -= part.length;
          if (!response.write(part)) return response.once("drain", more);
        }
        response.end('"}]}}');
      };
      more();
    }
    function dense(id, params, response) {
      const listed = `[{"name":"echo","inputSchema":{"x":[${Array(params.count).fill(params.dense).join()}]}}]`;
      response.writeHead(200, { "Content-Type": "application/json" });
      response.end(`{"jsonrpc":"2.0","id":${JSON.stringify(id)},"result":{"tools":${listed}}}`);
    }
    function answer(asked, response) {
      const { id, method, params } = asked;
      if (id === undefined) return response.writeHead(202, { "Content-Length": 0 }).end();
      if (method === "tools/call" && params.name === "stream") return stream(response);
      if (method === "tools/call" && params.name === "large") return large(id, params.arguments.bytes, response);
      if (method === "tools/list" && params && params.dense) return dense(id, params, response);
      const result = results[method];
      const outcome = result ? { result: result(params) } : { error: { code: -32601, message: "no" } };
      if (method === "tools/call" && params.name === "echo_events") {
        response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-cache" });
        return response.end(`event: message\\ndata: ${JSON.stringify({ jsonrpc: "2.0", id, ...outcome })}\\n\\n`);
      }
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
"""Tools: `echo`; `echo_events`, which answers with an event stream of one event; `large`, which streams an answer of so
many `bytes`; `stream`, which reports progress every 10 ms until somebody closes it. `tools/list` with `dense` and
`count` shows `echo` with that many times that JSON in its schema."""


def fast_server(namespace: str, name: str, image: str, **spec: Any) -> Manifest:
    """An MCPServer with `FAST_SERVER` as its process; the image needs Node.js (`everything` has it)."""
    fast: dict[str, Any] = {"command": ["node", "-e", FAST_SERVER], "args": [], "resources": {"limits": {"cpu": "2"}}}
    return manifests.server(namespace, name, image, **(fast | spec))
