"""Reconciles a Toolbox: contact with its host, and what is on the host without an object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from toolbox_operator.api.conditions import ConditionType, Reason
from toolbox_operator.api.meta import FINALIZER_CLEANUP, FINALIZER_IN_USE, Key, Kind
from toolbox_operator.api.parse import ToolboxObject, parse_toolbox
from toolbox_operator.api.quantity import parse_duration
from toolbox_operator.api.toolbox import ToolboxSpec, ToolboxStatus
from toolbox_operator.domain.hold import Hold, stalled_by, waits_for
from toolbox_operator.domain.host import HostFailure, HostState, HostView
from toolbox_operator.domain.inputs import Ref, Source, Unresolved
from toolbox_operator.domain.toolbox import (
    ToolboxObserved,
    access,
    held_status,
    host_hold,
    nothing_changes,
    secret_refs,
    status_of,
)
from toolbox_operator.domain.values import seniority
from toolbox_operator.hosts.api import HostError, HostSettings
from toolbox_operator.kube.api import TOOLBOXES
from toolbox_operator.reconcile import in_use
from toolbox_operator.reconcile.context import Context
from toolbox_operator.reconcile.lookups import read
from toolbox_operator.reconcile.metadata import patch_metadata
from toolbox_operator.reconcile.relations import recorded_host, requeue_users, servers_of
from toolbox_operator.reconcile.report import explained, hold_of, leave, report
from toolbox_operator.reconcile.rows import toolbox_row
from toolbox_operator.reconcile.sweep import sweep
from toolbox_operator.reconcile.toolbox_removal import ToolboxRemoval
from toolbox_operator.runtime import NOTHING, Outcome, Timings

_A_MOMENT = 0.05
"""Seconds added to a deadline, so that it has passed when the key comes back."""

_SECRETS_AT_FAULT: Final = (Reason.HOST_UNAUTHORIZED, Reason.HOST_TLS_FAILED)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What servers and connections see of a Toolbox besides its object; they are requeued when it changes."""

    uid: str
    state: HostState | None
    contact: int
    """Also when the host looks as before: what was asked for between two contacts is still to be done."""
    gateway_down: bool
    gateway_ca: str | None
    """What connections copy into their Secrets; None: there is none, or none that can be read."""


class ToolboxReconciler:
    """Toolboxes."""

    kind = Kind.TOOLBOX

    def __init__(self, context: Context):
        self._ctx = context
        self._shown: dict[Key, _Seen] = {}
        self._gateway_cas: dict[Key, str] = {}
        self._removal = ToolboxRemoval(context)

    async def reconcile(self, key: Key) -> Outcome:
        return await explained(self._reconcile(key), lambda hold: self._explain(key, hold))

    async def _reconcile(self, key: Key) -> Outcome:
        body = self._ctx.cache.get(Kind.TOOLBOX, key)
        if body is None:
            await self._ctx.hosts.drop(key)
            self._ctx.store.vanished(Kind.TOOLBOX, key.namespace, key.name)
            self._ctx.sources.forget((Kind.TOOLBOX, key))
            self._gateway_cas.pop(key, None)
            self._show(key, None)
            return NOTHING
        toolbox = parse_toolbox(body)
        if toolbox.deleting:
            return await self._delete(toolbox)
        if toolbox.problem is not None or toolbox.spec is None:
            problem = toolbox.problem
            reason = problem.reason if problem is not None else Reason.SPEC_INVALID
            message = problem.message if problem is not None else "spec: required"
            return await self._held(self._observe(toolbox), stalled_by(reason, message, ConditionType.READY))
        spec = toolbox.spec
        toolbox = parse_toolbox(await patch_metadata(self._ctx.kube, TOOLBOXES, toolbox.body, add=FINALIZER_CLEANUP))
        hold = await self.contact(toolbox, spec)
        if hold is not None:
            return await self._held(self._observe(toolbox), hold)
        toolbox = await self._hold_or_let_go(toolbox)
        seen = self._observe(toolbox)
        if nothing_changes(seen):
            self._show(key, seen)
            return _next(seen.host, self._ctx.timings)
        await self._report(seen, status_of(seen, self._ctx.clock.now()))
        if seen.host is not None and seen.host.usable:
            try:
                await sweep(self._ctx, toolbox.key, seen.host)
            except HostError as error:
                return leave(hold_of(error), self._ctx.timings)
        return _next(seen.host, self._ctx.timings)

    async def contact(self, toolbox: ToolboxObject, spec: ToolboxSpec) -> Hold | None:
        """See to it that the host is in contact, if it may be; what stands against it otherwise."""
        lease = float(parse_duration(spec.lease_duration))
        refs = dict.fromkeys(Ref(Source.SECRET, ref.name) for ref in secret_refs(spec))
        # Before they are read, so that no change is missed in between.
        self._ctx.sources.reads((Kind.TOOLBOX, toolbox.key), refs)
        found = await read(self._ctx, toolbox.key.namespace, refs)
        means = access(spec, {ref.name: body for ref, body in found.items()})
        self._gateway_cas.pop(toolbox.key, None)
        if isinstance(means, Unresolved):
            self._ctx.hosts.cannot(toolbox.key, HostFailure(means.reason, means.message), lease=lease)
            return waits_for(means.reason, means.message, ConditionType.REACHABLE)
        if means.gateway_ca_pem is not None:
            self._gateway_cas[toolbox.key] = means.gateway_ca_pem
        settings = HostSettings(
            endpoint=spec.endpoint, token=means.token, gateway_url=spec.gateway_url, ca_pem=means.ca_pem
        )
        await self._ctx.hosts.ensure(toolbox.key, toolbox.uid, settings, lease=lease)
        seen = self._observe(toolbox)
        hold = host_hold(seen)
        if hold is not None:
            changed = hold.reason == Reason.HOST_CHANGED
            self._ctx.hosts.refuse(toolbox.key, HostFailure(Reason.HOST_CHANGED, hold.message) if changed else None)
        elif seen.host is not None and seen.host.host_id is not None:
            self._ctx.hosts.admit(toolbox.key, seen.host.host_id)
        return hold

    async def _explain(self, key: Key, hold: Hold) -> None:
        """Have status say what went wrong, unless the object is gone or on its way out."""
        body = self._ctx.cache.get(Kind.TOOLBOX, key)
        if body is not None and not body["metadata"].get("deletionTimestamp"):
            await self._held(self._observe(parse_toolbox(body)), hold)

    def _observe(self, toolbox: ToolboxObject) -> ToolboxObserved:
        host = self._ctx.hosts.view(toolbox.key)
        return ToolboxObserved(
            toolbox=toolbox,
            host=host,
            rival=self._rival(toolbox, host),
            servers=len(servers_of(self._ctx, toolbox)),
        )

    def _rival(self, toolbox: ToolboxObject, host: HostView | None) -> Key | None:
        """An older Toolbox that uses the same host."""
        if host is None or host.host_id is None:
            return None
        for body in self._ctx.cache.all(Kind.TOOLBOX):
            other = Key.of(body)
            if other == toolbox.key or seniority(body) > seniority(toolbox.body):
                continue
            view = self._ctx.hosts.view(other)
            if host.host_id in (recorded_host(body), view.host_id if view is not None and view.usable else None):
                return other
        return None

    async def _hold_or_let_go(self, toolbox: ToolboxObject) -> ToolboxObject:
        """Keep the `in-use` finalizers in step with the Secrets referred to, and with whether anybody needs them."""
        if FINALIZER_IN_USE not in toolbox.finalizers:
            return toolbox
        if servers_of(self._ctx, toolbox):
            return await in_use.hold(self._ctx, toolbox)
        if await self._removal.unused(toolbox):
            return await in_use.let_go(self._ctx, toolbox)
        return toolbox

    async def _delete(self, toolbox: ToolboxObject) -> Outcome:
        if FINALIZER_CLEANUP not in toolbox.finalizers and FINALIZER_IN_USE not in toolbox.finalizers:
            return NOTHING
        if toolbox.spec is not None:
            # The servers that leave need the host, also when this process never was in contact with it.
            await self.contact(toolbox, toolbox.spec)
        seen = self._observe(toolbox)
        self._show(toolbox.key, seen)
        return await self._removal.remove(seen)

    async def _held(self, seen: ToolboxObserved, hold: Hold) -> Outcome:
        await self._report(seen, held_status(seen, hold, self._ctx.clock.now()))
        return leave(hold, self._ctx.timings)

    async def _report(self, seen: ToolboxObserved, status: ToolboxStatus) -> None:
        await report(self._ctx, seen.toolbox, status)
        self._ctx.store.submit(toolbox_row(seen.toolbox, status))
        self._show(seen.toolbox.key, seen)

    def _show(self, key: Key, seen: ToolboxObserved | None) -> None:
        """Requeue the servers and connections of a Toolbox when what they see of it changed."""
        shown = None
        if seen is not None:
            host = seen.host
            shown = _Seen(
                seen.toolbox.uid,
                host.state if host is not None else None,
                host.contact if host is not None else 0,
                host is not None and host.gateway_down,
                self._gateway_cas.get(key),
            )
        if self._shown.get(key) == shown:
            return
        if shown is None:
            self._shown.pop(key, None)
        else:
            self._shown[key] = shown
        requeue_users(self._ctx, key)


def _next(host: HostView | None, timings: Timings) -> Outcome:
    """Come back when the lease has run out, and to see whether a Secret that keeps us from the host was put right."""
    if host is None:
        return NOTHING
    moments = [] if host.lost_in is None else [host.lost_in + _A_MOMENT]
    if host.failure is not None and host.failure.reason in _SECRETS_AT_FAULT:
        # A net: a change of these Secrets is told by their watch.
        moments.append(timings.backoff_max)
    return Outcome(min(moments)) if moments else NOTHING
