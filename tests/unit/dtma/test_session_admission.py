"""Who may open a session, and when a spare is kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from toolbox_dtma.link.broker import Refused
from toolbox_dtma.link.messages import GrantPolicy
from toolbox_dtma.sessions.admission import admit, allowed_until
from toolbox_dtma.sessions.spares import BackOff, Use, unwanted_at, wanted
from toolbox_dtma.wire import Credential, Expose

NOW = datetime(2026, 11, 1, tzinfo=UTC)
SOON = NOW + timedelta(minutes=1)
LATER = NOW + timedelta(hours=1)
PAST = NOW - timedelta(seconds=1)


def grant(*not_after: datetime | None, **changes: Any) -> GrantPolicy:
    credentials = tuple(Credential(value="a" * 64, not_after=end) for end in not_after)
    fields: dict[str, Any] = {
        "uid": "c-1", "instance": "i-1", "credentials": credentials, "server_expose": Expose(), "expose": Expose(),
    }  # fmt: skip
    return GrantPolicy(**(fields | changes))


@pytest.mark.parametrize(
    ("held", "until"),
    [
        (None, None),
        (grant(None, instance="i-2"), None),
        (grant(), None),
        (grant(PAST), None),
        (grant(None, expires_at=PAST), None),
        (grant(None, expires_at=NOW), None),
        (grant(SOON), SOON),
        (grant(PAST, SOON), SOON),
        (grant(SOON, LATER), LATER),
        (grant(None, expires_at=LATER), LATER),
        (grant(SOON, expires_at=LATER), SOON),
        (grant(None), datetime.max.replace(tzinfo=UTC)),
    ],
)
def test_a_connection_may_use_its_instance_while_one_credential_is_good(
    held: GrantPolicy | None, until: datetime | None
) -> None:
    assert allowed_until(held, "i-1", NOW) == until


@pytest.mark.parametrize(
    ("allowed", "deployed", "opened", "why"),
    [
        (True, True, 0, None),
        (True, True, 9, None),
        (True, True, 10, Refused.FULL),
        (True, True, 11, Refused.FULL),
        (True, False, 0, Refused.STOPPED),
        (False, True, 0, Refused.UNKNOWN),
        # Who has no right does not learn whether it runs, nor how full it is.
        (False, False, 10, Refused.UNKNOWN),
    ],
)
def test_a_session_is_refused_for_the_first_reason(
    allowed: bool, deployed: bool, opened: int, why: Refused | None
) -> None:
    refusal = admit(allowed=allowed, deployed=deployed, open_sessions=opened, max_sessions=10)
    assert (refusal.why if refusal else None) is why
    if refusal is not None:
        assert (refusal.retry_seconds is None) is (why is Refused.UNKNOWN)


def use(**changes: Any) -> Use:
    fields: dict[str, Any] = {
        "deployed": True, "open_sessions": 0, "max_sessions": 3, "last_used": 100.0, "idle_seconds": 60.0,
    }  # fmt: skip
    return Use(**(fields | changes))


@pytest.mark.parametrize(
    ("at", "now", "is_wanted"),
    [
        (use(), 150.0, True),
        (use(), 160.0, False),
        (use(open_sessions=1), 1000.0, True),
        (use(open_sessions=2), 1000.0, True),
        # With it there would be more processes than the server may have.
        (use(open_sessions=3), 150.0, False),
        (use(last_used=None), 150.0, False),
        (use(deployed=False), 150.0, False),
    ],
)
def test_a_spare_is_kept_while_the_server_is_in_use_and_has_room(at: Use, now: float, is_wanted: bool) -> None:
    assert wanted(at, now) is is_wanted


def test_a_spare_goes_when_nobody_came_for_the_idle_time() -> None:
    at = use()
    end = unwanted_at(at)
    assert end is not None and wanted(at, end - 0.1) and not wanted(at, end)
    assert unwanted_at(use(open_sessions=1)) is None


def test_spares_that_end_unused_come_ever_later_and_one_that_lasted_forgives() -> None:
    back_off, waits = BackOff(), list[float]()
    for _ in range(12):
        back_off = back_off.after(0.1, 1000.0, first=1.0, longest=300.0)
        waits.append(back_off.not_before - 1000.0)
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0] and waits[-1] == 300.0
    assert back_off.after(3600.0, 5000.0, first=1.0, longest=300.0) == BackOff(1, 5001.0)
