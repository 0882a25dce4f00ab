"""What the gateway's own answers mean for a call."""

from __future__ import annotations

import pytest

from toolbox_dtma.gateway.accounting import refusal_word, refused_outcome
from toolbox_dtma.gateway.refusal import Refusal, bad_gateway, unavailable
from toolbox_dtma.link.calls import REFUSAL_REASONS
from toolbox_dtma.wire import CallOutcome


@pytest.mark.parametrize(
    ("refusal", "outcome"),
    [
        (Refusal(200, "denied", {}), CallOutcome.DENIED),
        (Refusal(400, "headers", {}), CallOutcome.DENIED),
        (Refusal(404, "session", {}), CallOutcome.DENIED),
        (Refusal(200, "rate-limit", {}), CallOutcome.LIMITED),
        (Refusal(429, "concurrency-limit", {}), CallOutcome.LIMITED),
        (Refusal(502, "response-size-limit", {}), CallOutcome.LIMITED),
        (Refusal(413, "too-large", {}), CallOutcome.LIMITED),
        (Refusal(200, "call-timeout", {}), CallOutcome.TIMEOUT),
        (Refusal(408, "slow-body", {}), CallOutcome.TIMEOUT),
        (bad_gateway("upstream-silent", ""), CallOutcome.TIMEOUT),
        (bad_gateway("upstream-broken", ""), CallOutcome.UPSTREAM_ERROR),
        (bad_gateway("undecidable", ""), CallOutcome.UPSTREAM_ERROR),
        (unavailable("instance-away", ""), CallOutcome.UPSTREAM_ERROR),
    ],
)
def test_a_refusal_is_an_outcome(refusal: Refusal, outcome: CallOutcome) -> None:
    assert refused_outcome(refusal) is outcome


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        ("denied", "denied"),
        ("upstream-307", "upstream-status"),
        ("upstream-x", "other"),
        ("what a server says", "other"),
    ],
)
def test_reasons_are_words_of_a_closed_set(reason: str, word: str) -> None:
    assert refusal_word(reason) == word
    assert word in REFUSAL_REASONS
