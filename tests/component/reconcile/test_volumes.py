"""Volumes of a server: what the host is told of them, and with which word they end."""

from __future__ import annotations

import pytest

from support.reconcilers.world import NS, World, world
from toolbox_dtma.wire import Volume, VolumePolicy
from toolbox_operator.api.meta import Key, Kind

pytestmark = pytest.mark.component

KEY = Key(NS, "time")
DATA = {"name": "data", "mountPath": "/data"}


def message(w: World, type_: str) -> str:
    """The message of a condition."""
    (found,) = [each for each in w.status(Kind.MCP_SERVER, KEY)["conditions"] if each["type"] == type_]
    return found["message"]


async def test_a_host_is_told_of_volumes_and_of_their_change() -> None:
    async with world() as w:
        w.toolbox()
        w.server(volumes=[DATA])
        await w.settle()
        (before,) = w.machine().desired.values()
        assert before.volumes == (Volume(name="data", mount_path="/data"),)
        assert before.volume_policy is VolumePolicy.DELETE
        w.patch(Kind.MCP_SERVER, KEY, volumes=[DATA | {"readOnly": True}], volumePolicy="Retain")
        await w.settle()
        (after,) = w.machine().desired.values()
        assert after.volumes == (Volume(name="data", mount_path="/data", read_only=True),)
        assert after.volume_policy is VolumePolicy.RETAIN
        assert w.ready(Kind.MCP_SERVER, KEY) == ("True", "Ready")


@pytest.mark.parametrize(("policy", "left"), [("Delete", 0), ("Retain", 1)])
async def test_volumes_end_as_the_spec_says_at_the_end(policy: str, left: int) -> None:
    async with world() as w:
        w.toolbox()
        w.server(volumes=[DATA], volumePolicy="Retain" if policy == "Delete" else "Delete")
        await w.settle()
        w.machine().cut()
        # The edit never comes to the host.
        w.patch(Kind.MCP_SERVER, KEY, volumePolicy=policy)
        await w.settle()
        w.delete(Kind.MCP_SERVER, KEY)
        await w.settle()
        w.machine().heal()
        await w.until(lambda: w.machine().desired == {}, "removed from the host")
        assert len(w.machine().volumes) == left


async def test_a_host_of_before_volumes_is_named_as_what_has_to_be_upgraded() -> None:
    async with world() as w:
        w.machine().too_old_for_instances_with = frozenset({"volumes", "volumePolicy"})
        w.toolbox()
        w.server()
        await w.settle()
        assert w.ready(Kind.MCP_SERVER, KEY) == ("True", "Ready"), "without them it serves"
        w.patch(Kind.MCP_SERVER, KEY, volumes=[DATA])
        await w.settle()
        assert w.condition(Kind.MCP_SERVER, KEY, "Deployed") == ("False", "HostRejected")
        assert "too old to know volumes" in message(w, "Deployed")
