"""What the other fault tests stand on: an undisturbed run of the shared system."""

from __future__ import annotations

import pytest

from support.poll import until
from support.system.space import Space

pytestmark = pytest.mark.faults


def test_an_undisturbed_server_and_connection_work_and_leave_nothing(space: Space) -> None:
    server = space.server("quiet")
    connection = space.connection("bot", "quiet")
    space.world.await_condition(connection, "Ready", "True")
    space.world.await_event(server, "Ready", type_="Normal")
    answer = space.world.call(space.secret("bot"), "echo", {"said": "hello"})
    assert answer.text == '{"said": "hello"}'
    assert len(space.world.containers_of(space.namespace)) == 1
    assert len(space.world.grants_of(space.namespace)) == 1
    rows = until("rows", lambda: space.world.open_rows(space.namespace), lambda found: len(found) >= 2)
    assert {name for _, name in rows} == {"quiet", "bot"}
