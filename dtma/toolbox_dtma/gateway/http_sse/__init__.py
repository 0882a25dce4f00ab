"""Clients of HTTP+SSE, the transport of revision 2024-11-05: each stream is a client of the worker's own /mcp."""
