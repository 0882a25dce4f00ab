"""The one way status is written."""

from __future__ import annotations

from pydantic import ValidationError

from toolbox_operator.api.meta import Body, Kind, StatusModel
from toolbox_operator.kube.api import RESOURCE_OF, Kube


async def write_status(kube: Kube, body: Body, status: StatusModel) -> Body | None:
    """Write `status` unless the body's own means the same. The body as written, or None when nothing was.

    Raises what `Kube.replace_status` raises; `Conflict` when the body is not the newest.
    """
    if not status_differs(body, status):
        return None
    wire = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return await kube.replace_status(RESOURCE_OF[Kind(body["kind"])], body, wire)


def status_differs(body: Body, status: StatusModel) -> bool:
    """Whether `status` says anything else than the body's: compared as models, so notation doesn't count."""
    try:
        return type(status).model_validate(body.get("status") or {}) != status or not body.get("status")
    except ValidationError:
        return True
