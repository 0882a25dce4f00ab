"""The one way status is written, and how conditions carry over."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pydantic import ValidationError

from toolbox_operator.api.conditions import Condition
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


def merge_conditions(
    old: Sequence[Condition], new: Sequence[Condition], now: datetime, generation: int
) -> tuple[Condition, ...]:
    """`new`, in its order, with `lastTransitionTime` kept where the status did not change.

    Types that are only in `old` are dropped. `now` is cut to seconds, as Kubernetes' own times are.
    """
    before = {condition.type: condition for condition in old}
    moment = now.replace(microsecond=0)
    merged: list[Condition] = []
    for condition in new:
        known = before.get(condition.type)
        same = known is not None and known.status == condition.status
        changed_at = known.last_transition_time if known is not None and same else moment
        merged.append(
            condition.model_copy(update={"last_transition_time": changed_at, "observed_generation": generation})
        )
    return tuple(merged)
