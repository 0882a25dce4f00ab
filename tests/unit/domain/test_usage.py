from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from toolbox_operator.api.connection import AgentMCPConnectionStatus
from toolbox_operator.domain.usage import Use, grown, shown_use, wait_left

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)


@pytest.mark.parametrize(
    ("before", "counted", "after"),
    [
        (None, None, None),
        (None, Use(3, NOON), Use(3, NOON)),
        (Use(3, NOON), None, Use(3, NOON)),
        (Use(3, NOON), Use(4, LATER), Use(4, LATER)),
        (Use(4, LATER), Use(3, NOON), Use(4, LATER)),
        (Use(3, LATER), Use(4, NOON), Use(4, LATER)),
    ],
)
def test_neither_number_ever_goes_back(before: Use | None, counted: Use | None, after: Use | None) -> None:
    assert grown(before, counted) == after


def test_a_status_that_knows_of_no_call_shows_no_use() -> None:
    assert shown_use(AgentMCPConnectionStatus()) is None
    assert shown_use(AgentMCPConnectionStatus(calls=3)) is None
    assert shown_use(AgentMCPConnectionStatus(calls=3, last_used_time=NOON)) == Use(3, NOON)


@pytest.mark.parametrize(
    ("shown", "written", "left"),
    [
        (None, None, 0.0),  # the first call ever is shown at once
        (Use(1, NOON), None, 50.0),  # a process before may have written it just before it ended
        (None, 70.0, 30.0),
        (Use(1, NOON), 70.0, 30.0),
        (Use(1, NOON), 40.0, 0.0),
        (Use(1, NOON), 41.5, 1.5),
    ],
)
def test_a_status_says_more_at_most_once_a_minute_also_across_processes(
    shown: Use | None, written: float | None, left: float
) -> None:
    begun, now = 90.0, 100.0
    assert wait_left(shown, written, begun, now, 60.0) == left
