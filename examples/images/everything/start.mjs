// Node 18, which is what Debian bookworm has, does not make `crypto` a global yet; later versions do.
import { webcrypto } from "node:crypto";

globalThis.crypto ??= webcrypto;

// Dynamic, because a static import would run before the line above.
await import("@modelcontextprotocol/server-everything/dist/index.js");
