"""The one table of what a failure means: error type, reason, phase and retry of every code a host can give.

Both tables are total over their enums (a test holds them to it): a code that the wire gains is decided on here.
`python -m toolbox_operator.domain.policy` prints them for the documentation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from toolbox_dtma.wire import InstanceReason, ProblemCode
from toolbox_operator.api.conditions import ConditionType, Reason
from toolbox_operator.api.mcpserver import MCPServerPhase

_UNKNOWN_FIELD = re.compile(r"(?:^|; )body\.([A-Za-z.]+): Extra inputs are not permitted")

_UNKNOWN_TRANSPORT = re.compile(r"(?:^|; )body\.transport: Input should be ")


def unknown_fields(detail: str) -> tuple[str, ...]:
    """The fields that a host, by what it says of a request, does not know. Every version of DTMA says it so.

    >>> unknown_fields("body.limits: Extra inputs are not permitted; body.name: String should have at most 63")
    ('limits',)
    """
    return tuple(_UNKNOWN_FIELD.findall(detail))


def unknown_transport(detail: str) -> bool:
    """Whether a host, by what it says of a request, does not know the transport that it asks for.

    >>> unknown_transport("body.transport: Input should be 'streamable-http'; body.port: Field required")
    True
    """
    return _UNKNOWN_TRANSPORT.search(detail) is not None


class Next(StrEnum):
    """What happens after a failure; each is one error type of `reconcile.errors`."""

    STALLED = "Stalled"
    """Nothing, until this object is edited."""
    WAITING = "Waiting"
    """Tried again with the key's back-off, at most 30 s apart."""
    SOON = "Soon"
    """Tried again within moments: our knowledge was old."""
    FENCED = "Fenced"
    """Nothing is written any more by this process."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What one code of a host means for the object that the call was about."""

    next: Next
    reason: Reason
    advice: str
    condition: ConditionType = ConditionType.DEPLOYED


def _waiting(reason: Reason, advice: str) -> Policy:
    return Policy(Next.WAITING, reason, advice)


PROBLEMS: Final[dict[ProblemCode, Policy]] = {
    ProblemCode.UNAUTHENTICATED: _waiting(Reason.HOST_UNAUTHORIZED, "put the host's current token into authSecretRef"),
    ProblemCode.FORBIDDEN: _waiting(Reason.HOST_UNAUTHORIZED, "put the host's current token into authSecretRef"),
    ProblemCode.INVALID: _waiting(Reason.HOST_REJECTED, "bring the host to the operator's version"),
    ProblemCode.OWNER_MISSING: _waiting(Reason.HOST_REJECTED, "bring the host to the operator's version"),
    ProblemCode.EPOCH_MISSING: _waiting(Reason.HOST_REJECTED, "bring the host to the operator's version"),
    ProblemCode.NOT_FOUND: _waiting(Reason.HOST_REJECTED, "bring the host to the operator's version"),
    ProblemCode.METHOD_NOT_ALLOWED: _waiting(Reason.HOST_REJECTED, "bring the host to the operator's version"),
    ProblemCode.NOT_CLAIMED: Policy(Next.SOON, Reason.HOST_REJECTED, "the host is claimed again by itself"),
    ProblemCode.FENCED_EPOCH: Policy(Next.FENCED, Reason.HOST_REJECTED, "another leader is ahead"),
    ProblemCode.OWNER_MISMATCH: Policy(
        Next.STALLED,
        Reason.INSTANCE_ID_IN_USE,
        "another cluster owns this id on the host: remove it there, or create this one anew with another instance-id",
    ),
    ProblemCode.IDENTITY_MISMATCH: Policy(
        Next.STALLED,
        Reason.INSTANCE_ID_IN_USE,
        "an object of another name owns this id on the host: create this one anew with another instance-id",
    ),
    ProblemCode.STALE_GENERATION: Policy(Next.SOON, Reason.HOST_REJECTED, "the host knows a newer generation"),
    ProblemCode.DELETED: Policy(
        Next.STALLED,
        Reason.HOST_REJECTED,
        "the host has removed this object for good: delete it and create it again",
    ),
    ProblemCode.INSTANCE_UNKNOWN: _waiting(Reason.SERVER_NOT_READY, "the server is not on the host yet"),
    ProblemCode.ACK_PENDING: _waiting(Reason.ACK_PENDING, "the gateway is about to acknowledge"),
    ProblemCode.GONE: Policy(Next.SOON, Reason.HOST_REJECTED, "the host is listed again by itself"),
    ProblemCode.ENGINE_UNAVAILABLE: _waiting(Reason.HOST_REJECTED, "start Docker on the host"),
    ProblemCode.TOO_LARGE: Policy(Next.STALLED, Reason.SPEC_INVALID, "make the spec and its values smaller"),
    ProblemCode.DISK_FULL: _waiting(Reason.DISK_FULL, "free space on the host's disk"),
    ProblemCode.INTERNAL: _waiting(Reason.HOST_REJECTED, "look into the log of the host's agent"),
}

INSTANCES: Final[dict[InstanceReason, tuple[MCPServerPhase, str]]] = {
    InstanceReason.PULLING: (MCPServerPhase.PENDING, "the image is being pulled"),
    InstanceReason.CREATING: (MCPServerPhase.PENDING, "the container is being created"),
    InstanceReason.STARTING: (MCPServerPhase.STARTING, "the container runs; the server has not answered yet"),
    InstanceReason.READY: (MCPServerPhase.ACTIVE, "the server answers"),
    InstanceReason.STOPPED: (MCPServerPhase.STOPPED, "the server is stopped, as its spec wants"),
    InstanceReason.IMAGE_NOT_FOUND: (MCPServerPhase.ERROR, "there is no such image: check spec.image or push it"),
    InstanceReason.IMAGE_PULL_FAILED: (MCPServerPhase.ERROR, "the image cannot be pulled: check its registry"),
    InstanceReason.IMAGE_INVALID: (MCPServerPhase.ERROR, "the image cannot be used: check spec.image"),
    InstanceReason.REGISTRY_UNAUTHORIZED: (
        MCPServerPhase.ERROR,
        "the registry refuses our credentials: check spec.imagePullSecrets",
    ),
    InstanceReason.CREATE_FAILED: (MCPServerPhase.ERROR, "the container cannot be created"),
    InstanceReason.START_FAILED: (MCPServerPhase.ERROR, "the container cannot be started: check command and args"),
    InstanceReason.CONTAINER_EXITED: (MCPServerPhase.ERROR, "the container exited and is started again"),
    InstanceReason.OUT_OF_MEMORY: (
        MCPServerPhase.ERROR,
        "the container ran out of memory: raise spec.resources.limits.memory",
    ),
    InstanceReason.PORT_NOT_LISTENING: (MCPServerPhase.ERROR, "nothing listens on spec.port"),
    InstanceReason.PROBE_FAILED: (
        MCPServerPhase.ERROR,
        "no MCP conversation came about: check port and path",
    ),
    InstanceReason.DISK_FULL: (MCPServerPhase.ERROR, "the host's disk is full"),
    InstanceReason.NETWORK_FAILED: (MCPServerPhase.ERROR, "the host cannot give the container a network"),
    InstanceReason.VOLUME_FAILED: (MCPServerPhase.ERROR, "the host cannot give the container its volumes"),
    InstanceReason.ENGINE_UNAVAILABLE: (MCPServerPhase.UNKNOWN, "Docker does not answer on the host"),
}
"""For each reason a host gives: the phase it usually means, and what to say when the host says nothing."""


STDIO: Final[dict[InstanceReason, str]] = {
    InstanceReason.STARTING: "the server has not answered yet",
    InstanceReason.CONTAINER_EXITED: "the server's process ended before it had answered",
    InstanceReason.PORT_NOT_LISTENING: "the server does not answer on its standard output",
    InstanceReason.PROBE_FAILED: (
        "no MCP conversation came about: the server has to speak MCP on standard input and output, and to log to"
        " standard error only"
    ),
}
"""What some of these mean of a server that speaks stdio: it has no port, and no container that stays."""


def meaning(reason: InstanceReason, *, stdio: bool) -> str:
    """What a reason means, of this kind of server."""
    ours = INSTANCES[reason][1]
    return STDIO.get(reason, ours) if stdio else ours


def as_markdown() -> str:
    """Both tables, for the documentation."""
    lines = [
        "# What failures mean",
        "",
        "Written by `make crds` from `toolbox_operator/domain/policy.py`. *Stalled* waits for an edit of the object,",
        "*Waiting* tries again with back-off (at most 30 s), *Soon* at once. After *Fenced* this process stops",
        "writing.",
        "",
        "| host answers | error type | reason | what helps |",
        "|---|---|---|---|",
    ]
    lines += [f"| {code} | {p.next} | {p.reason} | {p.advice} |" for code, p in PROBLEMS.items()]
    lines += ["", "| host reports | phase | meaning | of a server that speaks stdio |", "|---|---|---|---|"]
    lines += [
        f"| {reason} | {phase} | {ours} | {STDIO.get(reason, '')} |" for reason, (phase, ours) in INSTANCES.items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")
