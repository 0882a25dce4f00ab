"""Errors of the management API: `application/problem+json` (RFC 9457) with a stable `code`.

>>> code = ProblemCode.FENCED_EPOCH
>>> fenced = Problem(title="Fenced", status=HTTP_STATUS[code], code=code, current=4)
>>> fenced.model_dump(mode="json", exclude_defaults=True)
{'title': 'Fenced', 'status': 409, 'code': 'FencedEpoch', 'current': 4}
"""

from __future__ import annotations

from enum import StrEnum

from toolbox_dtma.wire.base import Answer


class ProblemCode(StrEnum):
    """What went wrong, for machines. The operator maps each to an error type (design §4)."""

    UNAUTHENTICATED = "Unauthenticated"
    FORBIDDEN = "Forbidden"
    INVALID = "Invalid"
    OWNER_MISSING = "OwnerMissing"
    EPOCH_MISSING = "EpochMissing"
    NOT_FOUND = "NotFound"
    METHOD_NOT_ALLOWED = "MethodNotAllowed"
    NOT_CLAIMED = "NotClaimed"
    FENCED_EPOCH = "FencedEpoch"
    OWNER_MISMATCH = "OwnerMismatch"
    IDENTITY_MISMATCH = "IdentityMismatch"
    """The id belongs to an object of another namespace or name."""
    STALE_GENERATION = "StaleGeneration"
    DELETED = "Deleted"
    INSTANCE_UNKNOWN = "InstanceUnknown"
    ACK_PENDING = "AckPending"
    GONE = "Gone"
    ENGINE_UNAVAILABLE = "EngineUnavailable"
    TOO_LARGE = "TooLarge"
    DISK_FULL = "DiskFull"
    """The host's state cannot be written for want of space; what it holds already stays as it is."""
    INTERNAL = "Internal"


HTTP_STATUS: dict[ProblemCode, int] = {
    ProblemCode.UNAUTHENTICATED: 401,
    ProblemCode.FORBIDDEN: 403,
    ProblemCode.INVALID: 422,
    ProblemCode.OWNER_MISSING: 400,
    ProblemCode.EPOCH_MISSING: 400,
    ProblemCode.NOT_FOUND: 404,
    ProblemCode.METHOD_NOT_ALLOWED: 405,
    ProblemCode.NOT_CLAIMED: 409,
    ProblemCode.FENCED_EPOCH: 409,
    ProblemCode.OWNER_MISMATCH: 409,
    ProblemCode.IDENTITY_MISMATCH: 409,
    ProblemCode.STALE_GENERATION: 409,
    ProblemCode.DELETED: 410,
    ProblemCode.INSTANCE_UNKNOWN: 409,
    ProblemCode.ACK_PENDING: 504,
    ProblemCode.GONE: 410,
    ProblemCode.ENGINE_UNAVAILABLE: 503,
    ProblemCode.TOO_LARGE: 413,
    ProblemCode.DISK_FULL: 507,
    ProblemCode.INTERNAL: 500,
}
"""The one HTTP status of each code."""


class Problem(Answer):
    """Body of every error. `current` is set with `FencedEpoch` (the epoch the host holds)."""

    type: str = "about:blank"
    title: str
    status: int
    code: ProblemCode
    detail: str = ""
    current: int | None = None
