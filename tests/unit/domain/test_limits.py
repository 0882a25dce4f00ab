"""A connection's limits on their way to the host."""

from __future__ import annotations

from typing import Any

import pytest

from support.reconcilers.observed import connection
from toolbox_dtma.wire import GrantLimits
from toolbox_operator.domain.limits import wire_limits


def told(limits: Any) -> GrantLimits | None:
    """What a host is told of `spec.limits`."""
    parsed = connection({"limits": limits})
    assert parsed.problem is None and parsed.spec is not None
    return wire_limits(parsed.spec.limits)


@pytest.mark.parametrize("nothing", [None, {}, {"callTimeout": None}])
def test_without_limits_a_host_is_told_of_none(nothing: Any) -> None:
    assert told(nothing) is None


def test_sizes_become_bytes_and_the_timeout_seconds() -> None:
    assert told(
        {
            "requestsPerMinute": 60,
            "concurrentCalls": 4,
            "maxRequestBytes": "64Ki",
            "maxResponseBytes": 1048576,
            "callTimeout": "1m30s",
        }
    ) == GrantLimits(
        requests_per_minute=60,
        concurrent_calls=4,
        max_request_bytes=65536,
        max_response_bytes=1048576,
        call_timeout_seconds=90,
    )


@pytest.mark.parametrize(
    "limits",
    [
        {"requestsPerMinute": 1, "concurrentCalls": 1},
        {"maxRequestBytes": "1Ki", "maxResponseBytes": "1Ki", "callTimeout": "1s"},
        {"requestsPerMinute": 600_000, "concurrentCalls": 10_000},
        {"maxRequestBytes": "4Mi", "maxResponseBytes": "1Ti", "callTimeout": "60m"},
    ],
)
def test_whatever_the_api_accepts_a_host_accepts(limits: Any) -> None:
    found = told(limits)
    assert found is not None
    assert len(found.model_dump(exclude_none=True)) == len(limits)
