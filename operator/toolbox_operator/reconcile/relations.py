"""Which objects refer to which, read from the cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from toolbox_operator.api.meta import ANNOTATION_INSTANCE_ID, FINALIZER_CLEANUP, Body, Key, Kind
from toolbox_operator.api.parse import ToolboxObject
from toolbox_operator.domain.values import seniority
from toolbox_operator.reconcile.context import Cache, Context
from toolbox_operator.reconcile.index import accepted, named, part


def toolbox_key(server: Body) -> Key | None:
    """The Toolbox a server's body names: the accepted one, else the spec's."""
    return accepted(Kind.MCP_SERVER, server) or named(Kind.MCP_SERVER, server)


def server_key(connection: Body) -> Key | None:
    """The MCPServer a connection's body names: the accepted one, else the spec's."""
    return accepted(Kind.CONNECTION, connection) or named(Kind.CONNECTION, connection)


def host_share(cache: Cache, kind: Kind, key: Key) -> Key | None:
    """The Toolbox whose host a reconcile of this object may have to wait for; None if there is none."""
    body = cache.get(kind, key)
    if body is not None and kind is Kind.CONNECTION:
        server = server_key(body)
        body = cache.get(Kind.MCP_SERVER, server) if server is not None else None
    return toolbox_key(body) if body is not None and kind is not Kind.TOOLBOX else None


def recorded_host(toolbox: Body) -> Any:
    """The hostId in a Toolbox's status, without parsing all of it."""
    return part(toolbox, "status").get("hostId")


def instance_id(server: Body) -> str:
    """The instance id a server's body has or will get."""
    annotated = part(server["metadata"], "annotations").get(ANNOTATION_INSTANCE_ID)
    return str(annotated or part(server, "status").get("instanceId") or server["metadata"]["uid"])


def uses(ctx: Context, server: Body, toolbox: ToolboxObject) -> bool:
    """Whether a server is, or may soon be, on the host of a Toolbox.

    One that only names a Toolbox which never took it must not count: anybody could hold up its deletion.
    """
    if toolbox_key(server) != toolbox.key:
        return False
    if toolbox.spec is None or FINALIZER_CLEANUP in (server["metadata"].get("finalizers") or ()):
        return True
    namespace = server["metadata"]["namespace"]
    labels = ctx.labels.of(namespace)
    return toolbox.spec.allowed_servers.namespaces.permits(toolbox.key.namespace, namespace, labels)


def servers_of(ctx: Context, toolbox: ToolboxObject) -> list[Body]:
    """The servers that use a Toolbox, those being deleted included."""
    return [body for body in _referring(ctx, Kind.TOOLBOX, toolbox.key) if uses(ctx, body, toolbox)]


def connections_of(ctx: Context, server: Key) -> Iterator[Body]:
    """The connections to a server, those being deleted included."""
    return (body for body in _referring(ctx, Kind.MCP_SERVER, server) if server_key(body) == server)


def _referring(ctx: Context, kind: Kind, key: Key) -> Iterator[Body]:
    """The objects that refer to one, by name, so that they are told in the same order every time."""
    for other_kind, other in sorted(ctx.index.referrers(kind, key)):
        body = ctx.cache.get(other_kind, other)
        if body is not None:
            yield body


def granted(connection: Body) -> bool:
    """Whether a connection's status says that its agent may call now."""
    status = part(connection, "status")
    conditions = cast("list[dict[str, str]]", status.get("conditions") or [])
    truths = {condition.get("type"): condition.get("status") for condition in conditions}
    open_ = status.get("phase") in ("Connected", "Pending") and not connection["metadata"].get("deletionTimestamp")
    return open_ and truths.get("Accepted") == "True" and truths.get("Programmed") == "True"


def senior_with_id(ctx: Context, server: Body) -> Key | None:
    """An older live server that carries the same instance id."""
    wanted, own = instance_id(server), seniority(server)
    for key in sorted(ctx.index.carriers(wanted)):
        body = ctx.cache.get(Kind.MCP_SERVER, key)
        if body is None or body["metadata"]["uid"] == server["metadata"]["uid"] or instance_id(body) != wanted:
            continue
        if seniority(body) < own:
            return key
    return None


def requeue_users(ctx: Context, toolbox: Key) -> None:
    """Have the servers on a Toolbox reconciled, and their connections."""
    for body in _referring(ctx, Kind.TOOLBOX, toolbox):
        if toolbox_key(body) == toolbox:
            server = Key.of(body)
            ctx.queue.add(Kind.MCP_SERVER, server)
            for connection in connections_of(ctx, server):
                ctx.queue.add(Kind.CONNECTION, Key.of(connection))
