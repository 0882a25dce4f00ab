"""The session broker: shows servers that speak stdio as streamable HTTP, a process for each session (ADR 0016)."""
