"""`traceparent`, by W3C Trace Context."""

from __future__ import annotations

import pytest

from toolbox_dtma.gateway.tracing import trace_id

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    "value", [f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00", f"cc-{TRACE}-{PARENT}-01-what-the-future-brings"]
)
def test_a_well_formed_one_names_its_trace(value: str) -> None:
    assert trace_id([value]) == TRACE


@pytest.mark.parametrize(
    "values",
    [
        [],
        [""],
        [f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01"],
        [f"00-{TRACE}-{PARENT}-01-more"],
        [f"00-{TRACE}-{PARENT}-01 "],
        [f"00-{TRACE.upper()}-{PARENT}-01"],
        [f"ff-{TRACE}-{PARENT}-01"],
        [f"00-{'0' * 32}-{PARENT}-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
        [f"00-{TRACE[:-1]}-{PARENT}-01"],
        [None],
        [7],
    ],
)
def test_any_other_names_none(values: list[object]) -> None:
    assert trace_id(values) is None
