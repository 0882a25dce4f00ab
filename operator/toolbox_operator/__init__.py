"""The Magic Toolbox operator: reconciles Toolbox, MCPServer and AgentMCPConnection resources."""

__version__ = "0.1.0"
