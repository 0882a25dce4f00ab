"""What a host is told of volumes, and which of them it removes with their instance."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from support.dtma.host import DtmaHost, code_of, eventually, instance_body
from toolbox_dtma.engine.api import Holder

pytestmark = pytest.mark.component

DATA = [{"name": "data", "mountPath": "/data"}]
HOLDER = Holder("i-1", "cluster-a", "team-a", "time")


async def put(host: DtmaHost, **changes: Any) -> httpx.Response:
    async with host.client() as client:
        return await client.put("/v2/instances/i-1", json=instance_body(**{"volumes": DATA} | changes))


async def delete(host: DtmaHost, **changes: str) -> httpx.Response:
    async with host.client() as client:
        where = {"uid": "uid-1", "namespace": "team-a", "name": "time"} | changes
        return await client.delete("/v2/instances/i-1", params=where)


async def swept(host: DtmaHost) -> dict[Holder, frozenset[str]]:
    """What the next start takes for spent."""
    host.engine.spent = None
    await host.restart()

    async def told() -> Any:
        return host.engine.spent

    return dict(await eventually(told, lambda spent: spent is not None, "swept"))


@pytest.mark.parametrize(
    ("spec", "last_word", "removed"),
    [
        ({}, {}, True),
        ({"volumePolicy": "Retain"}, {}, False),
        ({"volumePolicy": "Retain"}, {"volumePolicy": "Delete"}, True),
        ({}, {"volumePolicy": "Retain"}, False),
    ],
    ids=str,
)
async def test_volumes_go_with_their_instance_unless_they_are_to_stay(
    host: DtmaHost, spec: dict[str, str], last_word: dict[str, str], removed: bool
) -> None:
    assert (await put(host, **spec)).status_code == 202
    assert (await delete(host, **last_word)).status_code == 204
    assert host.engine.removed == ["i-1"]
    assert host.engine.volumes_removed == ([HOLDER] if removed else [])
    assert await swept(host) == ({HOLDER: frozenset({"uid-1"})} if removed else {})


async def test_a_removal_that_a_restart_cut_short_keeps_what_it_was_to_keep(host: DtmaHost) -> None:
    await put(host)
    host.engine.removable.clear()
    with host.timed(removal_wait=0.1):
        assert code_of(await delete(host, volumePolicy="Retain")) == "EngineUnavailable"
    await host.stop()
    host.engine.removable.set()
    await host.start()

    async def removed() -> list[str]:
        return host.engine.removed

    await eventually(removed, lambda ids: ids == ["i-1"], "removed after the restart")
    assert host.engine.volumes_removed == []
    assert await swept(host) == {}


async def test_a_removal_that_cannot_go_on_takes_another_order(host: DtmaHost) -> None:
    await put(host)
    host.engine.available = False
    assert code_of(await delete(host)) == "EngineUnavailable"
    assert code_of(await delete(host, volumePolicy="Retain")) == "EngineUnavailable"
    host.engine.available = True

    async def removed() -> list[str]:
        return host.engine.removed

    await eventually(removed, lambda ids: ids == ["i-1"], "removed")
    assert host.engine.volumes_removed == []
    assert await swept(host) == {}


async def test_a_newer_object_of_the_name_does_not_change_what_becomes_of_the_olders_volumes(host: DtmaHost) -> None:
    await put(host)
    host.engine.removable.clear()
    with host.timed(removal_wait=0.1):
        await delete(host)
    assert (await put(host, uid="uid-2", volumePolicy="Retain")).status_code == 202
    host.engine.removable.set()

    async def wanted() -> str | None:
        found = host.engine.wanted.get("i-1")
        return found.desired.uid if found else None

    await eventually(wanted, lambda uid: uid == "uid-2", "the new object wanted")
    assert host.engine.volumes_removed == [HOLDER]


async def test_an_object_that_takes_an_instance_over_takes_its_volumes_over(host: DtmaHost) -> None:
    await put(host)
    assert (await put(host, uid="uid-2")).status_code == 202
    assert (await delete(host, uid="uid-1")).status_code == 204
    assert (host.engine.removed, host.engine.volumes_removed) == ([], [])
    assert await swept(host) == {}, "the older object's end says nothing about volumes"


async def test_volumes_that_were_kept_once_are_never_swept(host: DtmaHost) -> None:
    await put(host, volumePolicy="Retain")
    await delete(host)
    await put(host, uid="uid-2")
    await delete(host, uid="uid-2")
    assert host.engine.volumes_removed == [HOLDER], "that order was carried out"
    assert await swept(host) == {}


@pytest.mark.parametrize(
    ("volumes", "where"),
    [
        ([{"name": "data", "mountPath": "/etc/../proc"}], "volumes.0.mountPath"),
        ([{"name": "data", "mountPath": "/proc/sys"}], "volumes.0.mountPath"),
        ([{"name": "data", "mountPath": "/"}], "volumes.0.mountPath"),
        ([{"name": "../data", "mountPath": "/data"}], "volumes.0.name"),
        ([{"name": "data", "mountPath": "/data", "source": "/etc"}], "volumes.0.source"),
        ([{"name": "a", "mountPath": "/data"}, {"name": "a", "mountPath": "/other"}], "volumes"),
        ([{"name": "a", "mountPath": "/data"}, {"name": "b", "mountPath": "/data/b"}], "volumes"),
        ([{"name": f"v{n}", "mountPath": f"/v{n}"} for n in range(17)], "volumes"),
    ],
    ids=str,
)
async def test_a_host_refuses_volumes_that_a_rule_refuses(
    host: DtmaHost, volumes: list[dict[str, str]], where: str
) -> None:
    refused = await put(host, volumes=volumes)
    assert code_of(refused) == "Invalid"
    assert f"body.{where}: " in refused.json()["detail"]


async def test_a_policy_that_there_is_not_is_refused_before_anything_is_removed(host: DtmaHost) -> None:
    await put(host)
    assert code_of(await delete(host, volumePolicy="Keep")) == "Invalid"
    await asyncio.sleep(0)
    assert host.engine.removed == [] and "i-1" in host.engine.wanted
