"""Status is written once, only when it means something else."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from support.reconcilers.fakes import body_of
from toolbox_operator.api.conditions import Condition
from toolbox_operator.api.meta import Kind
from toolbox_operator.api.toolbox import ToolboxPhase, ToolboxStatus
from toolbox_operator.reconcile.status import status_differs

EARLY = datetime(2026, 1, 1, tzinfo=UTC)


def ready(status: str = "True", *, at: datetime = EARLY, reason: str = "Ready", generation: int = 1) -> Condition:
    return Condition.model_validate(
        {
            "type": "Ready",
            "status": status,
            "reason": reason,
            "lastTransitionTime": at,
            "observedGeneration": generation,
        }
    )


def stored(status: ToolboxStatus | None) -> dict[str, Any]:
    body = body_of(Kind.TOOLBOX, "a", 1)
    if status is not None:
        body["status"] = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return body


def test_an_object_without_status_gets_one_even_if_it_is_all_defaults() -> None:
    assert status_differs(stored(None), ToolboxStatus())


def test_the_same_status_is_not_written_again() -> None:
    status = ToolboxStatus(phase=ToolboxPhase.READY, conditions=(ready(),), observed_generation=1)
    assert not status_differs(stored(status), status)


def test_notation_is_no_difference() -> None:
    status = ToolboxStatus(phase=ToolboxPhase.READY, conditions=(ready(),))
    body = stored(status)
    body["status"]["conditions"][0]["lastTransitionTime"] = "2026-01-01T01:00:00+01:00"
    del body["status"]["servers"]
    assert not status_differs(body, status)


def test_another_message_is_a_difference() -> None:
    status = ToolboxStatus(conditions=(ready(),))
    changed = ToolboxStatus(conditions=(ready().model_copy(update={"message": "now"}),))
    assert status_differs(stored(status), changed)


def test_a_status_that_cannot_be_read_is_replaced() -> None:
    body = stored(None)
    body["status"] = {"phase": "Nonsense"}
    assert status_differs(body, ToolboxStatus())
