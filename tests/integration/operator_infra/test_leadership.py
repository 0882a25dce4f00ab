"""Two operators, one Lease, real processes."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from support.poll import until

from .conftest import Process

pytestmark = pytest.mark.integration

Start = Callable[..., Process]
Lease = Callable[[], dict[str, Any]]

BRIEF = ("--timing=lease_duration=10", "--timing=lease_renew_deadline=8")
"""For a leader whose successor waits until its Lease has run out."""


def taken_by(lease: Lease, identity: str, *, seconds: float = 20.0) -> dict[str, Any]:
    return until(f"taken by {identity}", lease, lambda spec: spec.get("holderIdentity") == identity, seconds=seconds)


def test_a_leader_that_is_asked_to_stop_hands_over_at_once(processes: Start, lease: Lease) -> None:
    first = processes("first")
    first.says("started")
    second = processes("second")
    second.says("candidate")
    assert lease()["leaseTransitions"] == 1
    first.send(signal.SIGTERM)
    assert first.wait() == 0
    assert lease()["holderIdentity"] != "first", "nobody has to wait until it has run out"
    spec = taken_by(lease, "second")
    assert spec["leaseTransitions"] == 2
    second.says("started")
    second.send(signal.SIGTERM)
    assert second.wait() == 0
    assert lease()["holderIdentity"] in ("", None)


def test_a_follower_that_is_asked_to_stop_leaves_the_leader_alone(processes: Start, lease: Lease) -> None:
    first = processes("first")
    first.says("started")
    second = processes("second")
    second.says("candidate")
    second.send(signal.SIGTERM)
    assert second.wait() == 0
    spec = lease()
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("first", 1)


def test_a_leader_that_is_killed_is_replaced_when_its_lease_ran_out(processes: Start, lease: Lease) -> None:
    first = processes("first", *BRIEF)
    first.says("started")
    second = processes("second")
    second.says("candidate")
    first.send(signal.SIGKILL)
    first.wait()
    assert taken_by(lease, "second", seconds=60)["leaseTransitions"] == 2
    second.says("started")


def test_a_leader_that_was_paused_ends_without_touching_the_lease_of_its_successor(
    processes: Start, lease: Lease
) -> None:
    first = processes("first", *BRIEF)
    first.says("started")
    second = processes("second")
    second.says("candidate")
    first.send(signal.SIGSTOP)
    try:
        taken_by(lease, "second", seconds=60)
    finally:
        first.send(signal.SIGCONT)
    assert first.wait() == 1
    spec = lease()
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("second", 2)
    second.says("started")


def test_a_process_without_access_says_what_to_give_and_does_not_come_back(processes: Start) -> None:
    process = processes("lost", "--kubeconfig", "/nonexistent")
    assert process.wait() == 2
    process.says("does not exist")
