from __future__ import annotations

import dataclasses

import pytest

from support.record.rows import CLUSTER, OTHER_CLUSTER, Leader, World, new_id, query, row_of, running, until_written
from toolbox_operator.store.api import Live, agent_id

pytestmark = pytest.mark.integration

EMPTY = Live(frozenset(), frozenset(), frozenset())


async def test_a_connection_brings_its_toolbox_server_and_agent_along(postgres: str) -> None:
    world = World()
    async with running(postgres) as store:
        store.submit(world.connection(instance=world.instance(seen=(1, 1), tools=["now"])))
        await until_written(store)
        assert store.healthy
    connection = await row_of(postgres, "agent_mcp_connections", world.connection_id)
    instance = await row_of(postgres, "account_tool_instances", world.instance_id)
    agent = await row_of(postgres, "agents", agent_id(CLUSTER, "team-a", "research-bot"))
    assert str(connection["agent_id"]) == str(agent["id"])
    assert str(connection["mcp_server_instance_id"]) == world.instance_id
    assert str(instance["account_tool_environment_id"]) == world.toolbox_id
    assert instance["tools"] == [{"name": "now", "description": ""}]
    assert instance["mcp_server_type"] == "mcp_server"
    assert (instance["boot_id"], instance["observed_seq"], instance["epoch"]) == (1, 1, 1)
    assert (await row_of(postgres, "tool_catalog", str(instance["tool_catalog_id"])))["name"] == "mcp-server-generic"


async def test_what_a_connection_brings_along_never_overrides_what_the_server_itself_said(postgres: str) -> None:
    world = World()
    async with running(postgres) as store:
        store.submit(world.instance(2, (1, 5), status="active"))
        await until_written(store)
    async with running(postgres) as store:
        store.submit(world.connection(instance=world.instance(2, None, status="pending")))
        store.submit(world.connection(2, instance=world.instance(1, (1, 4), status="error", image="old")))
        await until_written(store)
    instance = await row_of(postgres, "account_tool_instances", world.instance_id)
    assert (instance["status_on_toolbox"], instance["image"]) == ("active", "time:1")
    assert (await row_of(postgres, "agent_mcp_connections", world.connection_id))["spec_generation"] == 2


async def test_a_status_without_observation_leaves_what_was_observed(postgres: str) -> None:
    world = World()
    async with running(postgres) as store:
        store.submit(world.instance(1, (1, 5), tools=["now"]))
        await until_written(store)
        store.submit(world.instance(1, None, status="unknown"))
        await until_written(store)
        instance = await row_of(postgres, "account_tool_instances", world.instance_id)
        assert (instance["status_on_toolbox"], instance["observed_seq"]) == ("unknown", 5)
        assert instance["tools"] == [{"name": "now", "description": ""}]
        store.submit(world.instance(1, (1, 5), tools=["now"]))
        await until_written(store)
    assert (await row_of(postgres, "account_tool_instances", world.instance_id))["status_on_toolbox"] == "active"


async def test_a_connection_waits_until_its_server_is_known(postgres: str) -> None:
    world = World()
    async with running(postgres) as store:
        store.submit(world.connection(waiting=True, status="pending"))
        await until_written(store)
        assert await query(postgres, "SELECT id FROM magic_toolbox.agent_mcp_connections") == []
        store.submit(world.connection())
        await until_written(store)
    async with running(postgres) as store:  # a new process, which does not know the server (any more)
        store.submit(world.connection(waiting=True, status="pending"))
        await until_written(store)
    connection = await row_of(postgres, "agent_mcp_connections", world.connection_id)
    assert (connection["connection_status"], str(connection["mcp_server_instance_id"])) == (
        "pending",
        world.instance_id,
    )


async def test_closed_rows_keep_their_reason_and_the_agent_goes_with_its_last_connection(postgres: str) -> None:
    first, second = World(), World()
    async with running(postgres) as store:
        store.submit(first.connection())
        store.submit(dataclasses.replace(second.connection(instance=first.instance()), name="another"))
        await until_written(store)
        agent = agent_id(CLUSTER, "team-a", "research-bot")
        store.close(first.connection(), "deleted")
        await until_written(store)
        assert (await row_of(postgres, "agents", agent))["deleted_at"] is None
        store.close(dataclasses.replace(second.connection(instance=first.instance()), name="another"), "deleted")
        store.close(first.instance(), "abandoned")
        store.close(first.toolbox(), "deleted")
        await until_written(store)
        assert (await row_of(postgres, "agents", agent))["delete_reason"] == "unused"
        third = World()
        store.submit(third.connection())
        await until_written(store)
        assert (await row_of(postgres, "agents", agent))["deleted_at"] is None
    reasons = {
        "agent_mcp_connections": (first.connection_id, "deleted"),
        "account_tool_instances": (first.instance_id, "abandoned"),
        "account_tool_environments": (first.toolbox_id, "deleted"),
    }
    for table, (id_, reason) in reasons.items():
        row = await row_of(postgres, table, id_)
        assert row["delete_reason"] == reason and row["deleted_at"] is not None


async def test_a_row_that_was_never_written_is_still_there_after_it_was_closed(postgres: str) -> None:
    world = World()
    async with running(postgres) as store:
        store.submit(world.connection())
        store.close(world.connection(), "deleted")
        await until_written(store)
    assert (await row_of(postgres, "agent_mcp_connections", world.connection_id))["delete_reason"] == "deleted"


async def test_a_deleted_row_is_never_opened_again_by_a_stale_submit(postgres: str) -> None:
    world = World()
    async with running(postgres) as store:
        store.submit(world.connection())
        store.close(world.connection(), "deleted")
        store.close(world.instance(), "deleted")
        store.submit(world.instance(9, (9, 9)))
        await until_written(store)
        store.submit(world.instance(9, (9, 9)))
        await until_written(store)
    async with running(postgres, Leader(epoch=5)) as store:
        store.submit(world.connection(9, instance=world.instance(9, (9, 9))))
        store.submit(world.instance(9, (9, 9)))
        store.close(world.instance(10), "abandoned")
        await until_written(store)
    for table, id_ in (
        ("agent_mcp_connections", world.connection_id),
        ("account_tool_instances", world.instance_id),
    ):
        row = await row_of(postgres, table, id_)
        assert (row["delete_reason"], row["spec_generation"]) == ("deleted", 1)


async def test_an_object_made_anew_under_the_same_name_closes_the_row_before(postgres: str) -> None:
    old, new, newest = World(), World(), World()
    async with running(postgres) as store:
        store.submit(old.instance())
        await until_written(store)
        store.submit(new.instance())  # in the same process
        await until_written(store)
    async with running(postgres) as store:
        store.submit(newest.instance())  # in another one
        await until_written(store)
        store.submit(old.connection(instance=old.instance()))  # still names the first
        await until_written(store)
    states = [
        (await row_of(postgres, "account_tool_instances", world.instance_id))["delete_reason"]
        for world in (old, new, newest)
    ]
    assert states == ["replaced", "replaced", None]


async def test_an_instance_id_that_comes_back_with_a_new_uid_opens_its_row_at_generation_one(postgres: str) -> None:
    world = World()
    async with running(postgres) as store:
        store.submit(world.instance(7, (3, 30), image="old"))
        store.close(world.instance(7), "deleted")
        await until_written(store)
        again = world.instance(1, (1, 1), image="new", uid=new_id())
        store.submit(again)
        store.close(world.instance(7), "deleted")  # late, and of the object before
        await until_written(store)
    row = await row_of(postgres, "account_tool_instances", world.instance_id)
    assert (row["deleted_at"], row["image"], row["spec_generation"], row["boot_id"]) == (None, "new", 1, 1)


async def test_an_instance_id_that_moved_to_another_cluster_is_taken_over_whatever_the_epochs(postgres: str) -> None:
    world = World()
    async with running(postgres, Leader(epoch=50)) as store:
        store.submit(world.instance(7))
        await until_written(store)
    moved = dataclasses.replace(world.instance(1, uid=new_id()), toolbox=World().toolbox())
    async with running(postgres, Leader(epoch=1), cluster_id=OTHER_CLUSTER) as store:
        store.submit(moved)
        await until_written(store)
    row = await row_of(postgres, "account_tool_instances", world.instance_id)
    assert (str(row["cluster_id"]), row["epoch"], row["spec_generation"]) == (OTHER_CLUSTER, 1, 1)


async def test_a_sweep_closes_only_rows_of_its_own_cluster_that_nobody_submitted(postgres: str) -> None:
    gone, alive, young, foreign = World("a"), World("b"), World("c"), World("d")
    async with running(postgres) as store:
        store.submit(gone.connection())
        store.submit(dataclasses.replace(alive.connection(instance=alive.instance()), name="alive"))
        await until_written(store)
    async with running(postgres, cluster_id=OTHER_CLUSTER) as store:
        store.submit(foreign.connection())
        await until_written(store)
    async with running(postgres) as store:
        store.submit(young.instance())  # after the list was taken
        store.sweep(
            Live(
                frozenset({alive.toolbox_id}), frozenset({alive.instance_id}), frozenset({alive.connection_id.upper()})
            )
        )
        await until_written(store)
    tables = ("account_tool_environments", "account_tool_instances", "agent_mcp_connections")
    reasons = {
        name: [
            (await row_of(postgres, table, id_))["delete_reason"]
            for table, id_ in zip(tables, (world.toolbox_id, world.instance_id, world.connection_id), strict=False)
            if not (world is young and table == "agent_mcp_connections")
        ]
        for name, world in (("gone", gone), ("alive", alive), ("young", young), ("foreign", foreign))
    }
    assert reasons == {
        "gone": ["swept"] * 3,
        "alive": [None] * 3,
        "young": [None] * 2,
        "foreign": [None] * 3,
    }


async def test_an_id_that_no_row_can_have_does_not_stop_the_sweep(postgres: str) -> None:
    world, odd = World("a"), World("b", instance_id="not-a-uuid")
    async with running(postgres) as store:
        store.submit(world.instance())
        await until_written(store)
    async with running(postgres) as store:
        store.close(odd.instance(), "deleted")  # refused, and remembered
        store.sweep(Live(frozenset(), frozenset({"foo", "not-a-uuid"}), frozenset()))
        await until_written(store)
        assert store.healthy
    assert (await row_of(postgres, "account_tool_instances", world.instance_id))["delete_reason"] == "swept"


async def test_a_swept_object_that_speaks_again_is_open_again(postgres: str) -> None:
    world = World()
    async with running(postgres) as store:
        store.submit(world.connection())
        await until_written(store)
    async with running(postgres) as store:
        store.sweep(EMPTY)
        await until_written(store)
        assert (await row_of(postgres, "account_tool_instances", world.instance_id))["delete_reason"] == "swept"
        store.submit(world.instance())
        await until_written(store)
    assert (await row_of(postgres, "account_tool_instances", world.instance_id))["deleted_at"] is None
    assert (await row_of(postgres, "account_tool_environments", world.toolbox_id))["delete_reason"] == "swept"


async def test_an_older_epoch_never_wins(postgres: str) -> None:
    world, anew = World(), World()
    async with running(postgres, Leader(epoch=5)) as store:
        store.submit(world.instance(1, (1, 1), image="of the leader"))
        await until_written(store)
    async with running(postgres, Leader(epoch=4)) as store:
        store.submit(world.instance(9, (9, 9), image="of the one before", status="error"))
        store.submit(anew.instance())  # would take the name
        store.submit(anew.connection())
        store.close(world.instance(9), "deleted")
        await until_written(store)
        store.sweep(EMPTY)
        await until_written(store)
    row = await row_of(postgres, "account_tool_instances", world.instance_id)
    assert (row["image"], row["status_on_toolbox"], row["deleted_at"]) == ("of the leader", "active", None)


async def test_a_row_equal_to_the_last_one_is_not_written_again(postgres: str) -> None:
    world = World()
    async with running(postgres) as store:
        store.submit(world.instance(1, (1, 1)))
        await until_written(store)
        before = await row_of(postgres, "account_tool_instances", world.instance_id)
        store.submit(world.instance(1, (1, 1)))
        assert store.backlog == 0
    async with running(postgres, Leader(epoch=2)) as store:  # a new leader takes the row, but nothing in it changed
        store.submit(world.instance(1, (1, 1)))
        await until_written(store)
    after = await row_of(postgres, "account_tool_instances", world.instance_id)
    assert after == {**before, "epoch": 2}


async def test_one_bad_row_does_not_hold_up_the_others(postgres: str) -> None:
    bad, good, strange = World("bad"), World("good"), World("strange")
    async with running(postgres) as store:
        store.submit(bad.instance(status="bogus"))
        store.submit(good.instance())
        store.submit(strange.instance(1, (1, 1), tools=["nul \x00 and half a pair \ud800"]))
        store.submit(dataclasses.replace(bad.toolbox(), id="not-a-uuid"))
        store.log(object_kind="MCPServer", object_id="not-a-uuid", type_="Normal", reason="X", message="")
        store.log(object_kind="MCPServer", object_id=good.instance_id, type_="Normal", reason="Y", message="\x00")
        await until_written(store)
        assert store.healthy
        store.submit(bad.instance(2))
        await until_written(store)
    assert (await row_of(postgres, "account_tool_instances", good.instance_id))["status_on_toolbox"] == "active"
    assert (await row_of(postgres, "account_tool_instances", bad.instance_id))["spec_generation"] == 2
    tools = (await row_of(postgres, "account_tool_instances", strange.instance_id))["tools"]
    assert tools[0]["name"] == "nul � and half a pair �"
    assert [e["reason"] for e in await query(postgres, "SELECT reason FROM magic_toolbox.lifecycle_events")] == ["Y"]


async def test_events_are_appended_once_each_in_order(postgres: str) -> None:
    world = World()
    async with running(postgres) as store:
        for reason in ("Deployed", "Ready"):
            store.log(object_kind="MCPServer", object_id=world.instance_id, type_="Normal", reason=reason, message="m")
        await until_written(store)
    events = await query(postgres, "SELECT * FROM magic_toolbox.lifecycle_events ORDER BY created_at, id")
    assert [(str(e["object"]), e["reason"], str(e["cluster_id"])) for e in events] == [
        (world.instance_id, "Deployed", CLUSTER),
        (world.instance_id, "Ready", CLUSTER),
    ]
    assert all(e["id"].version == 7 for e in events)


async def test_a_server_that_speaks_stdio_has_no_endpoint_path(postgres: str) -> None:
    world = World()
    async with running(postgres) as store:
        store.submit(world.instance(seen=(1, 1), stdio=True))
        await until_written(store)
        assert store.healthy
    instance = await row_of(postgres, "account_tool_instances", world.instance_id)
    assert (instance["mcp_transport_type"], instance["mcp_endpoint_path"]) == ("stdio", None)
    async with running(postgres) as store:  # a new process reads the row before it writes
        store.submit(world.instance(2, (1, 2), stdio=True, image="time:2"))
        await until_written(store)
    instance = await row_of(postgres, "account_tool_instances", world.instance_id)
    assert (instance["image"], instance["mcp_endpoint_path"]) == ("time:2", None)
