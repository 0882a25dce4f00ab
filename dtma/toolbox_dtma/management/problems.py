"""How a request is refused."""

from __future__ import annotations

from starlette.responses import Response

from toolbox_dtma.state.files import NO_SPACE
from toolbox_dtma.wire import HTTP_STATUS, Problem, ProblemCode

MEDIA_TYPE = "application/problem+json"
MAX_DETAIL = 2000

TITLES: dict[ProblemCode, str] = {
    ProblemCode.UNAUTHENTICATED: "The bearer token is missing or wrong",
    ProblemCode.FORBIDDEN: "Not allowed",
    ProblemCode.INVALID: "The request is not valid",
    ProblemCode.OWNER_MISSING: "The Toolbox-Owner header is missing",
    ProblemCode.EPOCH_MISSING: "The Toolbox-Epoch header is missing",
    ProblemCode.NOT_FOUND: "There is no such thing here",
    ProblemCode.METHOD_NOT_ALLOWED: "This method is not available here",
    ProblemCode.NOT_CLAIMED: "This owner has not claimed the host",
    ProblemCode.FENCED_EPOCH: "A newer leader of this owner has claimed the host",
    ProblemCode.OWNER_MISMATCH: "The id belongs to another owner",
    ProblemCode.IDENTITY_MISMATCH: "The id belongs to an object of another namespace or name",
    ProblemCode.STALE_GENERATION: "The host already holds a newer generation",
    ProblemCode.DELETED: "The object was deleted",
    ProblemCode.INSTANCE_UNKNOWN: "The host has no such instance",
    ProblemCode.ACK_PENDING: "Stored, but not yet acknowledged by every gateway worker",
    ProblemCode.GONE: "The events asked for are no longer held; list again",
    ProblemCode.ENGINE_UNAVAILABLE: "The Docker Engine does not answer",
    ProblemCode.TOO_LARGE: "The request is too large",
    ProblemCode.DISK_FULL: "The host's disk is full",
    ProblemCode.INTERNAL: "The host could not do this",
}


class Refused(Exception):
    """A request ends with this problem."""

    def __init__(self, code: ProblemCode, detail: str = "", *, current: int | None = None):
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail[:MAX_DETAIL]
        self.current = current


def problem_response(refused: Refused) -> Response:
    """The answer to a refused request."""
    status = HTTP_STATUS[refused.code]
    problem = Problem(
        title=TITLES[refused.code],
        status=status,
        code=refused.code,
        detail=refused.detail,
        current=refused.current,
    )
    headers = {"WWW-Authenticate": "Bearer"} if refused.code is ProblemCode.UNAUTHENTICATED else None
    return Response(problem.model_dump_json(by_alias=True), status, headers, MEDIA_TYPE)


def unexpected(error: Exception) -> Refused:
    """What a caller is told of an error that nobody foresaw: no more than its kind."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return Refused(ProblemCode.DISK_FULL, "nothing was changed: the host has no space to write its state")
    if isinstance(error, OSError) and error.strerror:
        return Refused(ProblemCode.INTERNAL, f"the host's state could not be written: {error.strerror}")
    return Refused(ProblemCode.INTERNAL, f"see the host's log ({type(error).__name__})")
