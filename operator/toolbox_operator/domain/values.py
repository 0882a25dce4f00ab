"""Values derived from specs: URLs, references, ids, ages."""

from __future__ import annotations

import uuid

from toolbox_operator.api.meta import Body, Key
from toolbox_operator.api.refs import NamespacedRef


def target(ref: NamespacedRef, own_namespace: str) -> Key:
    """The object a reference means, seen from `own_namespace`."""
    return Key(ref.namespace or own_namespace, ref.name)


def server_url(gateway_url: str, instance_id: str) -> str:
    """The URL agents use for one server.

    >>> server_url("https://tbx.example.com:30443/", "5b6f")
    'https://tbx.example.com:30443/servers/5b6f/mcp'
    """
    return f"{gateway_url.rstrip('/')}/servers/{instance_id}/mcp"


def is_uuid(text: str) -> bool:
    """Whether the text is a UUID in canonical form (lower case, hyphens, nothing around it)."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def seniority(body: Body) -> tuple[str, str]:
    """Orders objects that claim the same thing: the smaller one was first."""
    meta = body["metadata"]
    return (meta.get("creationTimestamp") or "", meta["uid"])
