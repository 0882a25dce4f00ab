"""The decision table of one instance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from support.engine.objects import candidate, container
from toolbox_dtma.engine.plan import Candidate, Do, Situation, decide, exit_message, matching, tidied
from toolbox_dtma.wire import InstancePhase, InstanceReason, InstanceState

STATUSES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")


def situation(
    *candidates: Candidate,
    state: InstanceState = InstanceState.RUNNING,
    floating: bool = False,
    resolved_image: str | None = "sha256:aa",
    has_network: bool = True,
    new_name: str | None = "name-new",
    stopped_by_us: str | None = None,
    restart_at: float = 0.0,
    now: float = 100.0,
    spare_network: bool = False,
) -> Situation:
    return Situation(
        state,
        candidates,
        floating,
        resolved_image,
        has_network,
        new_name,
        stopped_by_us,
        restart_at,
        now,
        spare_network,
    )


def test_nothing_there_is_pulled_then_networked_then_created() -> None:
    assert decide(situation(resolved_image=None)).do is Do.PULL
    assert decide(situation(has_network=False)).do is Do.MAKE_NETWORK
    assert decide(situation()).do is Do.CREATE


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("created", Do.START),
        ("running", Do.SETTLE),
        ("paused", Do.UNPAUSE),
        ("restarting", Do.SETTLE),
        ("exited", Do.RESTART),
        ("dead", Do.REMOVE),
        ("removing", Do.CREATE),
    ],
)
def test_each_docker_state_of_the_right_container_has_one_step_towards_running(status: str, expected: Do) -> None:
    assert decide(situation(candidate(container(status)))).do is expected


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("created", Do.SETTLE),
        ("running", Do.STOP),
        ("paused", Do.UNPAUSE),
        ("restarting", Do.STOP),
        ("exited", Do.SETTLE),
        ("dead", Do.SETTLE),
        ("removing", Do.SETTLE),
    ],
)
def test_each_docker_state_has_one_step_towards_stopped(status: str, expected: Do) -> None:
    at = situation(candidate(container(status), same_spec=False), state=InstanceState.STOPPED, resolved_image=None)
    assert decide(at).do is expected


def test_a_stopped_server_needs_no_image_no_network_and_no_container() -> None:
    step = decide(situation(state=InstanceState.STOPPED, resolved_image=None, has_network=False))
    assert (step.do, step.phase) == (Do.SETTLE, InstancePhase.STOPPED)


def test_the_new_container_is_created_before_the_old_one_is_stopped_and_started_after_it_is_removed() -> None:
    old = candidate(container("running", id="old"), same_spec=False)
    new = container("created", id="new")
    assert decide(situation(old)).do is Do.CREATE
    stop = decide(situation(old, candidate(new)))
    assert (stop.do, stop.container and stop.container.id) == (Do.STOP, "old")
    remove = decide(situation(candidate(container("exited", id="old"), same_spec=False), candidate(new)))
    assert (remove.do, remove.container and remove.container.id) == (Do.REMOVE, "old")
    assert decide(situation(candidate(new))).do is Do.START


@pytest.mark.parametrize("first", STATUSES)
@pytest.mark.parametrize("second", STATUSES)
def test_no_container_is_started_while_another_one_could_be_running(first: str, second: str) -> None:
    pair = (candidate(container(first, id="a"), same_spec=False), candidate(container(second, id="b")))
    step = decide(situation(*pair))
    if step.do in (Do.START, Do.RESTART, Do.SETTLE, Do.AWAIT_RESTART):
        pytest.fail(f"{step.do} with two containers: {first}, {second}")
    if step.do is Do.UNPAUSE:
        assert step.container is not None and step.container.id == "a", "the old one, to stop it"


def test_an_exit_that_nobody_asked_for_is_an_error_until_its_delay_is_over() -> None:
    crashed = candidate(container("exited", ExitCode=3))
    waiting = decide(situation(crashed, restart_at=101.0))
    assert (waiting.do, waiting.phase, waiting.reason) == (
        Do.AWAIT_RESTART,
        InstancePhase.ERROR,
        InstanceReason.CONTAINER_EXITED,
    )
    assert "code 3" in waiting.message
    assert decide(situation(crashed, restart_at=100.0)).do is Do.RESTART


def test_a_kill_for_memory_is_told_apart_and_names_the_limit() -> None:
    step = decide(situation(candidate(container("exited", ExitCode=137, OOMKilled=True)), restart_at=101.0))
    assert step.reason is InstanceReason.OUT_OF_MEMORY
    assert "spec.resources.limits.memory" in step.message


def test_a_server_that_was_meant_to_stop_starts_at_once_when_it_should_run_again() -> None:
    rested = container("exited")
    step = decide(situation(candidate(rested), stopped_by_us=rested.incarnation, restart_at=1000.0))
    assert step.do is Do.START


def test_a_container_of_a_lost_network_is_replaced() -> None:
    astray = candidate(container("exited"), on_network=False)
    assert matching(situation(astray)) is None
    assert decide(situation(astray)).do is Do.CREATE


def test_a_network_that_was_left_goes_once_the_container_is_where_it_should_be() -> None:
    old, new = candidate(container("running", id="a"), same_spec=False), candidate(container("created", id="b"))
    for there, expected in (((old, new), Do.STOP), ((new,), Do.START)):
        at = situation(*there, spare_network=True)
        assert tidied(decide(at), at).do is expected
    for state, status in (
        (InstanceState.RUNNING, "running"),
        (InstanceState.RUNNING, "restarting"),
        (InstanceState.STOPPED, "exited"),
    ):
        at = situation(candidate(container(status)), state=state, spare_network=True)
        settled = decide(at)
        assert settled.do is Do.SETTLE
        assert tidied(settled, at) == replace(settled, do=Do.REMOVE_NETWORK), "what is reported does not change"
        assert tidied(settled, replace(at, spare_network=False)) == settled


def test_a_network_of_no_use_makes_room_for_the_one_to_make() -> None:
    assert decide(situation(has_network=False, spare_network=True)).do is Do.REMOVE_NETWORK
    made_for_it = candidate(container("exited"))
    assert decide(situation(made_for_it, has_network=False, spare_network=True)).do is Do.REMOVE_NETWORK


def test_an_unusable_container_under_the_new_name_makes_room_first() -> None:
    astray = candidate(container("running", id="x"), on_network=False)
    assert decide(situation(astray, new_name="name-x")).do is Do.STOP
    astray = candidate(container("exited", id="x"), on_network=False)
    assert decide(situation(astray, new_name="name-x")).do is Do.REMOVE


def test_a_burst_of_edits_leaves_no_pile_of_containers() -> None:
    running = candidate(container("running", id="a"), same_spec=False)
    outdated = candidate(container("created", id="b"), same_spec=False)
    step = decide(situation(running, outdated))
    assert (step.do, step.container and step.container.id) == (Do.REMOVE, "b")


def test_latest_is_resolved_once_per_generation_and_a_moved_one_replaces_the_container() -> None:
    running = candidate(container("running", image="sha256:aa"))
    assert decide(situation(running, floating=True, resolved_image=None)).do is Do.PULL
    assert decide(situation(running, floating=True, resolved_image="sha256:aa")).do is Do.SETTLE
    assert decide(situation(running, floating=True, resolved_image="sha256:bb")).do is Do.CREATE


def test_a_fixed_tag_is_not_looked_up_while_its_container_is_there() -> None:
    assert decide(situation(candidate(container("running")), resolved_image=None)).do is Do.SETTLE


def test_of_two_right_containers_the_running_one_stays() -> None:
    pair = (candidate(container("created", id="a")), candidate(container("running", id="b")))
    step = decide(situation(*pair))
    assert (step.do, step.container and step.container.id) == (Do.REMOVE, "a")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exited with code 0"),
        (137, "SIGKILL (exit code 137), which may be"),
        (143, "SIGTERM"),
        (200, "exited with code 200"),
    ],
)
def test_exit_messages_name_code_or_signal(code: int, words: str) -> None:
    assert words in exit_message(container("exited", ExitCode=code))


def _all_pairs() -> Sequence[tuple[str, bool, bool]]:
    return [(status, same, on) for status in STATUSES for same in (True, False) for on in (True, False)]


@pytest.mark.parametrize("state", list(InstanceState))
@pytest.mark.parametrize("has_network", [True, False])
@pytest.mark.parametrize("resolved", ["sha256:aa", None])
def test_every_situation_has_a_step_that_names_what_it_acts_on(
    state: InstanceState, has_network: bool, resolved: str | None
) -> None:
    needs_container = {Do.START, Do.RESTART, Do.AWAIT_RESTART, Do.STOP, Do.UNPAUSE, Do.REMOVE}
    for status, same, on in _all_pairs():
        for floating in (True, False):
            step = decide(
                situation(
                    candidate(container(status), same_spec=same, on_network=on),
                    state=state,
                    has_network=has_network,
                    resolved_image=resolved,
                    floating=floating,
                )
            )
            assert step.container is not None or step.do not in needs_container
