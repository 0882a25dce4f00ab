"""Reconciles an MCPServer: a desired instance on its Toolbox's host, and the truth about it in status."""

from __future__ import annotations

from dataclasses import dataclass

from toolbox_operator.api.conditions import ConditionType
from toolbox_operator.api.mcpserver import MCPServerSpec, MCPServerStatus
from toolbox_operator.api.meta import ANNOTATION_INSTANCE_ID, FINALIZER_CLEANUP, Key, Kind
from toolbox_operator.api.parse import ServerObject, parse_server, parse_toolbox
from toolbox_operator.domain.hold import Hold, waits_for
from toolbox_operator.domain.inputs import Inputs, Unresolved, desired_instance, refs_of, resolve
from toolbox_operator.domain.server import (
    ServerObserved,
    contact_hold,
    first_hold,
    instance_id_of,
    nothing_changes,
    told,
    toolbox_of,
)
from toolbox_operator.domain.server_status import deployed_status, held_status
from toolbox_operator.domain.tools import news
from toolbox_operator.hosts.api import HostError
from toolbox_operator.kube.api import MCP_SERVERS
from toolbox_operator.reconcile import in_use
from toolbox_operator.reconcile.context import Context
from toolbox_operator.reconcile.lookups import make_known, read
from toolbox_operator.reconcile.mcpserver_removal import ServerRemoval
from toolbox_operator.reconcile.metadata import patch_metadata
from toolbox_operator.reconcile.relations import connections_of, granted, senior_with_id
from toolbox_operator.reconcile.report import event, explained, hold_of, leave, report
from toolbox_operator.reconcile.rows import instance_row
from toolbox_operator.reconcile.sessions import SessionPace
from toolbox_operator.runtime import NOTHING, Outcome

_READ_AGAIN = 0.9
"""Values are read again when they are older than this part of the resync period, so that each resync reads them."""


@dataclass(frozen=True, slots=True)
class _Known:
    """The hash of the values last resolved for one server; the values themselves are not kept."""

    uid: str
    generation: int
    hash: str
    read_at: float
    mark: int
    """That of `Sources` when they were read: with another one, something they were read from has changed."""


class MCPServerReconciler:
    """MCPServers."""

    kind = Kind.MCP_SERVER

    def __init__(self, context: Context):
        self._ctx = context
        self._known: dict[Key, _Known] = {}
        self._pace = SessionPace(context.queue, context.clock, context.timings.sessions_shown)
        self._removal = ServerRemoval(context)

    async def reconcile(self, key: Key) -> Outcome:
        return await explained(self._reconcile(key), lambda hold: self._explain(key, hold))

    async def _reconcile(self, key: Key) -> Outcome:
        body = self._ctx.cache.get(Kind.MCP_SERVER, key)
        if body is None:
            self._gone(key)
            return NOTHING
        server = parse_server(body)
        if server.deleting:
            self._forget(key)
            return await self._removal.remove(self._observe(server))
        await make_known(self._ctx, Kind.TOOLBOX, toolbox_of(server))
        seen = self._observe(server)
        hold = first_hold(seen)
        if hold is None and nothing_changes(seen):
            return NOTHING
        hold = hold or contact_hold(seen)
        if hold is None and server.spec is not None:
            return await self._deploy(seen, server.spec)
        return NOTHING if hold is None else await self._held(seen, hold)

    async def _explain(self, key: Key, hold: Hold) -> None:
        """Have status say what went wrong, unless the object is gone or on its way out."""
        body = self._ctx.cache.get(Kind.MCP_SERVER, key)
        if body is not None and not body["metadata"].get("deletionTimestamp"):
            await self._held(self._observe(parse_server(body)), hold)

    def _observe(self, server: ServerObject) -> ServerObserved:
        ctx, named = self._ctx, toolbox_of(server)
        toolbox = ctx.cache.get(Kind.TOOLBOX, named) if named is not None else None
        host = ctx.hosts.view(named) if named is not None and toolbox is not None else None
        placed = host is not None and host.holds(instance_id_of(server), server.uid)
        return ServerObserved(
            server=server,
            toolbox=None if toolbox is None else parse_toolbox(toolbox),
            host=host,
            # Once the host has it under this id, the host keeps others away from it.
            senior=None if placed else senior_with_id(ctx, server.body),
            connections=sum(granted(body) for body in connections_of(ctx, server.key)),
            labels=ctx.labels.of(server.key.namespace),
        )

    async def _deploy(self, seen: ServerObserved, spec: MCPServerSpec) -> Outcome:
        """Tell the host what it was not told yet, then report what it says."""
        server = seen.server
        known = self._known.get(server.key)
        inputs: Inputs | None = None
        now = self._ctx.clock.monotonic()
        # Before anything is read, so that no change is missed in between.
        mark = self._ctx.sources.reads((Kind.MCP_SERVER, server.key), refs_of(spec))
        fresh = (
            known is not None
            and (known.uid, known.generation, known.mark) == (server.uid, server.generation, mark)
            and now - known.read_at < self._ctx.timings.resync * _READ_AGAIN
        )
        if known is None or not fresh or not told(seen.report, server.generation, known.hash):
            resolved = resolve(spec, await read(self._ctx, server.key.namespace, refs_of(spec)))
            if isinstance(resolved, Unresolved):
                hold = waits_for(resolved.reason, resolved.message, ConditionType.RESOLVED_REFS)
                return await self._held(seen, hold)
            inputs = resolved
            known = self._known[server.key] = _Known(server.uid, server.generation, inputs.hash, now, mark)
        if inputs is not None and not told(seen.report, server.generation, known.hash):
            try:
                seen = await self._put(seen, spec, inputs)
            except HostError as error:
                return await self._held(self._observe(seen.server), hold_of(error))
        await self._report(seen, deployed_status(seen, known.hash, self._ctx.clock.now()))
        return Outcome(self._ctx.timings.resync) if refs_of(spec) else NOTHING

    async def _put(self, seen: ServerObserved, spec: MCPServerSpec, inputs: Inputs) -> ServerObserved:
        server = seen.server
        # Finalizer and id before the first side effect: a crash after it must leave a way back.
        body = await patch_metadata(
            self._ctx.kube,
            MCP_SERVERS,
            server.body,
            add=FINALIZER_CLEANUP,
            annotations={ANNOTATION_INSTANCE_ID: seen.instance_id},
        )
        server = parse_server(body)
        toolbox = seen.toolbox
        if toolbox is None:
            return seen
        if not in_use.holds(toolbox):
            await in_use.hold(self._ctx, toolbox)
        host = self._ctx.hosts.host(toolbox.key)
        await host.put_instance(seen.instance_id, desired_instance(server, spec, inputs))
        return self._observe(server)

    async def _held(self, seen: ServerObserved, hold: Hold) -> Outcome:
        await self._report(seen, held_status(seen, hold, self._ctx.clock.now()))
        return leave(hold, self._ctx.timings)

    async def _report(self, seen: ServerObserved, status: MCPServerStatus) -> None:
        status = self._pace.due(seen.server.key, seen.server.status, status)
        if await report(self._ctx, seen.server, status):
            self._pace.wrote(seen.server.key, status)
            spec = seen.server.spec
            pinned = spec is not None and spec.expose.tools.approved_hash is not None
            if (told := news(seen.server.status, status, pinned=pinned)) is not None:
                event(self._ctx, seen.server.body, told.type, told.reason, told.note)
        if seen.toolbox is not None and status.instance_id is not None:
            host = seen.host
            usable = host is not None and host.usable
            boot_id = host.boot_id if host is not None else 0
            self._ctx.store.submit(
                instance_row(
                    seen.server,
                    status.instance_id,
                    seen.toolbox,
                    status,
                    self._pace.for_record(seen.server.key, seen.report if usable else None, boot_id),
                    boot_id,
                )
            )

    def _gone(self, key: Key) -> None:
        """The object is gone: what still runs under its name is swept by the host's Toolbox."""
        self._ctx.store.vanished(Kind.MCP_SERVER, key.namespace, key.name)
        self._forget(key)
        for toolbox, view in self._ctx.hosts.all().items():
            if any((item.namespace, item.name) == (key.namespace, key.name) for item in view.instances.values()):
                self._ctx.queue.add(Kind.TOOLBOX, toolbox)

    def _forget(self, key: Key) -> None:
        """Nothing is read for it any more."""
        self._known.pop(key, None)
        self._pace.forget(key)
        self._ctx.sources.forget((Kind.MCP_SERVER, key))
