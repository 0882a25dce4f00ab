"""Images and processes that cannot become a server: what a person reads, and that an edit of the spec cures it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from support.poll import until
from support.system.server_troubles import AFTER_A_WHILE, AT_ONCE, Applied, Trouble

pytestmark = pytest.mark.faults


def is_told(troubled: Applied, trouble: Trouble) -> None:
    """Conditions, phase and Event say what is wrong and what to change."""
    world, server = troubled.space.world, troubled.target(trouble)
    if trouble.reason == "OutOfMemory":
        # Of one such kill in fifty Docker 20.10 does not tell why; a new container has the next ones soon.
        world.patch(server, {"spec": {"env": [{"name": "ROUND", "value": "another"}]}})
    ready = world.await_condition(server, "Ready", "False", trouble.reason, seconds=120)
    event = world.await_event(server, trouble.reason)
    for words in trouble.says:
        assert words in ready["message"], ready["message"]
        assert words in event, event

    def look() -> tuple[str, str, bool]:
        status = world.status(server)
        conditions = {condition["type"]: condition["status"] for condition in status["conditions"]}
        return conditions["Deployed"], status["phase"], "Stalled" in conditions

    # A container that is being restarted runs for a moment.
    seen = until("in error", look, lambda seen: seen[:2] == (trouble.deployed, "Error"), seconds=60)
    assert not seen[2], "the host goes on trying"


def is_cured(troubled: Applied, trouble: Trouble) -> None:
    """An edit of the spec is all it takes."""
    world, server = troubled.space.world, troubled.target(trouble)
    world.patch(server, {"spec": troubled.filled(trouble.cure)})
    world.await_condition(server, "Ready", "True", seconds=90)
    world.await_event(server, "Ready", type_="Normal")
    status = world.status(server)
    assert status["phase"] == "Active"
    assert [tool["name"] for tool in status["tools"]] == ["echo", "whoami"]


def test_restarts_of_a_crashing_server_are_counted_and_come_ever_slower(troubled: Applied) -> None:
    world = troubled.space.world
    server = troubled.target(next(trouble for trouble in AT_ONCE if trouble.name == "crash"))

    def container() -> dict[str, Any]:
        return world.status(server).get("container") or {}

    seen = until("restarted three times", container, lambda found: found.get("restarts", 0) >= 3, seconds=90)
    until("exited again", container, lambda found: found.get("exitCode") == 3 and "reason" in found)
    witnessed = troubled.space.witness.starts
    starts = until("four starts seen", lambda: list(witnessed[seen["id"]]), lambda times: len(times) >= 4, seconds=60)
    gaps = [later - earlier for earlier, later in pairwise(starts)]
    assert all(gap >= pause for gap, pause in zip(gaps, (1, 2, 4), strict=False)), gaps


@pytest.mark.parametrize("trouble", AT_ONCE, ids=str)
def test_what_keeps_a_container_from_running_is_told_and_an_edit_cures_it(troubled: Applied, trouble: Trouble) -> None:
    is_told(troubled, trouble)
    is_cured(troubled, trouble)


@pytest.mark.parametrize("trouble", AFTER_A_WHILE, ids=str)
def test_a_server_that_never_speaks_mcp_is_in_error_after_its_time_and_an_edit_cures_it(
    troubled: Applied, trouble: Trouble
) -> None:
    is_told(troubled, trouble)
    is_cured(troubled, trouble)
