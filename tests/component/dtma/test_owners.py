"""Who may act on a host, and under which leadership."""

from __future__ import annotations

import httpx
import pytest

from support.dtma.host import DtmaHost, code_of, grant_body, instance_body, stdio_body
from toolbox_dtma.state.files import read_record
from toolbox_dtma.state.records import BootRecord

pytestmark = pytest.mark.component

MUTATIONS = {
    "put instance": ("PUT", "/v2/instances/i-1", instance_body()),
    "delete instance": ("DELETE", "/v2/instances/i-1?uid=uid-1&namespace=team-a&name=time", None),
    "put grant": ("PUT", "/v2/grants/c-1", grant_body()),
    "delete grant": ("DELETE", "/v2/grants/c-1?namespace=team-a&name=bot-time", None),
    "configure": ("PUT", "/v2/host/config", {"gatewayURL": "https://tbx-1.example.com:30443"}),
}
READS = ("/v2/instances", "/v2/instances/i-1", "/v2/instances/i-1/logs", "/v2/grants", "/v2/host", "/v2/events")


async def claim(host: DtmaHost, epoch: int, owner: str = "cluster-a") -> httpx.Response:
    async with host.client(owner, epoch) as client:
        return await client.put(f"/v2/owners/{owner}", json={"epoch": epoch})


async def test_a_claim_answers_with_the_epoch_held_and_the_host(host: DtmaHost) -> None:
    answer = await claim(host, 7)
    assert answer.status_code == 200
    assert answer.json()["epoch"] == 7
    assert len(answer.json()["hostId"]) == 36


async def test_an_older_claim_is_fenced_and_told_the_epoch_held(host: DtmaHost) -> None:
    await claim(host, 7)
    refused = await claim(host, 6)
    assert code_of(refused) == "FencedEpoch"
    assert refused.json()["current"] == 7
    assert (await claim(host, 7)).status_code == 200


async def test_an_epoch_survives_a_restart_of_the_host(host: DtmaHost) -> None:
    await claim(host, 7)
    await host.restart()
    assert code_of(await claim(host, 6)) == "FencedEpoch"


@pytest.mark.parametrize("name", MUTATIONS)
async def test_an_unclaimed_owner_changes_nothing(host: DtmaHost, name: str) -> None:
    method, path, body = MUTATIONS[name]
    async with host.client("stranger") as client:
        assert code_of(await client.request(method, path, json=body)) == "NotClaimed"


@pytest.mark.parametrize("path", READS)
async def test_an_unclaimed_owner_reads_nothing(host: DtmaHost, path: str) -> None:
    async with host.client("stranger") as client:
        assert code_of(await client.get(path)) == "NotClaimed"


@pytest.mark.parametrize("name", MUTATIONS)
async def test_a_former_leader_changes_nothing(host: DtmaHost, name: str) -> None:
    await claim(host, 9)
    method, path, body = MUTATIONS[name]
    async with host.client(epoch=8) as client:
        refused = await client.request(method, path, json=body)
    assert code_of(refused) == "FencedEpoch"
    assert refused.json()["current"] == 9


async def test_a_change_with_a_higher_epoch_than_claimed_raises_the_epoch_held(host: DtmaHost) -> None:
    async with host.client(epoch=5) as client:
        assert (await client.put("/v2/instances/i-1", json=instance_body())).status_code == 202
    async with host.client(epoch=4) as client:
        refused = await client.put("/v2/instances/i-1", json=instance_body(generation=2))
    assert refused.json()["current"] == 5


@pytest.mark.parametrize("name", MUTATIONS)
async def test_a_change_without_an_epoch_is_refused(host: DtmaHost, name: str) -> None:
    method, path, body = MUTATIONS[name]
    async with host.client(epoch=None) as client:
        assert code_of(await client.request(method, path, json=body)) == "EpochMissing"


@pytest.mark.parametrize("path", READS)
async def test_a_call_without_an_owner_is_refused(host: DtmaHost, path: str) -> None:
    async with host.client(owner=None) as client:
        assert code_of(await client.get(path)) == "OwnerMissing"


async def test_a_claim_for_another_owner_than_the_header_names_is_refused(host: DtmaHost) -> None:
    async with host.client("cluster-b", 1) as client:
        assert code_of(await client.put("/v2/owners/cluster-a", json={"epoch": 3})) == "OwnerMismatch"


async def test_owners_do_not_see_or_touch_each_others_objects(host: DtmaHost) -> None:
    await host.claimed("cluster-b")
    async with host.client() as client:
        await client.put("/v2/instances/i-1", json=instance_body())
        with host.timed(ack_deadline=0.1):
            await client.put("/v2/grants/c-1", json=grant_body())
    async with host.client("cluster-b") as other:
        assert (await other.get("/v2/instances")).json()["items"] == []
        assert (await other.get("/v2/grants")).json()["items"] == []
        assert (await other.get("/v2/host")).json()["usage"] == {"instances": 0, "running": 0, "grants": 0}
        for method, path, body in MUTATIONS.values():
            if path != "/v2/host/config":
                assert code_of(await other.request(method, path, json=body)) == "OwnerMismatch"
        assert code_of(await other.get("/v2/instances/i-1")) == "OwnerMismatch"
        own = grant_body(name="other")
        assert code_of(await other.put("/v2/grants/c-2", json=own)) == "OwnerMismatch"
    async with host.client() as client:
        assert len((await client.get("/v2/instances")).json()["items"]) == 1


async def test_a_host_tells_what_all_its_servers_may_take(host: DtmaHost) -> None:
    limits = {"memoryBytes": 64 << 20, "cpuMillis": 250}
    async with host.client() as client:
        (await client.put("/v2/instances/i-1", json=stdio_body(limits=limits))).raise_for_status()
        facts = (await client.get("/v2/host")).json()
        assert facts["reserved"] == {"memoryBytes": 3 * 64 << 20, "cpuMillis": 750}
        metrics = (await client.get("/metrics")).content
    assert b"dtma_reserved_cpus 0.75" in metrics and b"dtma_reserved_memory_bytes 2.01326592e+08" in metrics


async def test_host_facts_name_versions_and_capacity(host: DtmaHost) -> None:
    async with host.client() as client:
        facts = (await client.get("/v2/host")).json()
    assert facts["protocol"] == 2
    assert facts["bootId"] == read_record(host.state_dir / "boot.json", BootRecord).boot_id
    assert facts["engine"] == {"available": True, "version": "20.10.24", "apiVersion": "1.41"}
    assert facts["capacity"]["cpus"] >= 1
    assert facts["capacity"]["memoryBytes"] > 1 << 20
