// What the client of the TypeScript SDK sees: JSON on standard input, findings as JSON on standard output.
import { text } from "node:stream/consumers";

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { SSEClientTransport } from "@modelcontextprotocol/sdk/client/sse.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { ElicitRequestSchema } from "@modelcontextprotocol/sdk/types.js";

const given = JSON.parse(await text(process.stdin));
const found = { progress: [] };

async function connected(token) {
  const client = new Client({ name: "typescript", version: "1.0.0" }, { capabilities: { elicitation: {} } });
  client.setRequestHandler(ElicitRequestSchema, () => ({ action: "accept", content: { value: "Ada" } }));
  const headers = { Authorization: `Bearer ${token}` };
  const Transport = given.transport === "sse" ? SSEClientTransport : StreamableHTTPClientTransport;
  await client.connect(new Transport(new URL(given.url), { requestInit: { headers } }));
  return client;
}

const client = await connected(given.token);
found.tools = (await client.listTools()).tools.map((tool) => tool.name).sort();
found.sum = (await client.callTool({ name: "add", arguments: { a: 2, b: 3 } })).structuredContent;
const counted = await client.callTool({ name: "count", arguments: { to: 3 } }, undefined, {
  onprogress: ({ progress, total }) => found.progress.push([progress, total]),
});
found.counted = counted.content[0].text;
found.greeting = (await client.callTool({ name: "greet", arguments: {} })).content[0].text;
await client.callTool({ name: "hidden", arguments: {} }).catch((refused) => (found.hidden = String(refused)));
await client.close();
found.wrong_token = await connected(given.wrong_token).then(
  () => "accepted",
  (refused) => String(refused),
);
console.log(JSON.stringify(found));
process.exit(0);
