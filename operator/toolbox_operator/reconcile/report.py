"""The one exit of a reconcile: status if it changed, an Event if it was a transition, then what happens next."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Literal, NoReturn

from toolbox_dtma.wire import ProblemCode
from toolbox_operator.api.conditions import Condition, ConditionType, Reason
from toolbox_operator.api.connection import AgentMCPConnectionStatus
from toolbox_operator.api.mcpserver import MCPServerStatus
from toolbox_operator.api.meta import Body
from toolbox_operator.api.parse import ConnectionObject, ServerObject, ToolboxObject
from toolbox_operator.api.toolbox import ToolboxStatus
from toolbox_operator.domain.conditions import find, is_true
from toolbox_operator.domain.hold import Hold, waits_for
from toolbox_operator.domain.policy import PROBLEMS, Next, unknown_fields, unknown_transport
from toolbox_operator.hosts.api import HostError, HostProblem, HostUnauthorized, HostUnreachable, HostUntrusted
from toolbox_operator.kube.api import KubeError, Refused
from toolbox_operator.reconcile.context import Context
from toolbox_operator.reconcile.errors import Fenced, ReconcileError, Stalled, Waiting
from toolbox_operator.reconcile.status import write_status
from toolbox_operator.runtime import NOTHING, Outcome, Timings

AnyObject = ToolboxObject | ServerObject | ConnectionObject
AnyStatus = ToolboxStatus | MCPServerStatus | AgentMCPConnectionStatus

_ORDINARY: Final = frozenset(
    str(reason)
    for reason in (
        Reason.PENDING,
        Reason.RECONCILING,
        Reason.DELETING,
        Reason.STOPPED,
        Reason.STOPPING,
        Reason.INACTIVE,
        Reason.EXPIRED,
        Reason.SERVER_NOT_READY,
        Reason.ACK_PENDING,
        Reason.ROTATING,
        Reason.TOOLBOX_NOT_READY,
        Reason.REVOCATION_PENDING,
    )
) | {"Pulling", "Creating", "Starting"}
"""Reasons for not being Ready that nobody has to be warned of."""


async def report(ctx: Context, obj: AnyObject, status: AnyStatus) -> bool:
    """Write status when it differs, and tell people about a transition. Returns whether it was written."""
    if await write_status(ctx.kube, obj.body, status) is None:
        return False
    before = find(obj.status.conditions, ConditionType.READY)
    after = find(status.conditions, ConditionType.READY)
    if after is not None and _transition(before, after):
        calm = after.status == "True" or (
            after.reason in _ORDINARY and not is_true(status.conditions, ConditionType.STALLED)
        )
        event(ctx, obj.body, "Normal" if calm else "Warning", after.reason, after.message)
    before = find(obj.status.conditions, ConditionType.REACHABLE)
    after = find(status.conditions, ConditionType.REACHABLE)
    # A host can be used although its clock is wrong: Ready says nothing of it.
    if after is not None and after.reason == Reason.CLOCK_SKEWED and _transition(before, after):
        event(ctx, obj.body, "Warning", after.reason, after.message)
    return True


def event(ctx: Context, body: Body, type_: Literal["Normal", "Warning"], reason: str, note: str) -> None:
    """Tell people what happened to an object."""
    ctx.events.record(body, type_, reason, note, "Reconcile")


def left_behind(
    ctx: Context, obj: ToolboxObject | ServerObject | ConnectionObject, object_id: str, message: str
) -> None:
    """Record that an object is let go although its host was not cleaned: for people, and for the record."""
    reason = Reason.ABANDONED
    ctx.store.log(object_kind=obj.kind, object_id=object_id, type_="Warning", reason=reason, message=message)
    event(ctx, obj.body, "Warning", reason, message)


def _transition(before: Condition | None, after: Condition) -> bool:
    return before is None or (before.status, before.reason) != (after.status, after.reason)


def hold_of(error: HostError, condition: ConditionType = ConditionType.DEPLOYED) -> Hold:
    """What a failed host call means for the object it was made for. Raises `Fenced` when it means that."""
    match error:
        case HostProblem(code=code, detail=detail):
            policy = PROBLEMS[code]
            if policy.next is Next.FENCED:
                raise Fenced("another leader is ahead of us at a host") from error
            message = f"The host answered {code}: {detail.rstrip('.') or 'no details'}; {policy.advice}."
            if code is ProblemCode.INVALID and unknown_transport(detail):
                message = "The host is too old for this transport: upgrade the host."
            elif code is ProblemCode.INVALID and (unknown := unknown_fields(detail)):
                fields = ", ".join(unknown)
                message = f"The host is too old to know {fields}: upgrade the host, or do without in the spec."
            return Hold(policy.next, condition, str(policy.reason), message)
        case HostUntrusted():
            return Hold(Next.WAITING, condition, Reason.HOST_TLS_FAILED, f"The host is not trusted: {error}.")
        case HostUnauthorized():
            return Hold(Next.WAITING, condition, Reason.HOST_UNAUTHORIZED, f"The host refused our token: {error}.")
        case HostUnreachable():
            return Hold(Next.WAITING, condition, Reason.HOST_UNREACHABLE, f"The host cannot be reached: {error}.")
        case _:
            return Hold(Next.WAITING, condition, Reason.HOST_REJECTED, f"The host refused: {error}.")


def leave(hold: Hold, timings: Timings) -> Outcome:
    """End a reconcile that was held: an outcome where others will requeue the key, else the error to raise."""
    if hold.quiet:
        return NOTHING
    give_up(hold, timings)


def give_up(hold: Hold, timings: Timings) -> NoReturn:
    """The error type that a hold means."""
    if hold.next is Next.STALLED:
        raise Stalled(hold.reason, hold.message, condition=hold.condition)
    if hold.next is Next.SOON:
        raise Waiting(hold.reason, hold.message, condition=hold.condition, after=timings.backoff_first)
    after = timings.ref_retry if hold.quick else None
    raise Waiting(hold.reason, hold.message, condition=hold.condition, after=after)


async def explained(work: Awaitable[Outcome], explain: Callable[[Hold], Awaitable[object]]) -> Outcome:
    """Do the work of a reconcile; when it is refused or fails as nobody planned, have status say so, then fail.

    The workers log and retry it. Without this a defect would leave the object with a status of better days.
    """
    try:
        return await work
    except Refused as error:
        # A quota, a webhook or a missing right: the person at the object may be the one who can change it.
        message = f"Kubernetes refused a write of the operator, which tries again: {error}"
        await explain(waits_for(Reason.KUBERNETES_REFUSED, message, ConditionType.READY, quiet=True))
        raise
    except (ReconcileError, KubeError, Fenced, TimeoutError):
        raise
    except Exception as error:
        # The boundary of one object's reconcile; raised again below.
        message = f"The operator failed ({type(error).__name__}); its log says more. It tries again."
        await explain(waits_for(Reason.INTERNAL_ERROR, message, ConditionType.READY, quiet=True))
        raise
