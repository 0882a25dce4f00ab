"""From a connection's `limits` to what hosts are told."""

from __future__ import annotations

from toolbox_dtma.wire import GrantLimits
from toolbox_operator.api.connection import ConnectionLimits
from toolbox_operator.api.quantity import parse_duration, parse_memory


def wire_limits(limits: ConnectionLimits) -> GrantLimits | None:
    """A spec's `limits` as hosts read them; None where none is set. `limits` has passed every rule."""
    if limits == ConnectionLimits():
        return None
    request, response, timeout = limits.max_request_bytes, limits.max_response_bytes, limits.call_timeout
    return GrantLimits(
        requests_per_minute=limits.requests_per_minute,
        concurrent_calls=limits.concurrent_calls,
        max_request_bytes=None if request is None else parse_memory(request),
        max_response_bytes=None if response is None else parse_memory(response),
        call_timeout_seconds=None if timeout is None else parse_duration(timeout),
    )
