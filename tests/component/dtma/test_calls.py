"""Call records from workers to owners."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import Any

import pytest
import pytest_asyncio

from support.dtma.calls import entry, told
from support.dtma.host import OWNER, DtmaHost, code_of, eventually, grant_body, instance_body
from support.dtma.worker import ScriptedWorker, connected
from toolbox_dtma.link.framing import encode_payload
from toolbox_dtma.settings import Bounds
from toolbox_dtma.wire import CallBatch, CallOutcome, CallRecord

pytestmark = pytest.mark.component

OTHER = "cluster-b"


@pytest_asyncio.fixture(autouse=True)
async def objects(host: DtmaHost, worker: ScriptedWorker) -> None:
    """An instance and a connection of each of two owners."""
    await host.claimed(OTHER)
    for owner, number in ((OWNER, 1), (OTHER, 2)):
        async with host.client(owner) as client:
            instance = instance_body(uid=f"uid-{number}", name=f"time-{number}")
            (await client.put(f"/v2/instances/i-{number}", json=instance)).raise_for_status()
            grant = grant_body(name=f"bot-{number}", instance=f"i-{number}", agent=f"agent-{number}")
            (await client.put(f"/v2/grants/c-{number}", json=grant)).raise_for_status()


async def fetch(host: DtmaHost, after: str | None = None, owner: str = OWNER) -> CallBatch:
    async with host.client(owner, None) as client:
        answer = await client.get("/v2/calls", params={} if after is None else {"after": after})
        answer.raise_for_status()
        return CallBatch.model_validate_json(answer.content)


async def everything(host: DtmaHost, owner: str = OWNER) -> list[CallRecord]:
    found: list[CallRecord] = []
    batch = await fetch(host, None, owner)
    while batch.items:
        found += batch.items
        batch = await fetch(host, batch.cursor, owner)
    return found


async def metrics(host: DtmaHost) -> dict[str, float]:
    async with host.client() as client:
        lines = (await client.get("/metrics")).text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


async def test_a_record_is_attributed_by_the_grant_and_reaches_its_owner_alone(
    host: DtmaHost, worker: ScriptedWorker
) -> None:
    mine = entry("c-1", outcome="tool_error", protocol_version="2025-11-25", trace_id="f" * 32, at=1.7e9)
    mine = mine.model_copy(update={"id": entry().id})
    await worker.tell(told(1, mine, entry("c-2")))
    (record,) = (await fetch(host)).items
    assert record.model_dump(exclude={"started_at"}) == {
        **mine.model_dump(),
        "namespace": "team-a",
        "agent": "agent-1",
        "instance": "i-1",
        "subject": None,
    }
    assert abs(record.started_at.timestamp() - time.time()) < 60
    (other,) = (await fetch(host, owner=OTHER)).items
    assert (other.agent, other.instance, other.connection) == ("agent-2", "i-2", "c-2")


async def test_the_next_cursor_acknowledges_and_the_one_before_repeats(host: DtmaHost, worker: ScriptedWorker) -> None:
    await worker.tell(told(1, entry(tool="a")))
    first = await fetch(host)
    await worker.tell(told(2, entry(tool="b")))
    second = await fetch(host, first.cursor)
    assert [r.tool for r in second.items] == ["b"]
    assert await fetch(host, first.cursor) == second
    assert (await fetch(host, second.cursor)).items == ()
    assert (await fetch(host, "of another life")).items == ()


async def test_an_answer_is_bounded(host: DtmaHost, worker: ScriptedWorker) -> None:
    await host.stop()
    host.bounds = Bounds(calls_batch=3)
    await host.start()
    async with connected(ScriptedWorker(), host.socket_path) as again:
        await again.tell(told(1, *(entry(tool=f"t{number}") for number in range(7))))
    batch = await fetch(host)
    assert [r.tool for r in batch.items] == ["t0", "t1", "t2"]
    assert [r.tool for r in await everything(host)] == [f"t{number}" for number in range(7)]


async def test_an_owner_that_never_claimed_gets_none(host: DtmaHost) -> None:
    async with host.client("cluster-c") as client:
        assert code_of(await client.get("/v2/calls")) == "NotClaimed"
    async with host.client(None) as client:
        assert code_of(await client.get("/v2/calls")) == "OwnerMissing"


@pytest.mark.parametrize("what", ["grant", "instance"])
@pytest.mark.parametrize("restarted", [False, True])
async def test_records_that_come_after_their_connection_was_deleted_are_delivered(
    host: DtmaHost, worker: ScriptedWorker, what: str, restarted: bool
) -> None:
    await worker.tell(told(1, entry(tool="before")))
    async with host.client() as client:
        if what == "grant":
            answer = await client.delete("/v2/grants/c-1", params={"namespace": "team-a", "name": "bot-1"})
        else:
            names = {"uid": "uid-1", "namespace": "team-a", "name": "time-1"}
            answer = await client.delete("/v2/instances/i-1", params=names)
        assert answer.status_code == 204
    if restarted:
        await host.restart()
    async with connected(ScriptedWorker(), host.socket_path) as again:
        await again.tell(told(2, entry(tool="after")))
    found = await everything(host)
    assert [(r.tool, r.agent, r.instance) for r in found] == [("before", "agent-1", "i-1"), ("after", "agent-1", "i-1")]


async def test_what_a_worker_makes_up_reaches_nobody(host: DtmaHost, worker: ScriptedWorker) -> None:
    unknown = entry("no-such-connection")
    old, future, wrong = entry(at=1e9), entry(at=time.time() + 86_400), entry(id=uuid.uuid4())
    await worker.tell(told(1, unknown, old, future, wrong, entry(tool="a\0b")))
    batch = await fetch(host)
    assert [r.tool for r in batch.items] == ["a\ufffdb"]
    assert batch.dropped == 3
    assert (await fetch(host, owner=OTHER)) == CallBatch(cursor=(await fetch(host, owner=OTHER)).cursor, items=())
    assert (await metrics(host))['dtma_calls_lost_total{why="unknown"}'] == 1


EXCESSES: list[dict[str, Any]] = [
    {"calls": [{"arguments": ""}]},
    {"batch": -1},
    {"stream": "x"},
    {"dropped": {f"c-{number}": 1 for number in range(257)}},
    {"refusals": {f"reason-{number}": 1 for number in range(257)}},
    {"calls": [json.loads(entry().model_dump_json()) | {"tool": "x" * 257}]},
    {"calls": [json.loads(entry().model_dump_json())] * 257},
]


@pytest.mark.parametrize("member", EXCESSES)
async def test_a_worker_that_exceeds_a_bound_is_disconnected(
    host: DtmaHost, worker: ScriptedWorker, member: dict[str, Any]
) -> None:
    document = {"kind": "calls", "stream": "a" * 32, "batch": 1, **member}
    await worker.raw(encode_payload(json.dumps(document).encode()))

    async def ended() -> bool:
        return worker.ended

    await eventually(ended, bool, "disconnected")
    assert (await fetch(host)).items == ()


async def test_a_worker_that_does_not_wait_for_the_acknowledgement_is_disconnected(
    host: DtmaHost, worker: ScriptedWorker
) -> None:
    await asyncio.gather(
        *(worker.tell(told(number, entry())) for number in range(1, 50)),
        return_exceptions=True,
    )
    assert worker.ended


async def test_a_batch_whose_acknowledgement_was_lost_is_kept_once(host: DtmaHost, worker: ScriptedWorker) -> None:
    message = told(1, entry())
    await worker.tell(message)
    for restart in (False, True):
        if restart:
            await host.restart()
        async with connected(ScriptedWorker(), host.socket_path) as again:
            await again.tell(message)
    assert len(await everything(host)) == 1


async def test_numbers_are_by_instance_and_outcome_and_go_with_the_instance(
    host: DtmaHost, worker: ScriptedWorker
) -> None:
    message = told(1, entry(), entry(outcome="denied"), entry("c-2"), refusals={"denied": 2, "made-up": 5}, lost=4)
    await worker.tell(message)
    # The next one waits behind it, and a repeated one counts no second time.
    await worker.tell(told(2))
    await worker.tell(message)
    numbers = await metrics(host)
    assert numbers['dtma_calls_total{instance="i-1",outcome="ok"}'] == 1
    assert numbers['dtma_calls_total{instance="i-1",outcome="denied"}'] == 1
    assert numbers['dtma_calls_total{instance="i-2",outcome="ok"}'] == 1
    assert numbers['dtma_call_seconds_count{instance="i-1"}'] == 2
    assert numbers['dtma_call_bytes_total{direction="out",instance="i-1"}'] == 400
    assert numbers['dtma_gateway_refusals_total{reason="denied"}'] == 2
    assert numbers['dtma_gateway_refusals_total{reason="other"}'] == 5
    assert numbers['dtma_calls_lost_total{why="killed"}'] == 4
    assert (numbers["dtma_calls_held"], numbers["dtma_calls_dropped"]) == (3, 0)
    async with host.client() as client:
        names = {"uid": "uid-1", "namespace": "team-a", "name": "time-1"}
        (await client.delete("/v2/instances/i-1", params=names)).raise_for_status()
    assert not any('"i-1"' in name for name in await metrics(host))
    await worker.tell(told(3, entry()))
    assert not any('"i-1"' in name for name in await metrics(host)), "a late record does not bring them back"


async def test_drops_are_counted_by_owner_and_survive(host: DtmaHost, worker: ScriptedWorker) -> None:
    await worker.tell(told(1, dropped={"c-1": 7, "c-2": 1, "no-such": 9}, lost=3))
    for _ in range(2):
        assert [(await fetch(host, owner=owner)).dropped for owner in (OWNER, OTHER)] == [7, 1]
        await host.restart()


async def test_neither_spool_nor_log_has_a_credential(
    host: DtmaHost, worker: ScriptedWorker, capfd: pytest.CaptureFixture[str]
) -> None:
    await worker.tell(told(1, entry()))
    for path in (host.state_dir / "calls").iterdir():
        content = path.read_text()
        assert "get_time" in content and "a" * 64 not in content and "sha256" not in content
    token = (host.state_dir / "token").read_text()
    captured = capfd.readouterr()
    assert token not in captured.out + captured.err


def test_every_outcome_can_be_told() -> None:
    assert [entry(outcome=outcome).outcome for outcome in CallOutcome] == list(CallOutcome)
