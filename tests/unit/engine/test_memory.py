"""Restart delays, and what survives a restart of DTMA."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from support.engine.objects import candidate, container, desired_instance
from toolbox_dtma.engine.failures import DockerRefused, bounded, create_failure, start_failure, volume_failure
from toolbox_dtma.engine.images import Reference
from toolbox_dtma.engine.ledger import Ledger
from toolbox_dtma.engine.logs import demultiplexed
from toolbox_dtma.engine.memory import Memory
from toolbox_dtma.engine.models import parse_time
from toolbox_dtma.engine.restart import RestartState, after_exit, after_start
from toolbox_dtma.engine.timings import Timings
from toolbox_dtma.wire import InstanceReason, InstanceState


def delays(uptimes: list[float]) -> list[float]:
    state, found = RestartState(), list[float]()
    for number, uptime in enumerate(uptimes):
        state = after_exit(state, container_id="c", incarnation=str(number), uptime=uptime, now=0.0, timings=Timings())
        found.append(state.not_before)
        state = after_start(state, "c")
    assert state.restarts == len(uptimes)
    return found


def test_the_delay_doubles_from_one_second_to_five_minutes() -> None:
    assert delays([0.1] * 11) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


def test_ten_minutes_up_start_over() -> None:
    assert delays([1, 1, 601, 1]) == [1, 2, 1, 2]


def test_an_exit_is_counted_once_however_often_it_is_seen() -> None:
    one = after_exit(RestartState(), container_id="c", incarnation="x", uptime=0, now=0, timings=Timings())
    assert after_exit(one, container_id="c", incarnation="x", uptime=0, now=50, timings=Timings()) is one


def test_an_exit_that_nobody_could_see_is_made_good_at_once_and_not_held_against_the_container() -> None:
    before = RestartState("c", restarts=3, delay=8.0, exit_seen="x", not_before=0.0)
    state = after_exit(before, container_id="c", incarnation="y", uptime=1, now=50, timings=Timings(), witnessed=False)
    assert (state.not_before, state.delay) == (50, 8.0)


def test_another_container_starts_over() -> None:
    state = RestartState("old", restarts=5, delay=64, exit_seen="x", not_before=1000)
    fresh = after_exit(state, container_id="new", incarnation="y", uptime=0, now=10, timings=Timings())
    assert (fresh.restarts, fresh.not_before) == (0, 11)


def test_restarts_and_back_off_survive_a_restart_of_dtma(tmp_path: Path) -> None:
    crashed = candidate(container("exited"))
    memory = Memory("i", Ledger(tmp_path))
    memory.count(InstanceState.RUNNING, [crashed], 10.0, Timings())
    memory.restarted(crashed.container)
    again = Memory("i", Ledger(tmp_path))
    assert again.restarts(crashed.container.id) == 1
    later = candidate(container("exited", StartedAt="2026-01-01T00:00:05Z", FinishedAt="2026-01-01T00:00:06Z"))
    again.count(InstanceState.RUNNING, [later], 0.0, Timings())
    assert again.restart_at == 2.0


def test_a_rest_that_was_wanted_is_not_a_crash(tmp_path: Path) -> None:
    memory, rested = Memory("i", Ledger(tmp_path)), candidate(container("exited"))
    memory.count(InstanceState.STOPPED, [rested], 5.0, Timings())
    memory.count(InstanceState.RUNNING, [rested], 5.0, Timings())
    assert memory.stopped_by_us == rested.container.incarnation
    assert memory.restart_at == 0.0


def test_a_rest_that_was_wanted_is_not_a_crash_after_a_restart_of_dtma_either(tmp_path: Path) -> None:
    rested = candidate(container("exited"))
    Memory("i", Ledger(tmp_path)).count(InstanceState.STOPPED, [rested], 5.0, Timings())
    again = Memory("i", Ledger(tmp_path))
    again.count(InstanceState.RUNNING, [rested], 5.0, Timings(), witnessed=False)
    assert again.stopped_by_us == rested.container.incarnation
    assert again.restarts(rested.container.id) == 0
    again.forget()
    assert again.stopped_by_us is None


def test_latest_is_settled_per_generation_also_after_a_restart_of_dtma(tmp_path: Path) -> None:
    desired = desired_instance(image="registry.example.com/app")
    reference = Reference.parse(desired.image)
    Memory("i", Ledger(tmp_path)).remember_image(desired, reference, "sha256:aa")
    again = Memory("i", Ledger(tmp_path))
    assert again.image(desired, reference, []) == "sha256:aa"
    assert again.image(desired.model_copy(update={"generation": 2}), reference, []) is None


def test_without_memory_the_running_image_is_what_latest_meant(tmp_path: Path) -> None:
    desired = desired_instance(image="registry.example.com/app")
    running = candidate(container("running", image="sha256:bb"))
    memory = Memory("i", Ledger(tmp_path))
    assert memory.image(desired, Reference.parse(desired.image), [running]) == "sha256:bb"


def test_an_unreadable_ledger_starts_empty(tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text("{broken")
    assert Ledger(tmp_path).get("i").restarts == 0


def test_a_forgotten_instance_leaves_nothing_in_the_ledger(tmp_path: Path) -> None:
    memory = Memory("i", Ledger(tmp_path))
    memory.restarted(container("exited"))
    memory.forget()
    assert "i" not in (tmp_path / "engine.json").read_text().replace('"instances"', "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available", InstanceReason.CREATE_FAILED),
        ("No command specified", InstanceReason.CREATE_FAILED),
        ("network mtb-x-1 not found", InstanceReason.NETWORK_FAILED),
        ("mkdir /var/lib/docker/overlay2/x: no space left on device", InstanceReason.DISK_FULL),
        ("invalid reference format", InstanceReason.IMAGE_INVALID),
    ],
)
def test_a_refused_create_has_a_reason(text: str, reason: InstanceReason) -> None:
    assert create_failure(DockerRefused(400, text)).reason is reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('OCI runtime create failed: exec: "nosuch": executable file not found in $PATH', InstanceReason.START_FAILED),
        ("unable to find user bob: no matching entries in passwd file", InstanceReason.START_FAILED),
        ("driver failed programming external connectivity on endpoint", InstanceReason.NETWORK_FAILED),
        ("write /x: no space left on device", InstanceReason.DISK_FULL),
        ("mount /x/_data:/etc/passwd (via /proc/self/fd/6): not a directory: unknown", InstanceReason.VOLUME_FAILED),
        ('exec: "/etc/passwd/x": stat /etc/passwd/x: not a directory: unknown', InstanceReason.START_FAILED),
    ],
)
def test_a_refused_start_has_a_reason(text: str, reason: InstanceReason) -> None:
    assert start_failure(DockerRefused(500, text)).reason is reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mkdir /var/lib/docker/volumes/x: no space left on device", InstanceReason.DISK_FULL),
        ("mount /x/_data:/y/merged/etc/passwd, flags: 0x5000: not a directory", InstanceReason.VOLUME_FAILED),
        ("create x: conflict: volume name must be unique", InstanceReason.VOLUME_FAILED),
    ],
)
def test_a_refused_volume_has_a_reason(text: str, reason: InstanceReason) -> None:
    assert volume_failure(DockerRefused(500, text)).reason is reason


def test_messages_are_one_bounded_printable_line() -> None:
    message = bounded("a\nb\x00c " + "x" * 1000)
    assert message.startswith("a b c ") and len(message) == 512 and message.endswith("…")


def test_dockers_times_are_read() -> None:
    assert parse_time("0001-01-01T00:00:00Z") is None
    assert parse_time("") is None
    precise = parse_time("2026-11-22T15:22:45.123456789Z")
    assert precise is not None and precise.microsecond == 123456 and precise.tzinfo is not None
    short = parse_time("2026-11-22T15:22:45.5+01:00")
    assert short is not None and short.microsecond == 500000
    whole = parse_time("2026-11-22T15:22:45Z")
    assert whole is not None and whole.microsecond == 0


async def test_output_is_taken_out_of_dockers_frames_and_a_cut_frame_ends_it() -> None:
    stream = asyncio.StreamReader()
    stream.feed_data(
        b"\x01\0\0\0\0\0\0\x03out" + b"\x02\0\0\0\0\0\0\x00" + b"\x02\0\0\0\0\0\0\x03err" + b"\x01\0\0\0\0\0\0\x09cut"
    )
    stream.feed_eof()
    assert [chunk async for chunk in demultiplexed(stream)] == [b"out", b"err", b"cut"]
