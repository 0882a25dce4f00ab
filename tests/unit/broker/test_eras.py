"""Which servers are taken for what, and for how long."""

from __future__ import annotations

import json
from typing import Any

import pytest

from toolbox_dtma.broker.eras import MAX_REMEMBERED, VERSION, Era, Eras, judged, own_request
from toolbox_dtma.gateway.methods import VERSION_META
from toolbox_dtma.gateway.skimming import run


def era(**members: Any) -> Era:
    """Of a server with this answer."""
    return run(judged(json.dumps({"jsonrpc": "2.0", "id": 1, **members}).encode()))


@pytest.mark.parametrize(
    "answer",
    [
        {"result": {"supportedVersions": ["2026-07-28"]}},
        {"result": {"supportedVersions": ["2025-11-25", "2031-01-01"], "capabilities": {}}},
        {"error": {"code": -32022, "message": "no", "data": {"supported": ["2027-01-01"], "requested": VERSION}}},
        {"error": {"code": -32022, "message": "no"}},
        {"error": {"code": -32021, "message": "no"}},
        {"error": {"code": -32020, "message": "no"}},
    ],
)
def test_versions_or_errors_without_handshake_speak_for_it(answer: dict[str, Any]) -> None:
    assert era(**answer) is Era.STATELESS


OF_THE_HANDSHAKE: list[dict[str, Any]] = [
    {"error": {"code": -32601, "message": "Method not found"}},
    {"error": {"code": -32602, "message": "Invalid request parameters"}},
    {"error": {"code": -32000, "message": "Server not initialized"}},
    {"error": {"code": -32022, "message": "no", "data": {"supported": ["2025-11-25"]}}},
    {"error": {"code": "-32022", "message": "no"}},
    {"error": "no"},
    {"result": {"supportedVersions": ["2025-11-25", "2025-06-18"]}},
    {"result": {"supportedVersions": [1, None, {}]}},
    {"result": {"supportedVersions": "2026-07-28"}},
    {"result": {}},
    {"result": []},
    {},
]


@pytest.mark.parametrize("answer", OF_THE_HANDSHAKE)
def test_anything_else_is_what_servers_say_that_wait_for_a_handshake(answer: dict[str, Any]) -> None:
    assert era(**answer) is Era.HANDSHAKE


def test_the_brokers_own_requests_are_complete() -> None:
    asked = json.loads(own_request(7, "tools/list", cursor="c"))
    assert (asked["id"], asked["method"], asked["params"]["cursor"]) == (7, "tools/list", "c")
    meta = asked["params"]["_meta"]
    assert meta[VERSION_META] == VERSION and meta["io.modelcontextprotocol/clientCapabilities"] == {}


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_is_known_ends_with_its_time_and_with_what_processes_are_made_of() -> None:
    clock = Clock()
    eras = Eras(clock)
    assert eras.of("i") is None
    eras.learn("i", "one", Era.HANDSHAKE, 60.0)
    eras.learn("j", "one", Era.STATELESS, 60.0)
    eras.opened("i", "one")
    assert eras.of("i") is Era.HANDSHAKE
    eras.opened("i", "two")
    assert eras.of("i") is None and eras.of("j") is Era.STATELESS
    clock.now = 60.0
    assert eras.of("j") is None


def test_no_more_is_remembered_than_there_is_room_for() -> None:
    eras = Eras(Clock())
    for number in range(MAX_REMEMBERED + 2):
        eras.learn(str(number), "one", Era.HANDSHAKE, 60.0)
        eras.learn("used", "one", Era.HANDSHAKE, 60.0)
    assert eras.of("0") is eras.of("1") is None
    assert eras.of("used") is eras.of(str(MAX_REMEMBERED + 1)) is Era.HANDSHAKE
