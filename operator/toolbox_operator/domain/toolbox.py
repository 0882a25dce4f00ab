"""Decisions about a Toolbox: which host it may use, what holds its deletion up, and its status."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache

from toolbox_operator.api.conditions import ConditionType, Reason
from toolbox_operator.api.meta import ANNOTATION_ABANDON, Body, Key
from toolbox_operator.api.parse import ToolboxObject
from toolbox_operator.api.refs import KeyRef
from toolbox_operator.api.toolbox import AgentStatus, ToolboxPhase, ToolboxSpec, ToolboxStatus
from toolbox_operator.domain.conditions import Wanted, find, keep, no, reconciling, stalled, stamp, unknown, yes
from toolbox_operator.domain.hold import Hold, stalled_by
from toolbox_operator.domain.host import HostState, HostView
from toolbox_operator.domain.inputs import Ref, Source, Unresolved, value_of
from toolbox_operator.domain.policy import Next

_NAMED_REFERRERS = 5
CLOCK_TOLERANCE = 30.0
"""Seconds by which clocks may differ without a word: the time that a call takes is part of it."""


@dataclass(frozen=True, slots=True)
class Access:
    """What a Toolbox's Secrets say."""

    token: str = field(repr=False)
    ca_pem: str | None
    gateway_ca_pem: str | None


@dataclass(frozen=True, slots=True)
class ToolboxObserved:
    """Everything a decision about one Toolbox is made on."""

    toolbox: ToolboxObject
    host: HostView | None
    rival: Key | None = None
    """An older Toolbox on the same host."""
    servers: int = 0


def secret_refs(spec: ToolboxSpec) -> tuple[KeyRef, ...]:
    """The Secrets a Toolbox needs, in its own namespace."""
    optional = (spec.ca_secret_ref, spec.gateway_ca_secret_ref)
    return (spec.auth_secret_ref, *(ref for ref in optional if ref is not None))


def access(spec: ToolboxSpec, secrets: Mapping[str, Body | None]) -> Access | Unresolved:
    """Token and CA from the Secrets of `secret_refs`, by name, or what is wrong with them."""
    values: dict[KeyRef, str] = {}
    for ref in secret_refs(spec):
        value = value_of(Ref(Source.SECRET, ref.name), ref.key, secrets.get(ref.name))
        if isinstance(value, Unresolved):
            return value
        values[ref] = value.strip()
    token = values[spec.auth_secret_ref]
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        return Unresolved(
            Reason.SECRET_INVALID,
            f"The key {spec.auth_secret_ref.key} of the Secret {spec.auth_secret_ref.name} is not a token.",
        )
    for ref in (spec.ca_secret_ref, spec.gateway_ca_secret_ref):
        if ref is not None and not is_ca(values[ref]):
            return no_ca(ref)
    ca, gateway_ca = spec.ca_secret_ref, spec.gateway_ca_secret_ref
    return Access(
        token=token,
        ca_pem=None if ca is None else values[ca],
        gateway_ca_pem=None if gateway_ca is None else values[gateway_ca],
    )


def no_ca(ref: KeyRef) -> Unresolved:
    """What is wrong with a value that is no CA."""
    message = f"The key {ref.key} of the Secret {ref.name} is not a CA certificate in PEM form."
    return Unresolved(Reason.SECRET_INVALID, message)


@lru_cache(maxsize=256)
def is_ca(pem: str) -> bool:
    """Whether the text holds certificates that TLS can verify with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError):
        return False
    return bool(context.get_ca_certs())


def host_hold(seen: ToolboxObserved) -> Hold | None:
    """Why a host that has identified itself may not be used by this Toolbox."""
    host, known = seen.host, seen.toolbox.status.host_id
    if host is None or host.host_id is None:
        return None
    if known is not None and known != host.host_id:
        return stalled_by(
            Reason.HOST_CHANGED,
            f"The endpoint now leads to the host {host.host_id}, not to {known}: correct spec.endpoint, or create"
            " another Toolbox for the other host.",
            ConditionType.REACHABLE,
        )
    if seen.rival is not None:
        return stalled_by(
            Reason.HOST_CLAIMED,
            f"The Toolbox {seen.rival} already uses the host {host.host_id}: delete one of the two.",
            ConditionType.REACHABLE,
        )
    return None


def nothing_changes(seen: ToolboxObserved) -> bool:
    """Whether status stands as it is: contact is being made and has not failed, or is still as lost as it was.

    A new process gives the host a whole lease again, but until it was in contact it knows nothing better than Lost.
    """
    host, status = seen.host, seen.toolbox.status
    making = _being_made(host)
    if host is not None and host.state is HostState.UNREACHABLE and not host.synced:
        making = status.phase is ToolboxPhase.LOST
    return making and status.host_id is not None and status.observed_generation == seen.toolbox.generation


def _being_made(host: HostView | None) -> bool:
    return host is None or host.state in (HostState.NEW, HostState.IDENTIFIED)


def held_status(seen: ToolboxObserved, hold: Hold, now: datetime) -> ToolboxStatus:
    """The status of a Toolbox whose host is not used for now."""
    wanted = [no(ConditionType.READY, hold.reason, hold.message)]
    if hold.next is Next.STALLED:
        identified = hold.condition is ConditionType.REACHABLE
        wanted += [_answers() if identified else _reachable(seen.host), stalled(hold.reason, hold.message)]
        return _status(seen, wanted, ToolboxPhase.STALLED, now)
    wanted += [
        unknown(ConditionType.REACHABLE, hold.reason, hold.message),
        reconciling(hold.reason, hold.message),
    ]
    lost = seen.host is not None and seen.host.state is HostState.LOST
    return _status(seen, wanted, ToolboxPhase.LOST if lost else ToolboxPhase.PENDING, now)


def status_of(seen: ToolboxObserved, now: datetime) -> ToolboxStatus:
    """The status of a Toolbox whose host is used, or looked for."""
    host = seen.host
    failure = host.failure if host is not None else None
    message = failure.message if failure is not None else "The host is being contacted."
    match host.state if host is not None else HostState.NEW:
        case HostState.REACHABLE:
            wanted = [_reachable(host), *_ready(host)]
            phase = ToolboxPhase.READY if wanted[1].status == "True" else ToolboxPhase.PENDING
            return _status(seen, wanted, phase, now)
        case HostState.UNREACHABLE:
            reason = failure.reason if failure is not None else Reason.HOST_UNREACHABLE
            phase = ToolboxPhase.UNREACHABLE
        case HostState.LOST:
            reason, phase = Reason.HOST_LOST, ToolboxPhase.LOST
            message = f"There was no contact for longer than spec.leaseDuration. {message if failure else ''}".rstrip()
        case _:
            reason, phase = Reason.PENDING, ToolboxPhase.PENDING
    wanted = [no(ConditionType.READY, reason, message), reconciling(reason, message)]
    truth = unknown if phase is ToolboxPhase.PENDING else no
    wanted.append(truth(ConditionType.REACHABLE, reason, message))
    return _status(seen, wanted, phase, now)


def deleting_status(seen: ToolboxObserved, reason: Reason, message: str, now: datetime) -> ToolboxStatus:
    """The status of a Toolbox that waits to be let go.

    Whether its host is reachable stands as it was while contact is being made: a restart is no news.
    """
    before = find(seen.toolbox.status.conditions, ConditionType.REACHABLE)
    reachable = _reachable(seen.host) if before is None or not _being_made(seen.host) else keep(before)
    wanted = [no(ConditionType.READY, reason, message), reachable, reconciling(reason, message)]
    return _status(seen, wanted, ToolboxPhase.DELETING, now)


def in_use_message(staying: Sequence[Key], leaving: Sequence[Key]) -> str:
    """What a Toolbox that is being deleted waits for, by name, and how not to wait."""
    if staying:
        text = f"Still used by {_names(staying)}: delete them first"
    else:
        text = f"Waiting until {_names(leaving)} have left the host"
    return f'{text}, or annotate the Toolbox with {ANNOTATION_ABANDON}="true" to leave what runs there behind.'


def _names(keys: Sequence[Key]) -> str:
    shown = ", ".join(f"MCPServer {key}" for key in keys[:_NAMED_REFERRERS])
    more = len(keys) - _NAMED_REFERRERS
    return f"{shown} and {more} more" if more > 0 else shown


def _ready(host: HostView | None) -> list[Wanted]:
    facts = host.facts if host is not None else None
    if facts is not None and not facts.engine.available:
        message = "The host's agent answers, but its Docker Engine does not: start Docker there."
        return [no(ConditionType.READY, "EngineUnavailable", message), reconciling("EngineUnavailable", message)]
    if host is not None and host.gateway_down:
        reason = Reason.GATEWAY_UNAVAILABLE
        message = "No gateway worker runs on the host, so agents reach nothing there: start toolbox-dtma gateway."
        return [no(ConditionType.READY, reason, message), reconciling(reason, message)]
    return [yes(ConditionType.READY, Reason.READY, "The host is claimed, configured and watched.")]


def _answers() -> Wanted:
    return yes(ConditionType.REACHABLE, Reason.REACHABLE, "The host answers.")


def _skewed(ahead: float) -> Wanted:
    # In whole minutes: each contact measures a little differently, and that is no news.
    minutes = round(abs(ahead) / 60) or 1
    way = "ahead of" if ahead > 0 else "behind"
    effect = (
        "tokens and connections that end at a time end early there"
        if ahead > 0
        else "while the operator is away, tokens and connections that end at a time end late there"
    )
    message = (
        f"The host answers, but its clock is about {minutes} min {way} the operator's: {effect}. Set both by a time"
        " server."
    )
    return yes(ConditionType.REACHABLE, Reason.CLOCK_SKEWED, message)


def _reachable(host: HostView | None) -> Wanted:
    match host.state if host is not None else HostState.NEW:
        case HostState.REACHABLE | HostState.IDENTIFIED:
            return _skewed(host.ahead) if host is not None and abs(host.ahead) >= CLOCK_TOLERANCE else _answers()
        case HostState.NEW:
            return unknown(ConditionType.REACHABLE, Reason.PENDING, "The host is not contacted.")
        case _:
            failure = host.failure if host is not None else None
            reason = failure.reason if failure is not None else Reason.HOST_UNREACHABLE
            return no(ConditionType.REACHABLE, reason, failure.message if failure is not None else "No answer.")


def _status(seen: ToolboxObserved, wanted: list[Wanted], phase: ToolboxPhase, now: datetime) -> ToolboxStatus:
    toolbox, host = seen.toolbox, seen.host
    usable = host is not None and host.usable
    facts = host.facts if usable and host is not None else None
    return ToolboxStatus(
        phase=phase,
        conditions=stamp(toolbox.status.conditions, wanted, toolbox.generation, now),
        # Recorded once, with the first use: it is what a later host is compared with.
        host_id=toolbox.status.host_id or (host.host_id if usable and host is not None else None),
        agent=toolbox.status.agent
        if facts is None
        else AgentStatus(
            version=facts.version,
            protocol=facts.protocol,
            engine=facts.engine.version,
            os=facts.os,
            arch=facts.arch,
        ),
        servers=seen.servers,
        observed_generation=toolbox.generation,
    )
