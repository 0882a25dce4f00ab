"""DTMA, the Droplet Tool Management Agent: runs MCP servers on one Docker host and gates access to them."""

__version__ = "0.1.0"
