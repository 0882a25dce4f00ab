"""A clock is ten minutes off. Leases and silence do not care; what ends at a time ends by the first clock to say so."""

from __future__ import annotations

from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from support.hosts.far_host import FarHost
from support.hosts.far_toolbox import FarToolbox, attached
from support.poll import until
from support.system import jumping_clock
from support.system.space import Space

pytestmark = [pytest.mark.faults, pytest.mark.timeout(420)]

AHEAD, BEHIND = 600, -600
clocks = pytest.mark.parametrize("seconds", [AHEAD, BEHIND], ids=["ahead", "behind"])


@pytest.fixture
def wrong_host(far: FarToolbox, seconds: int) -> Generator[FarToolbox]:
    """The far host with a wrong clock."""
    far.host.turn_clock(seconds)
    yield far
    far.host.turn_clock(0)


@pytest.fixture
def wrong_operator(second_space: Space, far_host: FarHost, seconds: int, tmp_path: Path) -> Generator[FarToolbox]:
    """The second cluster's operator with a wrong clock, and a Toolbox for the far host there."""
    operator = second_space.world.stack.operator
    assert operator.child is not None
    operator.child.stop()
    file = tmp_path / "seconds"
    file.write_text(str(seconds))
    operator.program = (jumping_clock.__file__, str(file))
    operator.start()
    try:
        with attached(second_space, far_host) as found:
            yield found
    finally:
        operator.child.stop()
        operator.program = ("-m", "toolbox_operator")
        operator.start()


def at(seconds: float) -> str:
    """A time as spec has it, by the right clock."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="seconds")


def told(far: FarToolbox, way: str) -> None:
    """The Toolbox says that its host's clock is off, and which way."""
    condition = far.world.await_condition(far.target, "Reachable", "True", "ClockSkewed", seconds=90)
    assert f"10 min {way} the operator's" in condition["message"]
    assert "time server" in far.world.await_event(far.target, "ClockSkewed")
    far.world.await_condition(far.target, "Ready", "True")


@clocks
def test_a_host_whose_clock_is_off_serves_rotates_and_revokes(wrong_host: FarToolbox, seconds: int) -> None:
    far = wrong_host
    told(far, "ahead of" if seconds > 0 else "behind")
    server = far.ready_server("time")
    connection = far.ready_connection("bot", server)
    assert far.call(connection) == far.container(server)

    before = far.space.secret("bot")
    far.world.patch(connection, {"metadata": {"annotations": {"magictoolbox.dev/rotate": "now"}}})
    until("rotated", lambda: far.space.secret("bot")["token"], lambda token: token != before["token"])
    far.world.await_condition(connection, "Ready", "True")
    assert far.refusal(connection) is None
    # The old token's ten minutes are over at a host that is ten minutes ahead, once it knows of them.
    if seconds > 0:
        until("the old token refused", lambda: far.world.refusal(before, "whoami", {}))
    else:
        assert far.world.refusal(before, "whoami", {}) is None

    # By the operator's clock at the latest, also where the host's says that there are ten minutes left.
    short = far.space.connection("short", server.name, expiresAt=at(20))
    far.world.await_status(short, phase="Expired")
    assert far.refusal(short) is not None

    far.world.patch(connection, {"spec": {"active": False}})
    far.world.await_status(connection, phase="Disconnected")
    assert far.refusal(connection) is not None


@clocks
def test_an_operator_whose_clock_is_off_leads_serves_and_revokes(wrong_operator: FarToolbox, seconds: int) -> None:
    far = wrong_operator
    told(far, "behind" if seconds > 0 else "ahead of")
    lease = ("lease", "magic-toolbox-operator", "-n", "magic-toolbox-system")
    epoch = far.world.stack.parts.cluster.get(*lease)["spec"]["leaseTransitions"]
    server = far.ready_server("time")
    connection = far.ready_connection("bot", server)
    assert far.call(connection) == far.container(server)

    short = far.space.connection("short", server.name, expiresAt=at(300 if seconds > 0 else 20))
    if seconds > 0:
        far.world.await_status(short, phase="Expired")
    else:
        # The operator believes in another ten minutes; the host's own clock ends it.
        far.world.await_condition(short, "Ready", "True")
        until("refused", lambda: far.refusal(short), seconds=60)

    far.world.patch(connection, {"spec": {"active": False}})
    far.world.await_status(connection, phase="Disconnected")
    assert far.refusal(connection) is not None
    assert far.world.stack.parts.cluster.get(*lease)["spec"]["leaseTransitions"] == epoch
