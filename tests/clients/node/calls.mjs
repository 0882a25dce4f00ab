// Uses several servers at once with the client of the TypeScript SDK: JSON on standard input, answers as JSON.
import { text } from "node:stream/consumers";

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const { servers } = JSON.parse(await text(process.stdin));

// One session: the server's tools, and what each call is answered.
async function use({ url, token, calls }) {
  const client = new Client({ name: "typescript", version: "1.0.0" });
  const transport = new StreamableHTTPClientTransport(new URL(url), {
    requestInit: { headers: { Authorization: `Bearer ${token}` } },
  });
  await client.connect(transport);
  const tools = (await client.listTools()).tools.map((tool) => tool.name);
  const answers = [];
  for (const [name, args] of calls) {
    const answer = await client.callTool({ name, arguments: args });
    const blocks = answer.content.filter((block) => block.type === "text");
    answers.push({ text: blocks.map((block) => block.text).join("\n"), error: answer.isError ?? false });
  }
  await transport.terminateSession();
  await client.close();
  return { tools, answers };
}

const names = Object.keys(servers);
const found = await Promise.all(names.map((name) => use(servers[name])));
console.log(JSON.stringify(Object.fromEntries(names.map((name, index) => [name, found[index]]))));
process.exit(0);
