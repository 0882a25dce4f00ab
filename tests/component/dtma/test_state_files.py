"""The state folder through crashes, damage and repeated requests."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from support.dtma.host import FAST, DtmaHost, eventually, grant_body, instance_body
from support.dtma.worker import ScriptedWorker, connected
from toolbox_dtma.state import store
from toolbox_dtma.state.files import StateCorrupt, read_record, write_record
from toolbox_dtma.state.records import OwnerRecord
from toolbox_dtma.state.store import TOMBSTONE_LIFETIME, NotInitialised, State

pytestmark = pytest.mark.component

NOW = datetime(2026, 1, 1, tzinfo=UTC)

WRITER = """
import itertools, sys
from pathlib import Path
from toolbox_dtma.state.files import write_record
from toolbox_dtma.state.records import OwnerRecord
path = Path(sys.argv[1])
print("go", flush=True)
for number in itertools.count():
    write_record(path, OwnerRecord(owner="x" * (number % 50_000), epoch=number))
"""


@pytest.fixture
def folder(open_folder: Path) -> Path:
    """A state folder that init made."""
    return DtmaHost(open_folder).state_dir


def load(folder: Path, now: Callable[[], datetime] = lambda: NOW, **changes: int) -> State:
    return State(folder, now=now, **changes)


def test_a_write_that_is_killed_leaves_the_old_or_the_new_content(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_record(path, OwnerRecord(owner="", epoch=0))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(4):
        before = read_record(path, OwnerRecord).epoch
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "go\n"
        while read_record(path, OwnerRecord).epoch in (0, before) and writer.poll() is None:
            continue
        writer.send_signal(signal.SIGKILL)
        writer.wait(timeout=10)
        writer.stdout.close()
        record = read_record(path, OwnerRecord)
        assert len(record.owner) == record.epoch % 50_000


async def test_everything_on_disk_is_private(host: DtmaHost, worker: ScriptedWorker) -> None:
    async with host.client() as client:
        await client.put("/v2/instances/i-1", json=instance_body())
        await client.put("/v2/grants/c-1", json=grant_body())
        await client.delete("/v2/grants/c-1", params={"namespace": "team-a", "name": "bot-time"})
    found = [host.state_dir, *host.state_dir.rglob("*")]
    assert len(found) > 15
    for path in found:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b'{"version": 2}', b"\x00\xff"])
@pytest.mark.parametrize("name", ["host.json", "keyring.json", "instances/i-1.json", "grants/c.json", "config.json"])
def test_a_damaged_file_is_a_refusal_that_names_it(folder: Path, name: str, content: bytes) -> None:
    load(folder)
    (folder / name).write_bytes(content)
    with pytest.raises(StateCorrupt, match=str(folder / name)):
        load(folder)


def test_a_file_that_is_no_record_is_a_refusal_but_a_leftover_of_a_crash_is_not(folder: Path) -> None:
    load(folder)
    leftovers = [folder / ".new-abc", folder / "instances" / ".new-abc"]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    load(folder)
    assert not any(leftover.exists() for leftover in leftovers)
    (folder / "instances" / "notes.txt").write_bytes(b"")
    with pytest.raises(StateCorrupt, match=r"notes\.txt"):
        load(folder)


def test_a_record_under_another_records_name_is_a_refusal(folder: Path) -> None:
    load(folder)
    write_record(folder / "owners" / "b.json", OwnerRecord(owner="a", epoch=1))
    with pytest.raises(StateCorrupt, match=r"b\.json"):
        load(folder)


def test_a_damaged_files_secrets_are_not_in_the_refusal(folder: Path) -> None:
    (folder / "keyring.json").write_text('{"version": 1, "keyring": {"signing": "k", "keys": "s3cr3t"}}')
    with pytest.raises(StateCorrupt) as caught:
        load(folder)
    assert "s3cr3t" not in str(caught.value)


def test_an_uninitialised_folder_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(NotInitialised, match="toolbox-dtma init"):
        load(tmp_path)


async def test_tombstones_end_after_a_week_and_the_oldest_go_first(folder: Path) -> None:
    clock = [NOW]
    state = load(folder, lambda: clock[0], max_tombstones=3)
    for number in range(5):
        clock[0] = NOW + timedelta(minutes=number)
        async with state.committing() as commit:
            await commit.bury("grant", "owner", f"u-{number}")
    assert [state.is_buried("grant", "owner", f"u-{n}") for n in range(5)] == [False, False, True, True, True]
    assert not state.is_buried("instance", "owner", "u-4")
    assert not state.is_buried("grant", "other", "u-4")
    reloaded = load(folder, lambda: clock[0], max_tombstones=3)
    assert set(reloaded.tombstones) == set(state.tombstones)
    clock[0] = NOW + timedelta(minutes=4) + TOMBSTONE_LIFETIME
    assert not reloaded.is_buried("grant", "owner", "u-4")
    async with reloaded.committing() as commit:
        await commit.bury("grant", "owner", "u-9")
    assert len(list((folder / "tombstones").iterdir())) == 1


DELETE = ("DELETE", "/v2/instances/i-1?uid=uid-1&namespace=team-a&name=time", None)
ADOPT = ("PUT", "/v2/instances/i-1", instance_body(uid="uid-2"))
REVOKE = ("DELETE", "/v2/grants/c-1?namespace=team-a&name=bot-time", None)


# Each with every number of writes at which it can be cut.
CUTS = {"delete": (DELETE, 5), "adopt": (ADOPT, 2), "revoke": (REVOKE, 2)}


async def cut_off(
    host: DtmaHost, monkeypatch: pytest.MonkeyPatch, request_: tuple[str, str, object], writes: int
) -> None:
    """One request to a host whose disk takes so many writes and no more, as if the machine stopped there."""
    left = [writes]

    def budgeted(action: Callable[..., None]) -> Callable[..., None]:
        def spend(*arguments: object) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError("the power is gone")
            action(*arguments)

        return spend

    method, path, body = request_
    with monkeypatch.context() as patch:
        patch.setattr(store, "write_record", budgeted(store.write_record))
        patch.setattr(store, "remove", budgeted(store.remove))
        async with host.client() as client:
            await client.request(method, path, json=body)
        await host.stop()


@pytest.mark.parametrize("writes", range(5))
async def test_a_delete_cut_off_after_any_write_was_not_begun_or_ends_by_itself(
    host: DtmaHost, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    async with host.client() as client:
        (await client.put("/v2/instances/i-1", json=instance_body())).raise_for_status()
    await cut_off(host, monkeypatch, DELETE, writes)
    await host.start()

    async def settled() -> tuple[int, bool]:
        async with host.client() as client:
            late = await client.put("/v2/instances/i-1", json=instance_body(generation=2))
        return late.status_code, "i-1" in host.engine.containers

    await eventually(settled, lambda seen: seen in ((202, True), (410, False)), "kept and open, or gone and closed")


@pytest.mark.parametrize(
    ("request_", "writes"),
    [pytest.param(r, n, id=f"{name}-{n}") for name, (r, total) in CUTS.items() for n in range(total)],
)
async def test_a_request_cut_off_after_any_write_is_completed_by_repeating_it(
    host: DtmaHost, monkeypatch: pytest.MonkeyPatch, request_: tuple[str, str, object], writes: int
) -> None:
    async with connected(ScriptedWorker(), host.socket_path), host.client() as client:
        (await client.put("/v2/instances/i-1", json=instance_body())).raise_for_status()
        (await client.put("/v2/grants/c-1", json=grant_body())).raise_for_status()
    method, path, body = request_
    await cut_off(host, monkeypatch, request_, writes)
    host.timings = FAST.model_copy(update={"worker_lost": 0.5, "ack_deadline": 0.2})
    await host.start()
    async with connected(ScriptedWorker(), host.socket_path) as worker, host.client() as client:
        answer = await client.request(method, path, json=body)
        while answer.status_code == 504:
            answer = await client.request(method, path, json=body)
        assert answer.status_code in (202, 204), answer.text
        await host.restart()
        listed = (await client.get("/v2/instances")).json()["items"]
        grants = [item["uid"] for item in (await client.get("/v2/grants")).json()["items"]]
        expected = {"DELETE": [], "PUT": ["uid-2"]}[method] if "instances" in path else ["uid-1"]
        assert [item["uid"] for item in listed] == expected
        assert grants == (["c-1"] if method == "PUT" else [])
        assert set(worker.policy.grants) == set(grants)
        late = await client.put("/v2/instances/i-1", json=instance_body(generation=9))
        assert late.status_code == (202 if "grants" in path else 410)


def test_a_folder_restored_from_an_older_copy_never_repeats_a_boot_id(folder: Path) -> None:
    clock = [NOW]
    first = load(folder, lambda: clock[0]).boot_id
    copy = (folder / "boot.json").read_bytes()
    second = load(folder, lambda: clock[0]).boot_id
    assert second > first, "also within one second"
    (folder / "boot.json").write_bytes(copy)
    clock[0] += timedelta(minutes=1)
    third = load(folder, lambda: clock[0]).boot_id
    assert third > second
    clock[0] -= timedelta(days=400)
    assert load(folder, lambda: clock[0]).boot_id == third + 1, "a clock that was set back takes nothing back"
