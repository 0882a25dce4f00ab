"""Reconciles an AgentMCPConnection: a Secret for the agent, a grant at the host, and the truth about both."""

from __future__ import annotations

from datetime import datetime

from toolbox_dtma.wire import Credential, ProblemCode, canonical_hash
from toolbox_operator.api.conditions import ConditionType, Reason
from toolbox_operator.api.connection import AgentMCPConnectionSpec, AgentMCPConnectionStatus
from toolbox_operator.api.meta import ANNOTATION_ROTATE, FINALIZER_CLEANUP, Key, Kind
from toolbox_operator.api.parse import ConnectionObject, parse_connection, parse_server, parse_toolbox
from toolbox_operator.domain.conditions import find
from toolbox_operator.domain.connection import (
    ConnectionObserved,
    closing,
    first_hold,
    grant,
    placed_hold,
    secret_of,
)
from toolbox_operator.domain.connection_status import (
    Programming,
    Progress,
    believed_in_force,
    closed_phase,
    closed_status,
    held_status,
    open_status,
    pending_reason,
    was_programmed,
)
from toolbox_operator.domain.credential import Tokens, credentials, promote
from toolbox_operator.domain.hold import Hold, stalled_by, waits_for
from toolbox_operator.domain.policy import Next
from toolbox_operator.domain.server import toolbox_of
from toolbox_operator.hosts.api import HostError, HostProblem
from toolbox_operator.kube.api import CONNECTIONS
from toolbox_operator.reconcile.connection_removal import ConnectionRemoval
from toolbox_operator.reconcile.connection_secret import ConnectionSecret, Foreign, NoCa
from toolbox_operator.reconcile.context import Context
from toolbox_operator.reconcile.lookups import make_known
from toolbox_operator.reconcile.metadata import patch_metadata
from toolbox_operator.reconcile.relations import server_key
from toolbox_operator.reconcile.report import explained, give_up, hold_of, leave, report
from toolbox_operator.reconcile.rows import connection_row
from toolbox_operator.reconcile.usage import shows_more
from toolbox_operator.runtime import NOTHING, Outcome
from toolbox_operator.store.api import agent_id

_A_MOMENT = 0.05
"""Seconds added to a deadline, so that it has passed when the key comes back."""


class ConnectionReconciler:
    """AgentMCPConnections."""

    kind = Kind.CONNECTION

    def __init__(self, context: Context):
        self._ctx = context
        self._secret = ConnectionSecret(context)
        self._removal = ConnectionRemoval(context)

    async def reconcile(self, key: Key) -> Outcome:
        return await explained(self._reconcile(key), lambda hold: self._explain(key, hold))

    async def _reconcile(self, key: Key) -> Outcome:
        body = self._ctx.cache.get(Kind.CONNECTION, key)
        if body is None:
            self._gone(key)
            return NOTHING
        connection = parse_connection(body)
        self._ctx.usage.come_back(connection.uid)
        if not connection.deleting:
            await make_known(self._ctx, Kind.MCP_SERVER, server_key(body))
        seen = self._observe(connection)
        if connection.deleting:
            return await self._removal.remove(seen)
        hold = first_hold(seen)
        spec = connection.spec
        if spec is None:
            return await self._held(seen, hold or stalled_by(Reason.SPEC_INVALID, "spec: required."))
        if (close := closing(seen, spec, hold, self._ctx.clock.now())) is not None:
            return await self._close(seen, spec, close)
        if (hold := hold or placed_hold(seen)) is not None:
            return await self._held(seen, hold)
        return await self._open(seen, spec)

    async def _explain(self, key: Key, hold: Hold) -> None:
        """Have status say what went wrong, unless the object is gone or on its way out."""
        body = self._ctx.cache.get(Kind.CONNECTION, key)
        if body is not None and not body["metadata"].get("deletionTimestamp"):
            await self._held(self._observe(parse_connection(body)), hold)

    def _observe(self, connection: ConnectionObject) -> ConnectionObserved:
        ctx = self._ctx
        named = server_key(connection.body)
        body = ctx.cache.get(Kind.MCP_SERVER, named) if named is not None else None
        server = parse_server(body) if body is not None else None
        on = toolbox_of(server) if server is not None else None
        toolbox = ctx.cache.get(Kind.TOOLBOX, on) if on is not None else None
        return ConnectionObserved(
            connection=connection,
            server=server,
            toolbox=parse_toolbox(toolbox) if toolbox is not None else None,
            host=ctx.hosts.view(on) if on is not None else None,
            use=ctx.usage.due(connection.uid),
            labels=ctx.labels.of(connection.key.namespace),
            server_labels=ctx.labels.of(server.key.namespace) if server is not None else None,
        )

    async def _open(self, seen: ConnectionObserved, spec: AgentMCPConnectionSpec) -> Outcome:
        # Before the first side effect: a crash after it must leave a way back.
        body = await patch_metadata(self._ctx.kube, CONNECTIONS, seen.connection.body, add=FINALIZER_CLEANUP)
        seen = self._observe(parse_connection(body))
        connection = seen.connection
        rotate = connection.annotations.get(ANNOTATION_ROTATE)
        ensured = await self._secret.ensure(seen, spec, rotate)
        if isinstance(ensured, Foreign):
            message = (
                f"The Secret {secret_of(connection, spec)} exists and is not this connection's: delete it, or create"
                " a connection with another secretName."
            )
            hold = waits_for(Reason.SECRET_CONFLICT, message, quick=True)
            return await self._close(seen, spec, hold)
        if isinstance(ensured, NoCa):
            hold = waits_for(ensured.reason, ensured.message, ConditionType.RESOLVED_REFS)
            return await self._without_ca(seen, spec, ensured.tokens, hold)
        secret, tokens, changed = ensured
        programming = await self._program(
            seen,
            spec,
            credentials(tokens),
            revoking=_may_revoke(seen, tokens),
            in_force=not changed and tokens.next is None and believed_in_force(seen),
        )
        if programming.progress is Progress.DONE and tokens.next is not None and _in_contact(seen):
            # Both tokens are accepted by every worker: only now may the Secret change to the new one.
            tokens = promote(tokens, self._ctx.clock.now(), self._ctx.timings.rotation_grace)
            await self._secret.write(seen, secret, tokens)
            programming = await self._program(seen, spec, credentials(tokens), revoking=False)
        seen = self._observe(connection)
        await self._report(seen, open_status(seen, programming, self._ctx.clock.now(), self._agent(seen)))
        if programming.progress is not Progress.DONE:
            self._wait(seen, programming)
        return self._next(spec, tokens)

    async def _without_ca(
        self, seen: ConnectionObserved, spec: AgentMCPConnectionSpec, tokens: Tokens | None, hold: Hold
    ) -> Outcome:
        """The Secret cannot be written; what is in it is accepted, and what was narrowed is not, as ever."""
        if tokens is None and not _ever_programmed(seen.connection):
            return await self._held(seen, hold)
        accepted = () if tokens is None else credentials(tokens)
        programming = await self._program(
            seen,
            spec,
            accepted,
            revoking=tokens is None or _may_revoke(seen, tokens),
            in_force=tokens is not None and believed_in_force(seen),
        )
        seen = self._observe(seen.connection)
        status = held_status(seen, hold, self._ctx.clock.now(), self._agent(seen), programming)
        await self._report(seen, status)
        return leave(hold, self._ctx.timings)

    async def _close(self, seen: ConnectionObserved, spec: AgentMCPConnectionSpec, hold: Hold) -> Outcome:
        programming = Programming(Progress.DONE)
        if FINALIZER_CLEANUP in seen.connection.finalizers:
            programming = await self._shut(seen, spec, hold)
        seen = self._observe(seen.connection)
        await self._report(seen, closed_status(seen, hold, programming, self._ctx.clock.now(), self._agent(seen)))
        if programming.progress is not Progress.DONE:
            self._wait(seen, programming)
        return leave(hold, self._ctx.timings)

    async def _shut(self, seen: ConnectionObserved, spec: AgentMCPConnectionSpec, hold: Hold) -> Programming:
        """See to it that nothing is accepted for this connection any more."""
        host = seen.host
        if host is not None and host.usable and seen.held is None:
            return Programming(Progress.DONE)
        if seen.server is None and not self._removal.holders(seen) and await self._removal.nowhere(seen):
            return Programming(Progress.DONE)
        if not _in_contact(seen):
            known = seen.connection.status.phase is closed_phase(hold) and was_programmed(seen.connection)
            if known:
                return Programming(Progress.DONE)
        return await self._program(seen, spec, (), revoking=True)

    async def _program(
        self,
        seen: ConnectionObserved,
        spec: AgentMCPConnectionSpec,
        accepted: tuple[Credential, ...],
        *,
        revoking: bool,
        in_force: bool = False,
    ) -> Programming:
        """Have the host hold exactly this. Raises the error type of a refusal that waiting does not cure.

        `in_force`: status is to be believed for as long as the host has not been listed in this process.
        """
        wanted = grant(seen, spec, accepted)
        pending = Progress.REVOKING if revoking else Progress.OPENING
        host, toolbox, held = seen.host, seen.toolbox, seen.held
        if wanted is None or toolbox is None:
            return Programming(pending, "The server is not on a host.")
        same = held is not None and held.content_hash == canonical_hash(wanted)
        if held is not None and same and held.programmed:
            return Programming(Progress.DONE)
        if host is None or not host.usable:
            if in_force and (host is None or not host.synced):
                return Programming(Progress.DONE)
            because = host.failure.message if host is not None and host.failure is not None else ""
            return Programming(pending, f"The host is not known to have taken this over. {because}".rstrip())
        try:
            await self._ctx.hosts.host(toolbox.key).put_grant(seen.connection.uid, wanted)
        except HostError as error:
            if isinstance(error, HostProblem) and error.code is ProblemCode.ACK_PENDING:
                return Programming(pending, f"Not every gateway worker has acknowledged yet: {error.detail}.")
            if isinstance(error, HostProblem) and error.code is ProblemCode.INSTANCE_UNKNOWN and not accepted:
                return Programming(Progress.DONE)  # without the instance there is nothing to be accepted at
            hold = hold_of(error, ConditionType.PROGRAMMED)
            if hold.next is Next.STALLED:
                await self._report(seen, held_status(seen, hold, self._ctx.clock.now(), self._agent(seen)))
                give_up(hold, self._ctx.timings)
            return Programming(pending, hold.message, refused=hold.reason == Reason.HOST_REJECTED)
        return Programming(Progress.DONE)

    def _wait(self, seen: ConnectionObserved, programming: Programming) -> None:
        """End with a retry while the host can be asked again; contact and acknowledgements requeue by themselves."""
        if seen.server is not None and not _in_contact(seen):
            return
        reason = pending_reason(programming)
        give_up(waits_for(reason, programming.message, ConditionType.PROGRAMMED), self._ctx.timings)

    def _next(self, spec: AgentMCPConnectionSpec, tokens: Tokens) -> Outcome:
        """Come back when it expires, or when a replaced token ends."""
        moments: list[datetime] = [previous.until for previous in tokens.previous]
        if spec.expires_at is not None:
            moments.append(spec.expires_at)
        if not moments:
            return NOTHING
        left = (min(moments) - self._ctx.clock.now()).total_seconds()
        return Outcome(max(left, 0.0) + _A_MOMENT)

    async def _held(self, seen: ConnectionObserved, hold: Hold) -> Outcome:
        await self._report(seen, held_status(seen, hold, self._ctx.clock.now(), self._agent(seen)))
        return leave(hold, self._ctx.timings)

    async def _report(self, seen: ConnectionObserved, status: AgentMCPConnectionStatus) -> None:
        written = await report(self._ctx, seen.connection, status)
        if written and shows_more(seen.connection, seen.use):
            self._ctx.usage.wrote(seen.connection.uid)
        row = connection_row(seen, status)
        if row is not None:
            self._ctx.store.submit(row)

    def _agent(self, seen: ConnectionObserved) -> str | None:
        spec = seen.connection.spec
        if spec is None:
            return None
        return agent_id(self._ctx.cluster_id, seen.connection.key.namespace, spec.agent.name)

    def _gone(self, key: Key) -> None:
        """The object is gone: a grant still held under its name is swept by the host's Toolbox."""
        self._ctx.store.vanished(Kind.CONNECTION, key.namespace, key.name)
        for toolbox, view in self._ctx.hosts.all().items():
            if any((item.namespace, item.name) == (key.namespace, key.name) for item in view.grants.values()):
                self._ctx.queue.add(Kind.TOOLBOX, toolbox)


def _in_contact(seen: ConnectionObserved) -> bool:
    return seen.host is not None and seen.host.usable


def _may_revoke(seen: ConnectionObserved, tokens: Tokens) -> bool:
    """Whether what the host holds now may accept more than what it is about to be told."""
    rotating = tokens.next is not None or bool(tokens.previous)
    return not rotating and (seen.held is not None or _ever_programmed(seen.connection))


def _ever_programmed(connection: ConnectionObject) -> bool:
    """Whether status says that something of it was, or was about to be, in force.

    A host that refused it holds nothing of it: where it held something, status speaks of the revocation.
    """
    condition = find(connection.status.conditions, ConditionType.PROGRAMMED)
    return condition is not None and condition.reason != Reason.HOST_REJECTED
