"""Instances over the management API: generations, identities, tombstones, removal."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from support.dtma.host import DtmaHost, code_of, eventually, grant_body, instance_body
from support.dtma.worker import ScriptedWorker, connected

pytestmark = pytest.mark.component

OTHER_HASH = "1" * 64


async def put(host: DtmaHost, **changes: Any) -> httpx.Response:
    async with host.client() as client:
        return await client.put("/v2/instances/i-1", json=instance_body(**changes))


async def delete(host: DtmaHost, uid: str = "uid-1", name: str = "time") -> httpx.Response:
    async with host.client() as client:
        where = {"uid": uid, "namespace": "team-a", "name": name}
        return await client.delete("/v2/instances/i-1", params=where)


async def get(host: DtmaHost) -> httpx.Response:
    async with host.client() as client:
        return await client.get("/v2/instances/i-1")


async def observed(host: DtmaHost) -> dict[str, Any]:
    return (await get(host)).json()["observed"]


@pytest.mark.parametrize(
    ("second", "outcome"),
    [
        ({"generation": 1}, "StaleGeneration"),
        ({"generation": 2}, "same"),
        ({"generation": 2, "inputsHash": OTHER_HASH}, "stored"),
        ({"generation": 2, "restartToken": "again"}, "stored"),
        ({"generation": 3}, "stored"),
        ({"generation": 1, "uid": "uid-2"}, "stored"),
        ({"generation": 3, "name": "other"}, "IdentityMismatch"),
        ({"generation": 3, "namespace": "team-b"}, "IdentityMismatch"),
        ({"generation": 3, "uid": "uid-2", "name": "other"}, "IdentityMismatch"),
    ],
)
async def test_a_second_put_is_judged_by_uid_generation_and_content(
    host: DtmaHost, second: dict[str, Any], outcome: str
) -> None:
    assert (await put(host, generation=2)).status_code == 202
    before = host.engine.wanted["i-1"]
    answer = await put(host, **second)
    after = host.engine.wanted["i-1"]
    if outcome == "stored":
        assert answer.status_code == 202
        assert after.desired.model_dump(by_alias=True, mode="json").items() >= second.items()
    elif outcome == "same":
        assert answer.status_code == 202
        assert after is before
    else:
        assert code_of(answer) == outcome
        assert after is before


async def test_an_adopted_uid_cannot_take_the_id_back(host: DtmaHost) -> None:
    await put(host, uid="uid-1", generation=9)
    assert (await put(host, uid="uid-2", generation=1)).status_code == 202
    assert code_of(await put(host, uid="uid-1", generation=10)) == "Deleted"
    assert (await get(host)).json()["uid"] == "uid-2"


async def test_a_delete_of_the_former_uid_leaves_the_newer_object_alone(host: DtmaHost) -> None:
    await put(host, uid="uid-1")
    await put(host, uid="uid-2")
    assert (await delete(host, uid="uid-1")).status_code == 204
    assert (await get(host)).json()["uid"] == "uid-2"
    assert host.engine.removed == []


async def test_a_delete_by_another_name_is_refused(host: DtmaHost) -> None:
    await put(host)
    assert code_of(await delete(host, name="other")) == "IdentityMismatch"
    assert "i-1" in host.engine.wanted


async def test_a_deleted_object_cannot_come_back_by_a_late_request(host: DtmaHost) -> None:
    await put(host)
    assert (await delete(host)).status_code == 204
    assert code_of(await put(host, generation=2)) == "Deleted"
    await host.restart()
    assert code_of(await put(host, generation=3)) == "Deleted"
    assert (await put(host, uid="uid-2")).status_code == 202


async def test_deleting_what_was_never_there_succeeds_and_stops_a_late_put(host: DtmaHost) -> None:
    assert (await delete(host)).status_code == 204
    assert code_of(await put(host)) == "Deleted"


async def test_a_delete_answers_only_after_the_container_is_gone(host: DtmaHost) -> None:
    await put(host)
    host.engine.removable.clear()
    with host.timed(removal_wait=0.1):
        assert code_of(await delete(host)) == "EngineUnavailable"
    assert host.engine.removed == []
    pending = asyncio.create_task(delete(host))
    host.engine.removable.set()
    assert (await pending).status_code == 204
    assert host.engine.removed == ["i-1"]


async def test_a_removal_goes_on_by_itself_when_the_engine_is_back(host: DtmaHost) -> None:
    await put(host)
    host.engine.available = False
    refused = await delete(host)
    assert code_of(refused) == "EngineUnavailable"
    assert refused.json()["detail"] == "the engine is away; the removal goes on by itself"
    host.engine.available = True

    async def removed() -> list[str]:
        return host.engine.removed

    await eventually(removed, lambda ids: ids == ["i-1"], "removed without another request")


async def test_a_container_that_no_record_knows_is_removed_at_the_start(host: DtmaHost) -> None:
    await put(host)
    await host.stop()
    host.engine.containers["left-behind"] = "start-0"
    await host.start()

    async def removed() -> list[str]:
        return host.engine.removed

    await eventually(removed, lambda ids: ids == ["left-behind"], "removed without being asked")
    assert (await get(host)).status_code == 200


async def test_a_removal_cut_short_by_a_restart_is_finished_after_it(host: DtmaHost) -> None:
    await put(host)
    host.engine.removable.clear()
    with host.timed(removal_wait=0.1):
        await delete(host)
    await host.stop()
    host.engine.removable.set()
    await host.start()

    async def removed() -> list[str]:
        return host.engine.removed

    await eventually(removed, lambda ids: ids == ["i-1"], "removed after the restart")
    assert code_of(await get(host)) == "NotFound"


async def test_a_new_object_during_a_removal_starts_once_the_old_container_is_gone(host: DtmaHost) -> None:
    await put(host, uid="uid-1")
    host.engine.removable.clear()
    with host.timed(removal_wait=0.1):
        await delete(host, uid="uid-1")
    assert (await put(host, uid="uid-2")).status_code == 202
    assert host.engine.wanted["i-1"].desired.uid == "uid-1"
    host.engine.removable.set()

    async def uid() -> str | None:
        wanted = host.engine.wanted.get("i-1")
        return wanted.desired.uid if wanted else None

    await eventually(uid, lambda seen: seen == "uid-2", "the new object wanted")
    assert host.engine.removed == ["i-1"]
    assert (await delete(host, uid="uid-1")).status_code == 204
    assert host.engine.wanted["i-1"].desired.uid == "uid-2"


async def test_deleting_an_instance_ends_its_grants_but_does_not_bury_them(
    host: DtmaHost, worker: ScriptedWorker
) -> None:
    await put(host)
    async with host.client() as client:
        assert (await client.put("/v2/grants/c-1", json=grant_body())).status_code == 200
        assert "c-1" in worker.policy.grants
        assert (await delete(host)).status_code == 204
        assert worker.policy.grants == {}
        assert worker.policy.instances == {}
        assert (await client.get("/v2/grants")).json()["items"] == []
        assert code_of(await client.put("/v2/grants/c-1", json=grant_body())) == "InstanceUnknown"
        await put(host, uid="uid-2")
        assert (await client.put("/v2/grants/c-1", json=grant_body())).status_code == 200


async def test_a_delete_whose_revocation_is_not_acknowledged_says_so_and_can_be_repeated(host: DtmaHost) -> None:
    async with connected(ScriptedWorker(), host.socket_path) as worker:
        await put(host)
        worker.acks = False
        with host.timed(ack_deadline=0.1):
            assert code_of(await delete(host)) == "AckPending"
            assert host.engine.removed == ["i-1"]
            assert code_of(await delete(host)) == "AckPending"
        await worker.acknowledge()
        assert (await delete(host)).status_code == 204


async def test_desired_state_survives_a_restart(host: DtmaHost) -> None:
    await put(host, generation=4, env=[{"name": "KEY", "value": "s3cr3t-value"}])
    host.engine.wanted.clear()
    await host.restart()
    assert host.engine.wanted["i-1"].desired.generation == 4
    assert host.engine.wanted["i-1"].desired.env[0].value == "s3cr3t-value"
    assert code_of(await put(host, generation=3)) == "StaleGeneration"


async def test_no_secret_value_is_ever_returned(host: DtmaHost) -> None:
    credential = {"registry": "registry.example.com", "username": "u", "password": "p4ssw0rd-value"}
    answer = await put(host, env=[{"name": "KEY", "value": "s3cr3t-value"}], registryCredentials=[credential])
    async with host.client() as client:
        texts = [answer.text, (await get(host)).text, (await client.get("/v2/instances")).text]
        too_long = "s3cr3t-value" * 4000
        refused = await client.put("/v2/instances/i-2", json=instance_body(env=[{"name": "K", "value": too_long}]))
    assert code_of(refused) == "Invalid"
    assert "env.0.value" in refused.json()["detail"]
    for text in [*texts, refused.text]:
        assert "s3cr3t" not in text
        assert "p4ssw0rd" not in text


async def test_a_list_is_complete_and_carries_the_cursor_to_watch_from(host: DtmaHost) -> None:
    await put(host)
    async with host.client() as client:
        listed = (await client.get("/v2/instances")).json()
    boot_id, seq = listed["cursor"].split(":")
    assert listed["complete"] is True
    assert int(boot_id) == listed["bootId"]
    assert int(seq) >= listed["items"][0]["observed"]["seq"]


async def test_the_boot_id_rises_at_every_start(host: DtmaHost) -> None:
    async def boot_id() -> int:
        async with host.client() as client:
            return (await client.get("/v2/instances")).json()["bootId"]

    before = await boot_id()
    await host.restart()
    assert await boot_id() > before


async def test_logs_are_passed_on_and_a_missing_container_is_not_found(host: DtmaHost) -> None:
    await put(host)
    async with host.client() as client:
        assert code_of(await client.get("/v2/instances/i-1/logs")) == "NotFound"
        host.engine.log_lines["i-1"] = [b"one\n", b"two\n", b"three\n"]
        assert (await client.get("/v2/instances/i-1/logs", params={"tail": 2})).content == b"two\nthree\n"
        assert code_of(await client.get("/v2/instances/i-1/logs", params={"tail": 100_000})) == "Invalid"
        assert code_of(await client.get("/v2/instances/i-9/logs")) == "NotFound"
        host.engine.available = False
        assert code_of(await client.get("/v2/instances/i-1/logs")) == "EngineUnavailable"


async def test_followed_logs_arrive_while_the_container_runs_on(host: DtmaHost) -> None:
    await put(host)
    host.engine.log_lines["i-1"] = [b"hello\n"]
    async with (
        asyncio.timeout(20),
        host.client() as client,
        client.stream("GET", "/v2/instances/i-1/logs", params={"follow": True}) as answer,
    ):
        async for chunk in answer.aiter_bytes():
            assert chunk == b"hello\n"
            break
