"""Deletes an MCPServer: its container and grants leave the host, its row is closed, its finalizer goes last."""

from __future__ import annotations

from toolbox_dtma.wire import ProblemCode
from toolbox_operator.api.conditions import ConditionType, Reason
from toolbox_operator.api.meta import ANNOTATION_ABANDON, FINALIZER_CLEANUP, Key
from toolbox_operator.domain.hold import Hold, waits_for
from toolbox_operator.domain.inputs import volume_policy
from toolbox_operator.domain.server import Removal, ServerObserved, abandoned, removal, toolbox_of
from toolbox_operator.domain.server_status import deleting_status
from toolbox_operator.hosts.api import HostError, HostProblem
from toolbox_operator.kube.api import MCP_SERVERS, TOOLBOXES, Missing
from toolbox_operator.reconcile.context import Context
from toolbox_operator.reconcile.metadata import patch_metadata
from toolbox_operator.reconcile.report import hold_of, leave, left_behind, report
from toolbox_operator.reconcile.rows import instance_row
from toolbox_operator.runtime import NOTHING, Outcome

_NOT_OURS = (ProblemCode.OWNER_MISMATCH, ProblemCode.IDENTITY_MISMATCH)


class ServerRemoval:
    """The deletion of servers."""

    def __init__(self, context: Context):
        self._ctx = context

    async def remove(self, seen: ServerObserved) -> Outcome:
        """One step towards the object's end."""
        if FINALIZER_CLEANUP not in seen.server.finalizers:
            return NOTHING
        match removal(seen, toolbox_missing=await self._toolbox_missing(seen)):
            case Removal.NOTHING:
                return await self._release(seen, "deleted")
            case Removal.ABANDON:
                return await self._abandon(seen)
            case Removal.REMOVE:
                return await self._remove(seen)
            case Removal.WAIT:
                return NOTHING
            case Removal.BLOCKED:
                return await self._blocked(seen, self._why(seen))

    async def _remove(self, seen: ServerObserved) -> Outcome:
        server, named = seen.server, toolbox_of(seen.server)
        if named is None:
            return await self._release(seen, "deleted")
        try:
            host = self._ctx.hosts.host(named)
            await host.delete_instance(
                seen.instance_id,
                uid=server.uid,
                namespace=server.key.namespace,
                name=server.key.name,
                # The spec as it is now: its last edit may never have come to the host.
                volume_policy=volume_policy(server.spec) if server.spec is not None else None,
            )
        except HostError as error:
            if isinstance(error, HostProblem) and error.code in _NOT_OURS:
                # What is there under this id belongs to somebody else: it stays, and nothing of ours is left.
                return await self._release(seen, "deleted")
            if abandoned(server.annotations):
                return await self._abandon(seen)
            return await self._blocked(seen, hold_of(error, ConditionType.READY))
        return await self._release(seen, "deleted")

    async def _abandon(self, seen: ServerObserved) -> Outcome:
        server = seen.server
        message = (
            f"Left behind on the host of the Toolbox {toolbox_of(server)}: its container may still run there. It is"
            " removed when the host is in contact again with a Toolbox of this cluster."
        )
        left_behind(self._ctx, server, seen.instance_id, message)
        return await self._release(seen, "abandoned")

    async def _blocked(self, seen: ServerObserved, hold: Hold) -> Outcome:
        message = (
            f"The clean-up is blocked. {hold.message} It goes on when that is over; to leave the container behind,"
            f' annotate this object with {ANNOTATION_ABANDON}="true".'
        )
        status = deleting_status(seen, Reason.CLEANUP_BLOCKED, message, self._ctx.clock.now())
        await report(self._ctx, seen.server, status)
        return leave(hold, self._ctx.timings)

    async def _release(self, seen: ServerObserved, reason: str) -> Outcome:
        server = seen.server
        if seen.toolbox is not None:
            self._ctx.store.close(instance_row(server, seen.instance_id, seen.toolbox), reason)
        try:
            await patch_metadata(self._ctx.kube, MCP_SERVERS, server.body, remove=frozenset({FINALIZER_CLEANUP}))
        except Missing:
            pass  # gone meanwhile, which is what was wanted
        return NOTHING

    async def _toolbox_missing(self, seen: ServerObserved) -> bool:
        """Whether the API server itself says that there is no such Toolbox."""
        named: Key | None = toolbox_of(seen.server)
        if seen.toolbox is not None:
            return False
        return named is None or await self._ctx.kube.get(TOOLBOXES, named) is None

    def _why(self, seen: ServerObserved) -> Hold:
        named, host = toolbox_of(seen.server), seen.host
        because = host.failure.message if host is not None and host.failure is not None else "There is no contact yet."
        return waits_for(
            Reason.CLEANUP_BLOCKED,
            f"The host of the Toolbox {named} is needed for it. {because}",
            ConditionType.READY,
        )
