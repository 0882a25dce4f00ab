"""Toolboxes and their hosts, on fakes."""

from __future__ import annotations

from datetime import timedelta

import pytest

from support.reconcilers.memory_machine import Machine
from support.reconcilers.world import NS, World, world
from toolbox_dtma.wire import InstancePhase, InstanceReason
from toolbox_operator.api.meta import Key, Kind
from toolbox_operator.kube.api import SECRETS

pytestmark = pytest.mark.component

TOOLBOX = Kind.TOOLBOX
SERVER = Kind.MCP_SERVER


async def ready(w: World) -> Key:
    toolbox = w.toolbox()
    await w.settle()
    assert w.ready(TOOLBOX, toolbox) == ("True", "Ready")
    return toolbox


async def test_a_toolbox_reports_its_host_and_configures_the_gateway() -> None:
    async with world() as w:
        toolbox = await ready(w)
        status = w.status(TOOLBOX, toolbox)
        assert status["hostId"] == w.machine().host_id
        assert status["agent"] == {
            "version": "0.1.0",
            "protocol": 2,
            "engine": "20.10.24",
            "os": "linux",
            "arch": "x86_64",
        }
        config = w.machine().config
        assert config is not None and config.gateway_url == "https://tbx-1.example.com:30443"
        assert w.machine().epochs == {w.leadership.owner: 3}
        assert w.store.rows[w.body(TOOLBOX, toolbox)["metadata"]["uid"]].status == "ready"


async def test_an_endpoint_that_leads_to_another_host_is_stalled_and_nothing_is_done_there() -> None:
    async with world() as w:
        toolbox = await ready(w)
        server = w.server()
        await w.settle()
        other = w.machine("https://10.0.0.2:30000")
        w.patch(TOOLBOX, toolbox, endpoint="https://10.0.0.2:30000")
        await w.settle()
        assert w.condition(TOOLBOX, toolbox, "Stalled") == ("True", "HostChanged")
        assert w.status(TOOLBOX, toolbox)["phase"] == "Stalled"
        assert w.condition(TOOLBOX, toolbox, "Reachable") == ("True", "Reachable")
        assert other.config is None
        assert w.ready(SERVER, server) == ("True", "Ready"), "within the lease nothing changes"
        w.clock.advance(80)
        await w.until(lambda: w.ready(SERVER, server) == ("Unknown", "HostLost"), "unknown after the lease")
        assert w.status(TOOLBOX, toolbox)["phase"] == "Stalled"
        assert other.config is None
        w.patch(TOOLBOX, toolbox, endpoint="https://10.0.0.1:30000")
        await w.settle()
        assert w.ready(TOOLBOX, toolbox) == ("True", "Ready")
        assert w.ready(SERVER, server) == ("True", "Ready")


async def test_an_endpoint_that_leads_to_the_right_host_again_is_noticed_without_an_edit() -> None:
    async with world() as w:
        toolbox = await ready(w)
        other, known = w.machine("https://10.0.0.2:30000"), w.machine().host_id
        w.patch(TOOLBOX, toolbox, endpoint="https://10.0.0.2:30000")
        await w.settle()
        assert w.condition(TOOLBOX, toolbox, "Stalled") == ("True", "HostChanged")
        other.host_id = known
        await w.until(lambda: w.ready(TOOLBOX, toolbox) == ("True", "Ready"), "recognised")


async def test_a_refused_token_that_is_put_right_in_its_secret_is_taken_over_without_an_edit_of_the_toolbox() -> None:
    async with world() as w:
        w.machine().token = "good"
        toolbox = w.toolbox()
        await w.until(lambda: w.condition(TOOLBOX, toolbox, "Reachable") == ("False", "HostUnauthorized"), "refused")
        await w.advance(60)
        assert w.status(TOOLBOX, toolbox)["phase"] == "Lost"
        w.secret("tbx-1-dtma", token="good")
        await w.advance(6)
        assert w.ready(TOOLBOX, toolbox) == ("True", "Ready")


async def test_a_second_toolbox_on_one_host_is_stalled_until_the_first_is_gone() -> None:
    async with world() as w:
        first = await ready(w)
        w.machines["https://10.0.0.9:30000"] = w.machine()
        second = w.toolbox("tbx-2", endpoint="https://10.0.0.9:30000")
        await w.settle()
        assert w.condition(TOOLBOX, second, "Stalled") == ("True", "HostClaimed")
        assert w.ready(TOOLBOX, first) == ("True", "Ready")
        w.delete(TOOLBOX, first)
        await w.settle()
        await w.settle()
        assert w.ready(TOOLBOX, second) == ("True", "Ready")


async def test_a_missing_or_unusable_secret_is_named_and_waited_for() -> None:
    async with world() as w:
        toolbox = w.toolbox(caSecretRef={"name": "ca", "key": "ca.crt"})
        await w.settle()
        assert w.ready(TOOLBOX, toolbox) == ("False", "SecretNotFound")
        w.secret("ca", ca_dot_crt="no certificate")
        await w.advance(6)
        assert w.ready(TOOLBOX, toolbox) == ("False", "SecretInvalid")
        w.kube.edit(SECRETS, Key(NS, "tbx-1-dtma"), {"data": {"token": "dG9rZW4Kd2l0aCBsaW5lcw=="}})
        w.patch(TOOLBOX, toolbox, caSecretRef=None)
        await w.settle()
        assert w.ready(TOOLBOX, toolbox) == ("False", "SecretInvalid")
        await w.advance(60)
        assert w.status(TOOLBOX, toolbox)["phase"] == "Lost"
        w.secret("tbx-1-dtma", token="good")
        await w.advance(6)
        assert w.ready(TOOLBOX, toolbox) == ("True", "Ready")


async def test_a_host_that_was_lost_before_a_restart_stays_lost_until_it_answers() -> None:
    async with world() as w:
        toolbox = await ready(w)
        w.machine().cut()
        await w.until(lambda: w.status(TOOLBOX, toolbox)["phase"] == "Unreachable", "the cut is noticed")
        await w.advance(41)
        assert w.status(TOOLBOX, toolbox)["phase"] == "Lost"
        await w.restart()
        w.queue.add(TOOLBOX, toolbox)
        view = w.hosts.view
        await w.until(lambda: (seen := view(toolbox)) is not None and seen.failure is not None, "the new process tried")
        assert w.status(TOOLBOX, toolbox)["phase"] == "Lost"
        assert w.ready(TOOLBOX, toolbox) == ("False", "HostLost")
        await w.advance(41)
        assert w.status(TOOLBOX, toolbox)["phase"] == "Lost"
        w.machine().reachable = True
        await w.until(lambda: w.ready(TOOLBOX, toolbox) == ("True", "Ready"), "found again")


async def test_a_leader_that_meets_a_higher_epoch_raises_its_own_and_goes_on() -> None:
    async with world() as w:
        machine = w.machine()
        machine.epochs[w.leadership.owner] = 7
        w.toolbox()
        await w.until(lambda: w.status(TOOLBOX, Key(NS, "tbx-1")).get("phase") == "Ready", "the host is claimed")
        assert machine.epochs[w.leadership.owner] == w.leadership.epoch
        assert w.leadership.epoch > 7


@pytest.mark.parametrize(("seconds", "way"), [(600, "10 min ahead of"), (-600, "10 min behind")])
async def test_a_host_whose_clock_is_wrong_is_used_and_told_of(seconds: float, way: str) -> None:
    async with world() as w:
        w.machine().time = w.clock.now() + timedelta(seconds=seconds)
        toolbox = await ready(w)
        assert w.condition(TOOLBOX, toolbox, "Reachable") == ("True", "ClockSkewed")
        conditions = w.status(TOOLBOX, toolbox)["conditions"]
        assert way in next(c["message"] for c in conditions if c["type"] == "Reachable")
        assert w.events.reasons(toolbox.name)[-1:] == ["ClockSkewed"]


async def test_a_clock_that_differs_by_the_time_of_a_call_is_no_news() -> None:
    async with world() as w:
        w.machine().time = w.clock.now() + timedelta(seconds=5)
        assert w.condition(TOOLBOX, await ready(w), "Reachable") == ("True", "Reachable")


async def test_an_engine_that_is_down_is_told() -> None:
    async with world() as w:
        w.machine().engine = False
        toolbox = w.toolbox()
        await w.settle()
        assert w.ready(TOOLBOX, toolbox) == ("False", "EngineUnavailable")
        assert w.status(TOOLBOX, toolbox)["phase"] == "Pending"
        assert w.condition(TOOLBOX, toolbox, "Reachable") == ("True", "Reachable")


async def test_a_gateway_that_is_down_is_told_of_its_toolbox_and_of_every_connection() -> None:
    async with world() as w:
        toolbox = await ready(w)
        w.server()
        connection = w.connection()
        await w.settle()
        assert w.ready(Kind.CONNECTION, connection) == ("True", "Connected")
        w.machine().gateway_is(available=False)
        await w.settle()
        assert w.ready(TOOLBOX, toolbox) == ("False", "GatewayUnavailable")
        assert w.ready(Kind.CONNECTION, connection) == ("False", "GatewayUnavailable")
        assert w.condition(Kind.CONNECTION, connection, "Programmed") == ("True", "Programmed")
        w.machine().gateway_is(available=True)
        await w.settle()
        assert w.ready(TOOLBOX, toolbox) == ("True", "Ready")
        assert w.ready(Kind.CONNECTION, connection) == ("True", "Connected")


async def test_an_engine_that_comes_back_is_noticed_without_losing_contact() -> None:
    async with world() as w:
        w.machine().engine = False
        toolbox = w.toolbox()
        await w.settle()
        w.machine().engine = True
        w.machine().beat()
        await w.settle()
        assert w.ready(TOOLBOX, toolbox) == ("True", "Ready")


async def test_an_engine_that_goes_down_while_servers_run_is_told_and_forgotten_when_they_run_again() -> None:
    async with world() as w:
        toolbox = await ready(w)
        w.server()
        await w.settle()
        w.machine().engine = False
        w.machine().set_outcome((InstancePhase.ERROR, InstanceReason.ENGINE_UNAVAILABLE, "no answer"))
        await w.settle()
        assert w.ready(TOOLBOX, toolbox) == ("False", "EngineUnavailable")
        w.machine().engine = True
        w.machine().set_outcome(None)
        await w.settle()
        assert w.ready(TOOLBOX, toolbox) == ("True", "Ready")


async def test_a_server_that_the_toolbox_never_took_does_not_hold_up_its_deletion() -> None:
    async with world() as w:
        toolbox = await ready(w)
        stranger = w.server("stranger", namespace="elsewhere")
        await w.settle()
        assert w.condition(SERVER, stranger, "Accepted") == ("False", "NotPermitted")
        assert w.status(TOOLBOX, toolbox)["servers"] == 0
        w.delete(TOOLBOX, toolbox)
        await w.settle()
        assert not w.exists(TOOLBOX, toolbox)
        assert w.condition(SERVER, stranger, "Accepted") == ("False", "ToolboxNotFound")


async def test_a_restart_while_a_toolbox_waits_for_its_servers_writes_nothing() -> None:
    async with world() as w:
        toolbox = await ready(w)
        w.server()
        await w.settle()
        w.delete(TOOLBOX, toolbox)
        await w.settle()
        before = w.body(TOOLBOX, toolbox)
        assert w.condition(TOOLBOX, toolbox, "Reachable") == ("True", "Reachable")
        for _ in range(3):
            await w.restart()
            w.queue.add(TOOLBOX, toolbox)
            await w.settle()
            assert w.body(TOOLBOX, toolbox) == before


async def test_a_server_that_is_permitted_no_more_still_holds_up_the_deletion_of_its_toolbox() -> None:
    async with world() as w:
        toolbox = w.toolbox(allowedServers={"namespaces": {"from": "All"}})
        guest = w.server("guest", namespace="elsewhere")
        await w.settle()
        w.patch(TOOLBOX, toolbox, allowedServers={"namespaces": {"from": "Same"}})
        await w.settle()
        assert w.status(TOOLBOX, toolbox)["servers"] == 1
        w.delete(TOOLBOX, toolbox)
        await w.settle()
        assert w.ready(TOOLBOX, toolbox) == ("False", "InUse")
        assert w.exists(SERVER, guest)


async def test_one_host_that_is_away_holds_nothing_else_up() -> None:
    async with world() as w:
        w.machines["https://10.0.0.2:30000"] = Machine(reachable=False)
        away = w.toolbox("away", endpoint="https://10.0.0.2:30000")
        server = w.server(toolboxRef={"name": "away"})
        fine = await ready(w)
        assert w.status(TOOLBOX, away)["phase"] in ("Pending", "Unreachable")
        assert w.condition(SERVER, server, "Deployed") == ("False", "ToolboxNotReady")
        assert w.ready(TOOLBOX, fine) == ("True", "Ready")
