"""Call records on disk."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from toolbox_dtma.state.spool import Delivery, Spool

A, B = "cluster-a", "cluster-b"


class Folder:
    """A folder, and spools that one after the other work on it."""

    def __init__(self, path: Path):
        self.path = path
        self._boots = 0
        self._batches = 0

    def start(self, *, max_bytes: int = 1 << 20, segment_bytes: int = 1 << 16) -> Spool:
        self._boots += 1
        spool = Spool(self.path, boot_id=self._boots, max_bytes=max_bytes, segment_bytes=segment_bytes)
        spool.open()
        return spool

    def delivery(self, *records: tuple[str, int], stream: str = "s", batch: int | None = None) -> Delivery:
        self._batches += 1
        encoded = tuple((owner, b'{"n":%d}' % number) for owner, number in records)
        return Delivery(stream, self._batches if batch is None else batch, encoded)

    @property
    def files(self) -> list[Path]:
        return sorted(self.path.glob("*.calls"))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "calls")


def numbers(spool: Spool, owner: str = A, cursor: str | None = None, limit: int = 1000) -> list[int]:
    return [record["n"] for record in spool.read(owner, cursor, limit)[0]]


def test_an_owner_gets_its_own_records_in_order_and_nobody_else_s(folder: Folder) -> None:
    spool = folder.start()
    spool.append([folder.delivery((A, 1), (B, 2), (A, 3)), folder.delivery((B, 4))])
    assert (numbers(spool, A), numbers(spool, B), numbers(spool, "nobody")) == ([1, 3], [2, 4], [])
    assert [spool.accounts[owner].held for owner in (A, B)] == [2, 2]


def test_files_are_for_root_only(folder: Folder) -> None:
    folder.start().append([folder.delivery((A, 1))])
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder.path, *folder.files)] == [0o700, 0o600]


def test_the_next_cursor_acknowledges_and_the_one_before_repeats(folder: Folder) -> None:
    spool = folder.start()
    spool.append([folder.delivery(*((A, number) for number in range(6)))])
    first, cursor = spool.read(A, None, 2)
    assert [record["n"] for record in first] == [0, 1]
    second, after = spool.read(A, cursor, 2)
    assert [record["n"] for record in second] == [2, 3]
    spool.acknowledge(A, cursor)
    assert spool.read(A, cursor, 2) == (second, after)
    spool.acknowledge(A, after)
    assert spool.accounts[A].held == 2
    # A cursor of before acknowledges nothing that was not.
    spool.acknowledge(A, cursor)
    assert numbers(spool) == [4, 5]


@pytest.mark.parametrize("cursor", [None, "", "x", "0:0", "1:7", "999999999999999999:1", "1:1:1", "9" * 64])
def test_a_cursor_that_is_not_known_gets_all_that_is_held_and_acknowledges_nothing(
    folder: Folder, cursor: str | None
) -> None:
    spool = folder.start()
    spool.append([folder.delivery((A, 1), (A, 2))])
    spool.acknowledge(A, cursor)
    assert numbers(spool, A, cursor) == [1, 2]


def test_what_every_owner_acknowledged_is_deleted(folder: Folder) -> None:
    spool = folder.start()
    spool.append([folder.delivery((A, 1234567), (B, 7654321))])
    spool.acknowledge(A, spool.read(A, None, 10)[1])
    assert any(b"1234567" in path.read_bytes() for path in folder.files), "its file still has another owner's record"
    spool.acknowledge(B, spool.read(B, None, 10)[1])
    assert not any(b"1234567" in path.read_bytes() or b"7654321" in path.read_bytes() for path in folder.files)
    spool.append([folder.delivery((A, 3))])
    assert numbers(spool) == [3]


def test_a_batch_told_again_is_kept_once_also_by_the_next_run(folder: Folder) -> None:
    spool = folder.start()
    delivery = folder.delivery((A, 1), batch=5)
    assert spool.append([delivery]) == [delivery]
    assert spool.append([delivery, folder.delivery((A, 9), batch=4)]) == []
    # Never acknowledged to the worker: DTMA was killed. The owner has it by now.
    again = folder.start()
    again.acknowledge(A, again.read(A, None, 10)[1])
    third = folder.start()
    assert third.append([delivery]) == []
    assert third.append([folder.delivery((A, 2), batch=5, stream="another")]) != []
    assert numbers(third) == [2]


def test_two_of_the_same_at_once_are_kept_once(folder: Folder) -> None:
    spool = folder.start()
    delivery = folder.delivery((A, 1))
    spool.append([delivery, delivery])
    assert numbers(spool) == [1]


def test_what_is_held_and_acknowledged_survives_a_restart(folder: Folder) -> None:
    spool = folder.start()
    spool.append([folder.delivery((A, number)) for number in range(4)])
    cursor = spool.read(A, None, 2)[1]
    spool.acknowledge(A, cursor)
    again = folder.start()
    assert numbers(again) == [2, 3]
    # A cursor of another run could stand for records that this run does not know.
    assert numbers(again, A, cursor) == [2, 3]
    again.append([folder.delivery((A, 4))])
    assert numbers(again) == [2, 3, 4]


def test_above_the_limit_the_oldest_are_dropped_and_counted_for_good(folder: Folder) -> None:
    spool = folder.start(max_bytes=4096, segment_bytes=512)
    for number in range(500):
        spool.append([folder.delivery((A, number), (B, number))])
        spool.acknowledge(B, spool.read(B, None, 10)[1])
    left = numbers(spool)
    assert left == list(range(500 - len(left), 500)) and 5 < len(left) < 100
    assert (spool.accounts[A].dropped, spool.accounts[A].held) == (500 - len(left), len(left))
    assert spool.accounts[B].dropped == 0
    assert sum(path.stat().st_size for path in folder.files) < 4096 + 1024
    again = folder.start(max_bytes=4096, segment_bytes=512)
    assert (again.accounts[A].dropped, numbers(again)) == (500 - len(left), left)


@pytest.mark.parametrize("cut", [1, 2, 9, 40])
def test_a_torn_tail_is_left_out_and_what_comes_next_is_kept(folder: Folder, cut: int) -> None:
    spool = folder.start()
    spool.append([folder.delivery((A, 1))])
    torn = folder.delivery((A, 2))
    spool.append([torn])
    os.truncate(folder.files[-1], folder.files[-1].stat().st_size - cut)
    again = folder.start()
    assert numbers(again) == [1] and again.accounts[A].dropped == 0
    # It was not acknowledged to the worker, which tells it again.
    assert again.append([torn]) == [torn]
    assert numbers(again) == [1, 2]


def test_damage_in_the_middle_costs_that_line_alone_and_is_counted(folder: Folder) -> None:
    spool = folder.start()
    for number in range(1001, 1004):
        spool.append([folder.delivery((A, number))])
    path = folder.files[-1]
    path.write_bytes(path.read_bytes().replace(b"1002", b"9992"))
    for again in (folder.start(), folder.start()):
        assert numbers(again) == [1001, 1003]
        assert (again.accounts[A].dropped, again.accounts[A].held) == (1, 2)
    again = folder.start()
    again.append([folder.delivery((B, 1))])
    again = folder.start()
    assert again.accounts[A].dropped == 1, "counted once, and written down"
    again.acknowledge(A, again.read(A, None, 10)[1])
    assert again.accounts[A].held == 0


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"\n\n\n", b"garbage\n", b"00000000 {}\n"])
def test_no_file_keeps_a_host_from_starting(folder: Folder, content: bytes) -> None:
    folder.start().append([folder.delivery((A, 1))])
    (folder.path / "000000000099.calls").write_bytes(content)
    (folder.path / "000000000100.calls").mkdir()
    (folder.path / "notes.txt").write_text("not ours")
    spool = folder.start()
    spool.append([folder.delivery((A, 2))])
    assert numbers(spool) == [1, 2]


def test_a_folder_that_cannot_be_made_only_costs_records(tmp_path: Path) -> None:
    (tmp_path / "calls").write_text("a file")
    folder = Folder(tmp_path / "calls")
    spool = folder.start()
    spool.append([folder.delivery((A, 1), (A, 2))])
    assert (numbers(spool), spool.accounts[A].dropped) == ([], 2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    if os.getuid() != 0:
        pytest.skip("needs root to mount a small file system")
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_drops_and_counts_and_is_over_when_there_is_room_again(small_disk: Path) -> None:
    folder = Folder(small_disk / "calls")
    spool = folder.start()
    spool.append([folder.delivery((A, 1))])
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space"), ballast.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    many = folder.delivery(*((A, number) for number in range(2000)))
    assert spool.append([many]) == [many], "the worker is not asked to keep it"
    assert (numbers(spool), spool.accounts[A].dropped) == ([1], 2000)
    ballast.unlink()
    spool.append([folder.delivery((A, 2))])
    again = folder.start()
    assert (numbers(again), again.accounts[A].dropped) == ([1, 2], 2000)
    spool.close()
    again.close()


def test_lines_are_readable_by_people(folder: Folder) -> None:
    folder.start().append([folder.delivery((A, 1))])
    head, records = [json.loads(line.partition(b" ")[2]) for line in folder.files[0].read_bytes().splitlines()]
    assert head["kind"] == "head" and records["records"] == [[A, 1, {"n": 1}]]
