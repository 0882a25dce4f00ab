"""Removes what a host holds for objects that no longer exist, each confirmed by a live read."""

from __future__ import annotations

import structlog

from toolbox_operator.api.meta import Body, Key, Kind
from toolbox_operator.domain.host import HostView
from toolbox_operator.kube.api import CONNECTIONS, MCP_SERVERS
from toolbox_operator.reconcile.context import Context
from toolbox_operator.reconcile.relations import instance_id, toolbox_key

log = structlog.get_logger(__name__)


async def sweep(ctx: Context, toolbox: Key, view: HostView) -> None:
    """Delete instances and grants of ours that no live object accounts for. Raises `HostError`.

    `view` holds complete lists of the owner's instances and grants.
    """
    for item in list(view.instances.values()):
        key = Key(item.namespace, item.name)
        if _accounts_for(ctx.cache.get(Kind.MCP_SERVER, key), item.id, item.uid, toolbox):
            continue
        if _accounts_for(await ctx.kube.get(MCP_SERVERS, key), item.id, item.uid, toolbox):
            continue
        log.warning("host.swept", toolbox=str(toolbox), instance=item.id, server=str(key))
        await ctx.hosts.host(toolbox).delete_instance(item.id, uid=item.uid, namespace=item.namespace, name=item.name)
    for grant in list(view.grants.values()):
        key = Key(grant.namespace, grant.name)
        if _has_uid(ctx.cache.get(Kind.CONNECTION, key), grant.uid):
            continue
        if _has_uid(await ctx.kube.get(CONNECTIONS, key), grant.uid):
            continue
        log.warning("host.swept", toolbox=str(toolbox), grant=grant.uid, connection=str(key))
        await ctx.hosts.host(toolbox).delete_grant(grant.uid, namespace=grant.namespace, name=grant.name)


def _accounts_for(server: Body | None, id_: str, uid: str, toolbox: Key) -> bool:
    """Whether a server stands for an instance: the same incarnation, or one that will adopt it."""
    if server is None or toolbox_key(server) != toolbox:
        return False
    return server["metadata"]["uid"] == uid or instance_id(server) == id_


def _has_uid(body: Body | None, uid: str) -> bool:
    return body is not None and body["metadata"]["uid"] == uid
