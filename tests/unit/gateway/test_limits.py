"""What a request counts, and how a limit answers it in each era."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from toolbox_dtma.gateway.counts import NoRoom, TooManyRunning, TooManyThisMinute, Wanted
from toolbox_dtma.gateway.limits import AnswerTooLarge, Load, bounded, check_size, is_listening, let_in
from toolbox_dtma.gateway.parsing import parse_body
from toolbox_dtma.gateway.refusal import Asker, Refusal
from toolbox_dtma.link.messages import GrantPolicy
from toolbox_dtma.wire import Expose, GrantLimits

CALL: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "x"}}
LISTEN = {"jsonrpc": "2.0", "id": 2, "method": "subscriptions/listen"}
NOTE = {"jsonrpc": "2.0", "method": "notifications/x"}
ANSWER: dict[str, Any] = {"jsonrpc": "2.0", "id": 3, "result": {}}

OLD, NEW = Asker(ids=(1,)), Asker(ids=(1,), modern=True)


@pytest.mark.parametrize(
    ("document", "running", "arriving"),
    [
        (CALL, 1, 1),
        (NOTE, 0, 1),
        (ANSWER, 0, 1),
        (LISTEN, 0, 1),
        ([CALL, NOTE, ANSWER, CALL], 2, 4),
        ([LISTEN, CALL], 1, 2),
    ],
    ids=str,
)
def test_requests_take_places_and_every_message_counts(document: Any, running: int, arriving: int) -> None:
    body = parse_body(json.dumps(document).encode())
    assert Load.of(body) == Load(running, arriving, listening=document is LISTEN)
    assert is_listening(body) is (document is LISTEN)


class Full:
    """Counts that refuse everything."""

    def __init__(self, error: Exception):
        self.error = error

    def enter(self, connection: str, wanted: Wanted) -> Callable[[], None]:
        raise self.error


def refused(error: Exception, asker: Asker) -> Refusal:
    """The answer when counting raises this."""
    limits = GrantLimits(requests_per_minute=1, concurrent_calls=1)
    grant = GrantPolicy(uid="c", instance="i", credentials=(), server_expose=Expose(), expose=Expose(), limits=limits)
    with pytest.raises(Refusal) as found:
        let_in(Full(error), grant, limits, Load(1), asker, arrived=0.0)
    return found.value


@pytest.mark.parametrize(
    ("error", "reason", "status", "wait_ms", "wait_s"),
    [
        (TooManyRunning(1.0), "concurrency-limit", 429, 1000, "1"),
        (TooManyThisMinute(2.0001), "rate-limit", 429, 2001, "3"),
        (TooManyThisMinute(0.0), "rate-limit", 429, 1, "1"),
        (TooManyThisMinute(None), "rate-limit", 429, None, None),
        (NoRoom(), "no-room-for-limits", 503, 2000, "2"),
    ],
    ids=str,
)
def test_a_limit_tells_when_to_come_again_never_too_early(
    error: Exception, reason: str, status: int, wait_ms: int | None, wait_s: str | None
) -> None:
    for asker, expected in ((OLD, 200), (NEW, status), (Asker(), status)):
        answer = refused(error, asker)
        assert (answer.status, answer.reason) == (expected, reason)
        assert answer.headers.get("Retry-After") == wait_s
        payload: Any = answer.payload
        assert payload["error"]["code"] == -32000
        assert payload["error"].get("data") == (None if wait_ms is None else {"retryAfterMs": wait_ms})
        assert payload["id"] == (asker.ids[0] if asker.ids else None)


def test_a_batch_has_one_error_for_each_request() -> None:
    answer = refused(TooManyRunning(1.0), Asker(ids=(1, "two", None), batch=True))
    payload: Any = answer.payload
    assert answer.status == 200 and [error["id"] for error in payload] == [1, "two", None]
    notes = refused(TooManyRunning(1.0), Asker(batch=True))
    assert notes.status == 429 and isinstance(notes.payload, dict)


def test_a_body_of_exactly_the_limit_is_accepted() -> None:
    limits = GrantLimits(max_request_bytes=2000)
    check_size(limits, 2000, OLD)
    check_size(GrantLimits(), 1 << 22, OLD)
    for asker, status in ((OLD, 200), (NEW, 413), (Asker(), 413)):
        with pytest.raises(Refusal) as found:
            check_size(limits, 2001, asker)
        assert (found.value.status, found.value.reason) == (status, "request-size-limit")


async def test_chunks_end_with_the_one_that_passes_the_bound() -> None:
    def reading(most: int) -> Callable[[], Awaitable[bytes]]:
        parts = iter([b"abc", b"de", b"f", b""])

        async def read() -> bytes:
            return next(parts)

        return bounded(read, most)

    whole = reading(6)
    assert [await whole() for _ in range(4)] == [b"abc", b"de", b"f", b""]
    cut = reading(5)
    assert (await cut(), await cut()) == (b"abc", b"de")
    with pytest.raises(AnswerTooLarge):
        await cut()
