"""The gateway: agents' MCP traffic to the instances of this host, in unprivileged workers (design §6)."""
