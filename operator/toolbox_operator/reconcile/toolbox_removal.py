"""Deletes a Toolbox: waits for its servers to leave the host, then lets it and its Secrets go."""

from __future__ import annotations

from toolbox_operator.api.conditions import Reason
from toolbox_operator.api.meta import FINALIZER_CLEANUP, FINALIZER_IN_USE, Body, Key
from toolbox_operator.api.parse import ToolboxObject
from toolbox_operator.domain.server import abandoned
from toolbox_operator.domain.toolbox import ToolboxObserved, deleting_status, in_use_message
from toolbox_operator.kube.api import MCP_SERVERS, Missing
from toolbox_operator.reconcile import in_use
from toolbox_operator.reconcile.context import Context
from toolbox_operator.reconcile.relations import servers_of, uses
from toolbox_operator.reconcile.report import left_behind, report
from toolbox_operator.reconcile.rows import toolbox_row
from toolbox_operator.runtime import NOTHING, Outcome


class ToolboxRemoval:
    """The deletion of Toolboxes."""

    def __init__(self, context: Context):
        self._ctx = context

    async def remove(self, seen: ToolboxObserved) -> Outcome:
        """One step towards the object's end."""
        ctx, toolbox = self._ctx, seen.toolbox
        servers = servers_of(ctx, toolbox)
        if abandoned(toolbox.annotations):
            if servers:
                self._warn(seen, servers)
            return await self._release(seen, "abandoned" if servers else "deleted")
        if servers or not await self.unused(toolbox):
            staying = [Key.of(body) for body in servers if not body["metadata"].get("deletionTimestamp")]
            leaving = [Key.of(body) for body in servers if body["metadata"].get("deletionTimestamp")]
            message = in_use_message(staying, leaving)
            await report(ctx, toolbox, deleting_status(seen, Reason.IN_USE, message, ctx.clock.now()))
            return Outcome(ctx.timings.backoff_max)
        return await self._release(seen, "deleted")

    async def unused(self, toolbox: ToolboxObject) -> bool:
        """Whether the API server itself says that no server uses this Toolbox."""
        live, _ = await self._ctx.kube.list(MCP_SERVERS)
        return not any(uses(self._ctx, body, toolbox) for body in live)

    def _warn(self, seen: ToolboxObserved, servers: list[Body]) -> None:
        toolbox = seen.toolbox
        message = (
            f"Given up with {len(servers)} MCP server(s) on its host; they run on there until the host is registered"
            " again."
        )
        left_behind(self._ctx, toolbox, toolbox.uid, message)

    async def _release(self, seen: ToolboxObserved, reason: str) -> Outcome:
        toolbox = seen.toolbox
        self._ctx.store.close(toolbox_row(toolbox), reason)
        try:
            await in_use.let_go(self._ctx, toolbox, also=frozenset({FINALIZER_CLEANUP, FINALIZER_IN_USE}))
        except Missing:
            pass  # gone meanwhile, which is what was wanted
        await self._ctx.hosts.drop(toolbox.key)
        return NOTHING
