"""Deletes an AgentMCPConnection: revoked at the host first, then its row is closed, its finalizer goes last."""

from __future__ import annotations

from toolbox_dtma.wire import ProblemCode
from toolbox_operator.api.conditions import ConditionType, Reason
from toolbox_operator.api.meta import ANNOTATION_ABANDON, FINALIZER_CLEANUP, Key
from toolbox_operator.domain.connection import ConnectionObserved
from toolbox_operator.domain.connection_status import deleting_status
from toolbox_operator.domain.hold import Hold, waits_for
from toolbox_operator.domain.host import HostState
from toolbox_operator.domain.server import abandoned, contacting
from toolbox_operator.hosts.api import HostError, HostProblem
from toolbox_operator.kube.api import CONNECTIONS, MCP_SERVERS, TOOLBOXES, Missing
from toolbox_operator.reconcile.context import Context
from toolbox_operator.reconcile.metadata import patch_metadata
from toolbox_operator.reconcile.relations import server_key, toolbox_key
from toolbox_operator.reconcile.report import hold_of, leave, left_behind, report
from toolbox_operator.reconcile.rows import connection_row
from toolbox_operator.runtime import NOTHING, Outcome

_NOT_OURS = (ProblemCode.OWNER_MISMATCH, ProblemCode.IDENTITY_MISMATCH)


class ConnectionRemoval:
    """The deletion of connections."""

    def __init__(self, context: Context):
        self._ctx = context

    async def remove(self, seen: ConnectionObserved) -> Outcome:
        """One step towards the object's end."""
        connection = seen.connection
        if FINALIZER_CLEANUP not in connection.finalizers:
            return NOTHING
        holders = self.holders(seen)
        for toolbox in holders:
            try:
                await self._ctx.hosts.host(toolbox).delete_grant(
                    connection.uid, namespace=connection.key.namespace, name=connection.key.name
                )
            except HostError as error:
                if isinstance(error, HostProblem) and error.code in _NOT_OURS:
                    continue
                if abandoned(connection.annotations):
                    return await self._abandon(seen)
                return await self._blocked(seen, hold_of(error, ConditionType.PROGRAMMED))
        if holders or await self.nowhere(seen):
            return await self._release(seen, "deleted")
        if abandoned(connection.annotations) or self._given_up(seen):
            return await self._abandon(seen)
        if contacting(seen.toolbox, seen.host):
            return NOTHING
        because = seen.host.failure.message if seen.host is not None and seen.host.failure is not None else ""
        message = f"The host must be told, and cannot be reached. {because}".rstrip()
        return await self._blocked(seen, waits_for(Reason.CLEANUP_BLOCKED, message, ConditionType.PROGRAMMED))

    def holders(self, seen: ConnectionObserved) -> list[Key]:
        """Toolboxes whose hosts can be told: the server's own, and any other that lists the grant."""
        uid = seen.connection.uid
        own = seen.toolbox.key if seen.toolbox is not None else None
        return [
            key for key, view in self._ctx.hosts.all().items() if view.usable and (key == own or uid in view.grants)
        ]

    async def nowhere(self, seen: ConnectionObserved) -> bool:
        """Whether no host can hold the grant: with the server its container and grants have left the host.

        Only the API server's own word counts for "missing".
        """
        named = server_key(seen.connection.body)
        if named is None:
            return True
        server = await self._ctx.kube.get(MCP_SERVERS, named)
        if server is None:
            return True
        on = toolbox_key(server)
        return on is None or await self._ctx.kube.get(TOOLBOXES, on) is None

    def _given_up(self, seen: ConnectionObserved) -> bool:
        """Whether the Toolbox is being deleted and its host cannot be reached."""
        lost = seen.host is not None and seen.host.state in (HostState.UNREACHABLE, HostState.LOST)
        return lost and seen.toolbox is not None and seen.toolbox.deleting

    async def _abandon(self, seen: ConnectionObserved) -> Outcome:
        message = (
            "Left behind: its host could not be told, so its token may still be accepted there. That ends when the"
            " host is in contact again with a Toolbox of this cluster."
        )
        left_behind(self._ctx, seen.connection, seen.connection.uid, message)
        return await self._release(seen, "abandoned")

    async def _blocked(self, seen: ConnectionObserved, hold: Hold) -> Outcome:
        pending = hold.reason == Reason.ACK_PENDING
        reason = Reason.REVOCATION_PENDING if pending else Reason.CLEANUP_BLOCKED
        message = (
            f"The revocation is not finished. {hold.message} It goes on by itself; to let go without it, annotate"
            f' this object with {ANNOTATION_ABANDON}="true".'
        )
        status = deleting_status(seen, reason, message, self._ctx.clock.now(), None)
        await report(self._ctx, seen.connection, status)
        return leave(hold, self._ctx.timings)

    async def _release(self, seen: ConnectionObserved, reason: str) -> Outcome:
        row = connection_row(seen, seen.connection.status)
        if row is not None:
            self._ctx.store.close(row, reason)
        try:
            await patch_metadata(
                self._ctx.kube, CONNECTIONS, seen.connection.body, remove=frozenset({FINALIZER_CLEANUP})
            )
        except Missing:
            pass  # gone meanwhile, which is what was wanted
        return NOTHING
