"""Grants: when they count as programmed, and what a revocation waits for."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
import pytest_asyncio

from support.dtma.host import FAST, DtmaHost, FakeProcesses, code_of, eventually, grant_body, instance_body
from support.dtma.worker import ScriptedWorker, connected
from toolbox_dtma.policy.process import ProcessId
from toolbox_dtma.wire import Grant, GrantLimits, canonical_hash
from toolbox_operator.domain.policy import unknown_fields

pytestmark = pytest.mark.component

BRIEF = FAST.model_copy(update={"worker_lost": 1.5})


@pytest_asyncio.fixture(autouse=True)
async def instance(host: DtmaHost) -> None:
    """The instance that grants are about."""
    async with host.client() as client:
        (await client.put("/v2/instances/i-1", json=instance_body())).raise_for_status()


async def put(host: DtmaHost, uid: str = "c-1", **changes: Any) -> httpx.Response:
    async with host.client() as client:
        return await client.put(f"/v2/grants/{uid}", json=grant_body(**changes))


async def delete(host: DtmaHost, uid: str = "c-1", name: str = "bot-time") -> httpx.Response:
    async with host.client() as client:
        return await client.delete(f"/v2/grants/{uid}", params={"namespace": "team-a", "name": name})


async def reports(host: DtmaHost) -> list[dict[str, Any]]:
    async with host.client() as client:
        return (await client.get("/v2/grants")).json()["items"]


async def programmed(host: DtmaHost) -> dict[str, bool]:
    return {item["uid"]: item["programmed"] for item in await reports(host)}


async def test_a_grant_is_answered_when_every_worker_obeys_it(host: DtmaHost, worker: ScriptedWorker) -> None:
    async with connected(ScriptedWorker(), host.socket_path) as second:
        answer = await put(host)
        assert answer.status_code == 200
        assert answer.json()["contentHash"] == canonical_hash(Grant.model_validate(grant_body()))
        assert answer.json()["programmed"] is True
        assert worker.policy.grants == second.policy.grants
        assert worker.policy.grants["c-1"].credentials[0].value == "a" * 64


async def test_without_any_worker_a_grant_is_kept_but_not_programmed(host: DtmaHost) -> None:
    with host.timed(ack_deadline=0.1):
        assert code_of(await put(host)) == "AckPending"
    assert await programmed(host) == {"c-1": False}
    async with connected(ScriptedWorker(), host.socket_path):
        await eventually(lambda: programmed(host), lambda seen: seen == {"c-1": True}, "programmed")
        assert (await put(host)).status_code == 200


@pytest.mark.parametrize(
    ("second", "outcome"),
    [
        ({"generation": 1}, "StaleGeneration"),
        ({"generation": 2}, "same"),
        ({"generation": 2, "credentials": []}, "stored"),
        ({"generation": 3}, "stored"),
        ({"generation": 3, "name": "other"}, "IdentityMismatch"),
        ({"generation": 3, "namespace": "team-b"}, "IdentityMismatch"),
        ({"generation": 3, "instance": "i-9"}, "InstanceUnknown"),
    ],
)
async def test_a_second_put_is_judged_by_generation_identity_and_content(
    host: DtmaHost, worker: ScriptedWorker, second: dict[str, Any], outcome: str
) -> None:
    assert (await put(host, generation=2)).status_code == 200
    before = await reports(host)
    answer = await put(host, **second)
    if outcome in ("same", "stored"):
        assert answer.status_code == 200
        assert (await reports(host) != before) == (outcome == "stored")
        kept = grant_body(generation=2) | second
        assert worker.policy.grants["c-1"].model_dump(mode="json")["credentials"] == [
            credential | {"not_after": None} for credential in kept["credentials"]
        ]
    else:
        assert code_of(answer) == outcome
        assert await reports(host) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"credentials": [{"type": "md5", "value": "a" * 32}]},
        {"credentials": [{"type": "sha256", "value": "A" * 64}]},
        {"subject": "someone"},
        {"surprise": True},
        {"generation": 0},
    ],
)
async def test_a_grant_that_means_something_unknown_is_refused(
    host: DtmaHost, worker: ScriptedWorker, changes: dict[str, Any]
) -> None:
    assert code_of(await put(host, **changes)) == "Invalid"
    assert worker.policy.grants == {}


async def test_a_grant_too_large_for_the_workers_is_refused(host: DtmaHost, worker: ScriptedWorker) -> None:
    pattern = "\U0001f512" * 250
    many = {"allow": [pattern] * 250, "deny": [pattern] * 250}
    refused = await put(host, expose={"tools": many}, serverExpose={"tools": many})
    assert code_of(refused) == "TooLarge"
    expose = {"tools": {"allow": [pattern] * 250, "deny": [pattern] * 250}}
    assert (await put(host, expose=expose)).status_code == 200
    assert (await put(host, "c-2", name="two", expose=expose)).status_code == 200
    async with connected(ScriptedWorker(), host.socket_path) as late:
        assert set(late.policy.grants) == {"c-1", "c-2"}


async def test_a_revocation_is_answered_when_no_worker_honours_it(host: DtmaHost, worker: ScriptedWorker) -> None:
    await put(host)
    assert (await delete(host)).status_code == 204
    assert worker.policy.grants == {}
    assert code_of(await put(host, generation=2)) == "Deleted"
    assert (await delete(host)).status_code == 204


async def test_a_revocation_without_an_acknowledgement_stays_pending_until_it_comes(
    host: DtmaHost, worker: ScriptedWorker
) -> None:
    await put(host)
    worker.acks = False
    with host.timed(ack_deadline=0.1):
        assert code_of(await delete(host)) == "AckPending"
        assert code_of(await delete(host)) == "AckPending"
    await worker.acknowledge()
    assert (await delete(host)).status_code == 204


async def test_a_delete_by_another_name_is_refused(host: DtmaHost, worker: ScriptedWorker) -> None:
    await put(host)
    assert code_of(await delete(host, name="other")) == "IdentityMismatch"
    assert "c-1" in worker.policy.grants


async def test_deleting_an_absent_grant_succeeds_and_stops_a_late_put(host: DtmaHost) -> None:
    assert (await delete(host)).status_code == 204
    assert code_of(await put(host)) == "Deleted"


async def test_a_lost_worker_is_waited_for_as_long_as_it_may_serve(host: DtmaHost) -> None:
    host.timings = BRIEF
    await host.restart()
    async with connected(ScriptedWorker(), host.socket_path):
        await put(host)
        began = time.monotonic()
    with host.timed(ack_deadline=0.1):
        await eventually(lambda: delete(host), lambda answer: answer.status_code == 204, "revoked")
    assert time.monotonic() - began >= BRIEF.worker_lost


async def test_a_worker_that_is_proven_dead_is_not_waited_for(host: DtmaHost) -> None:
    processes = host.processes
    assert isinstance(processes, FakeProcesses)
    processes.pinned = ProcessId(77, 77, "this-boot")
    async with connected(ScriptedWorker(), host.socket_path):
        await put(host)
    processes.dead.add(processes.pinned)
    assert (await delete(host)).status_code == 204


async def test_a_worker_that_comes_back_must_acknowledge_again(host: DtmaHost) -> None:
    processes = host.processes
    assert isinstance(processes, FakeProcesses)
    processes.pinned = ProcessId(77, 77, "this-boot")
    async with connected(ScriptedWorker(), host.socket_path):
        await put(host)
    back = ScriptedWorker(acks=False)
    async with connected(back, host.socket_path):
        with host.timed(ack_deadline=0.1):
            assert code_of(await delete(host)) == "AckPending"
        await back.acknowledge()
        assert (await delete(host)).status_code == 204


async def test_a_worker_that_starts_does_not_delay_a_revocation(host: DtmaHost, worker: ScriptedWorker) -> None:
    await put(host)
    async with connected(ScriptedWorker(acks=False), host.socket_path) as starting:
        assert (await put(host)).status_code == 200
        # It was given a snapshot with the grant, so a revocation afterwards does concern it.
        with host.timed(ack_deadline=0.1):
            assert code_of(await delete(host)) == "AckPending"
        await starting.acknowledge()
        assert (await delete(host)).status_code == 204


async def test_a_silent_worker_is_killed_and_the_revocation_goes_through(host: DtmaHost) -> None:
    processes = host.processes
    assert isinstance(processes, FakeProcesses)
    async with connected(ScriptedWorker(), host.socket_path) as silent:
        await put(host)
        silent.acks = silent.pongs = False
        silent.probes = lambda _: None
        assert (await delete(host)).status_code == 204
        assert len(processes.killed) == 1


async def test_a_worker_is_not_killed_for_being_slow_to_learn_of_a_new_grant(host: DtmaHost) -> None:
    processes = host.processes
    assert isinstance(processes, FakeProcesses)
    async with connected(ScriptedWorker(), host.socket_path) as busy:
        busy.acks = busy.pongs = False
        busy.probes = lambda _: None
        # Longer than a worker may be silent while something is withdrawn.
        with host.timed(ack_deadline=0.6):
            assert code_of(await put(host)) == "AckPending"
        assert processes.killed == []
        # The same silence costs its life as soon as something is withdrawn.
        assert (await delete(host)).status_code == 204
        assert len(processes.killed) == 1


async def test_a_worker_that_answers_pings_is_not_killed(host: DtmaHost, worker: ScriptedWorker) -> None:
    processes = host.processes
    assert isinstance(processes, FakeProcesses)
    await put(host)
    worker.acks = False
    with host.timed(ack_deadline=0.6):
        assert code_of(await delete(host)) == "AckPending"
    assert processes.killed == []


async def test_grants_survive_a_restart_and_are_programmed_by_the_next_snapshot(host: DtmaHost) -> None:
    async with connected(ScriptedWorker(), host.socket_path):
        await put(host)
    host.timings = BRIEF
    await host.restart()
    assert await programmed(host) == {"c-1": False}
    async with connected(ScriptedWorker(), host.socket_path) as worker:
        assert worker.policy.grants["c-1"].instance == "i-1"
        await eventually(lambda: programmed(host), lambda seen: seen == {"c-1": True}, "programmed")


async def test_after_a_restart_nothing_is_revoked_until_the_former_workers_are_accounted_for(host: DtmaHost) -> None:
    processes = host.processes
    assert isinstance(processes, FakeProcesses)
    processes.pinned = ProcessId(77, 77, "this-boot")
    async with connected(ScriptedWorker(), host.socket_path):
        await put(host)
    await host.restart()
    with host.timed(ack_deadline=0.1):
        assert code_of(await delete(host)) == "AckPending"
    processes.dead.add(processes.pinned)
    assert (await delete(host)).status_code == 204


async def test_a_redeployed_server_keeps_its_grants(host: DtmaHost, worker: ScriptedWorker) -> None:
    await put(host)
    async with host.client() as client:
        await client.put("/v2/instances/i-1", json=instance_body(generation=2, image="registry.example.com/x:2"))
        await client.put("/v2/instances/i-1", json=instance_body(uid="uid-2"))
    assert "c-1" in worker.policy.grants
    assert await programmed(host) == {"c-1": True}


async def test_limits_go_to_the_workers_and_into_the_hash_and_their_change_is_an_update(
    host: DtmaHost, worker: ScriptedWorker
) -> None:
    plain = (await put(host)).json()["contentHash"]
    assert worker.policy.grants["c-1"].limits is None
    limited = await put(host, limits={"concurrentCalls": 2, "callTimeoutSeconds": 30})
    assert limited.json()["programmed"] is True and limited.json()["contentHash"] != plain
    limits = GrantLimits(concurrent_calls=2, call_timeout_seconds=30)
    assert worker.policy.grants["c-1"].limits == limits
    assert worker.policy.grants["c-1"].credentials[0].value == "a" * 64
    assert (await put(host)).json()["contentHash"] == plain


async def test_a_member_this_host_does_not_know_is_refused_in_words_that_operators_read(
    host: DtmaHost, worker: ScriptedWorker
) -> None:
    answer = await put(host, later={"x": 1}, expose={"tools": {}, "later": {}})
    assert code_of(answer) == "Invalid"
    assert set(unknown_fields(answer.json()["detail"])) == {"later", "expose.later"}
