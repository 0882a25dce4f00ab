"""Valid objects of each kind, and the edits that the case tables make to them.

`support.crd.schema_cases`: refused by the schema, on every API server. `support.crd.rule_cases`: refused by a
rule, with the same message from CEL and from the operator. `support.crd.accepted_cases`: unusual and right.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final

from toolbox_operator.api.connection import ResolvedConnection
from toolbox_operator.api.mcpserver import ResolvedServer
from toolbox_operator.api.meta import API_VERSION, Kind
from toolbox_operator.api.rules import Resolved

Manifest = dict[str, Any]

REMOVE: Final = object()
"""Instead of a value: the field is taken out."""

TOOLBOX, SERVER, CONNECTION = Kind.TOOLBOX, Kind.MCP_SERVER, Kind.CONNECTION

_SPECS: dict[Kind, Manifest] = {
    TOOLBOX: {
        "endpoint": "https://203.0.113.10:30000",
        "gatewayURL": "https://tbx-1.example.com:30443",
        "authSecretRef": {"name": "tbx-1-dtma", "key": "token"},
    },
    SERVER: {
        "toolboxRef": {"name": "tbx-1"},
        "image": "registry.example.com/mcp-time:1.4",
        "transport": "streamable-http",
        "port": 3001,
    },
    CONNECTION: {"agent": {"name": "research-bot"}, "serverRef": {"name": "time", "namespace": "mcp-system"}},
}

SERVER_RESOLVED = ResolvedServer(
    toolbox="default/tbx-1",
    image="registry.example.com/mcp-time:1.4",
    transport="streamable-http",
    port=3001,
    path="/mcp",
    memory="512Mi",
    cpu="1",
    pids=256,
)

RESOLVED: dict[Kind, Resolved | None] = {
    TOOLBOX: None,
    SERVER: SERVER_RESOLVED,
    CONNECTION: ResolvedConnection(agent="research-bot", server="mcp-system/time", secret_name="example-mcp"),
}
"""`status.resolved` of the unchanged objects in namespace `default`."""

Edits = Mapping[str, object]
"""Dotted paths below the object (`spec.port`) and their new values."""

STDIO: Final[Edits] = {"spec.transport": "stdio", "spec.port": REMOVE}
"""A server that speaks stdio instead."""


def valid(kind: Kind, name: str = "example", namespace: str = "default") -> Manifest:
    """An object with the required fields only."""
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": API_VERSION, "kind": str(kind), "metadata": metadata, "spec": copy.deepcopy(_SPECS[kind])}


def edited(manifest: Manifest, edits: Edits) -> Manifest:
    """A copy with the edits made."""
    out = copy.deepcopy(manifest)
    for path, value in edits.items():
        *parents, last = path.split(".")
        node = out
        for step in parents:
            node = node.setdefault(step, {})
        if value is REMOVE:
            del node[last]
        else:
            node[last] = copy.deepcopy(value)
    return out


def as_read(manifest: Manifest) -> Manifest:
    """The object as the API server would hand it out, without defaults."""
    return edited(manifest, {"metadata.uid": "7f1c", "metadata.generation": 1, "metadata.resourceVersion": "1"})
