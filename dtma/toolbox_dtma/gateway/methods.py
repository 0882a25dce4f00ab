"""The method table: every request of every known revision, and what policy does with it (design §6)."""

from __future__ import annotations

from enum import Enum

HANDSHAKE_VERSIONS = frozenset({"2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"})
"""Revisions with an initialize handshake. Any other revision names itself in every request."""

VERSION_META = "io.modelcontextprotocol/protocolVersion"
"""Member of `params._meta` that names the revision of a request without a session."""

TRACE_META = "traceparent"
"""Member of `params._meta` that names a trace (SEP-414)."""


class Rule(Enum):
    """What policy does with a request method."""

    PLAIN = "plain"
    """Forwarded."""
    CALL = "call"
    """`params.name` must be an exposed tool."""
    PROMPT = "prompt"
    """`params.name` must be an exposed prompt."""
    READ = "read"
    """`params.uri` must be an exposed resource."""
    LISTEN = "listen"
    """Every URI of `params.notifications.resourceSubscriptions` must be an exposed resource."""
    LIST = "list"
    """Forwarded; the answer is filtered."""
    COMPLETE = "complete"
    """`params.ref` must be an exposed prompt or resource."""
    REFUSED = "refused"
    """Refused for everybody: the answer would show other connections' doings."""


KNOWN_REQUESTS: dict[str, Rule] = {
    "initialize": Rule.PLAIN,
    "ping": Rule.PLAIN,
    "server/discover": Rule.PLAIN,
    "logging/setLevel": Rule.PLAIN,
    "tools/call": Rule.CALL,
    "tools/list": Rule.LIST,
    "prompts/get": Rule.PROMPT,
    "prompts/list": Rule.LIST,
    "resources/read": Rule.READ,
    "resources/list": Rule.LIST,
    "resources/templates/list": Rule.LIST,
    "resources/subscribe": Rule.READ,
    "resources/unsubscribe": Rule.READ,
    "completion/complete": Rule.COMPLETE,
    "subscriptions/listen": Rule.LISTEN,
    "tasks/get": Rule.PLAIN,
    "tasks/result": Rule.PLAIN,
    "tasks/update": Rule.PLAIN,
    "tasks/cancel": Rule.PLAIN,
    "tasks/list": Rule.REFUSED,
}

LISTENING_METHODS = frozenset({"subscriptions/listen"})
"""Requests whose answer is a stream that ends only when somebody closes it."""

NAME_MEMBER: dict[str, str] = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
}
"""Methods whose `Mcp-Name` header mirrors a member of params; there it is required where headers are."""

OPTIONAL_NAME_MEMBER: dict[str, str] = {
    "resources/subscribe": "uri",
    "resources/unsubscribe": "uri",
    "tasks/get": "taskId",
    "tasks/result": "taskId",
    "tasks/update": "taskId",
    "tasks/cancel": "taskId",
}
"""The same for methods where the header may be absent."""
