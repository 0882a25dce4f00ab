"""Readiness as a state machine with its own clock."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from toolbox_dtma.engine.api import Seen
from toolbox_dtma.link.messages import Surface
from toolbox_dtma.readiness import Failure, Probed, Readiness, Target
from toolbox_dtma.settings import Timings
from toolbox_dtma.wire import DesiredInstance, InstancePhase, InstanceReason, ProbeReport, ToolSummary

TIMINGS = Timings()
REFUSED = Failure(InstanceReason.PORT_NOT_LISTENING, "connection refused")
BROKEN = Failure(InstanceReason.PROBE_FAILED, "it speaks no MCP")
FINE = Probed(ProbeReport(ok=True, tools=(ToolSummary(name="get_time"),), tools_total=1), Surface(tools=("get_time",)))


def desired(**changes: Any) -> DesiredInstance:
    fields: dict[str, Any] = {
        "uid": "u", "namespace": "n", "name": "time", "generation": 1, "inputs_hash": "0" * 64,
        "image": "i", "port": 3001, "path": "/mcp",
    }  # fmt: skip
    return DesiredInstance(**(fields | changes))


def seen(incarnation: str | None = "one", **changes: Any) -> Seen:
    fields: dict[str, Any] = {
        "generation": 1,
        "inputs_hash": "0" * 64,
        "phase": InstancePhase.STARTING,
        "reason": InstanceReason.STARTING,
        "address": "10.0.0.2" if incarnation else None,
        "incarnation": incarnation,
    }
    return Seen(**(fields | changes))


class Bench:
    """One instance, a clock, and a way to answer the probes that fall due."""

    def __init__(self, **changes: Any):
        self.now = 1000.0
        self.readiness = Readiness(desired(**changes), TIMINGS)

    def see(self, view: Seen) -> None:
        self.readiness.see(view, self.now)

    def probe(self, result: Probed | Failure | None) -> Target:
        """Advance to the next probe and answer it."""
        due = self.readiness.next_event(self.now)
        assert due is not None
        self.now = max(self.now, due)
        target = self.readiness.begin(self.now)
        while target is None:
            due = self.readiness.next_event(self.now)
            assert due is not None
            self.now = max(self.now, due)
            target = self.readiness.begin(self.now)
        assert self.readiness.finish(target, result, self.now)
        return target

    @property
    def verdict(self) -> tuple[InstancePhase, InstanceReason]:
        observed = self.readiness.observe(self.now)
        return observed.phase, observed.reason


STARTING = (InstancePhase.STARTING, InstanceReason.STARTING)
READY = (InstancePhase.READY, InstanceReason.READY)


def test_an_unseen_instance_is_pending_and_echoes_nothing() -> None:
    observed = Bench().readiness.observe(0)
    assert (observed.phase, observed.generation, observed.inputs_hash) == (InstancePhase.PENDING, 0, "")


def test_a_running_container_is_probed_at_once_and_ready_after_an_answer() -> None:
    bench = Bench()
    bench.see(seen())
    assert bench.verdict == STARTING
    assert bench.readiness.next_event(bench.now) == bench.now
    assert bench.probe(FINE) == Target("one", "10.0.0.2", 3001, "/mcp")
    assert bench.verdict == READY
    assert bench.readiness.next_event(bench.now) == bench.now + 30


def test_probes_of_a_starting_container_back_off_to_a_second() -> None:
    bench = Bench()
    bench.see(seen())
    times: list[float] = []
    for _ in range(20):
        bench.probe(REFUSED)
        times.append(bench.now - 1000)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses[0] == pytest.approx(0.05)
    assert pauses[-1] == 1.0
    assert pauses == sorted(pauses)


def test_a_server_is_noticed_a_quarter_of_its_start_time_after_it_is_there_at_most() -> None:
    bench = Bench()
    bench.see(seen())
    before = 0.0
    while before < 30:
        bench.probe(REFUSED)
        now = bench.now - 1000
        assert now - before <= 0.25 * before + TIMINGS.probe_first_retry + 1e-6
        before = now


@pytest.mark.parametrize("failure", [REFUSED, BROKEN])
def test_after_the_start_deadline_the_last_failure_says_what_is_wrong(failure: Failure) -> None:
    bench = Bench()
    bench.see(seen())
    while bench.now < 1060:
        assert bench.verdict[0] is InstancePhase.STARTING
        bench.probe(failure)
    assert bench.verdict == (InstancePhase.ERROR, failure.reason)
    assert bench.readiness.observe(bench.now).message == failure.message
    assert bench.readiness.next_event(bench.now) == bench.now + 5


def test_the_deadline_itself_is_an_event_even_without_any_probe_result() -> None:
    bench = Bench()
    bench.see(seen())
    assert bench.readiness.begin(bench.now) is not None
    assert bench.readiness.next_event(bench.now) == 1060
    bench.now = 1060
    assert bench.verdict == (InstancePhase.ERROR, InstanceReason.PROBE_FAILED)


def test_a_container_that_failed_to_start_in_time_still_becomes_ready() -> None:
    bench = Bench()
    bench.see(seen())
    bench.now = 1100
    bench.probe(REFUSED)
    assert bench.verdict[0] is InstancePhase.ERROR
    bench.probe(FINE)
    assert bench.verdict == READY


def test_three_failures_in_a_row_end_readiness_and_one_success_restores_it() -> None:
    bench = Bench()
    bench.see(seen())
    bench.probe(FINE)
    for _ in range(2):
        bench.probe(BROKEN)
        assert bench.verdict == READY
        assert bench.readiness.observe(bench.now).probe == FINE.report
    bench.probe(FINE)
    for _ in range(3):
        bench.probe(BROKEN)
    assert bench.verdict == (InstancePhase.ERROR, InstanceReason.PROBE_FAILED)
    report = bench.readiness.observe(bench.now).probe
    assert report is not None
    assert (report.ok, report.message, report.tools_total) == (False, BROKEN.message, 1)
    bench.probe(FINE)
    assert bench.verdict == READY


def test_a_refused_port_of_a_once_ready_instance_is_a_failed_probe() -> None:
    bench = Bench()
    bench.see(seen())
    bench.probe(FINE)
    for _ in range(3):
        bench.probe(REFUSED)
    assert bench.verdict == (InstancePhase.ERROR, InstanceReason.PROBE_FAILED)


def test_a_missing_worker_counts_for_nothing_once_ready() -> None:
    bench = Bench()
    bench.see(seen())
    bench.probe(FINE)
    for _ in range(10):
        bench.probe(None)
    assert bench.verdict == READY


def test_a_new_container_start_begins_anew() -> None:
    bench = Bench()
    bench.see(seen("one"))
    bench.probe(FINE)
    bench.see(seen("two"))
    assert bench.verdict == STARTING
    assert bench.readiness.probed is None
    assert bench.probe(FINE).incarnation == "two"
    assert bench.verdict == READY


def test_the_answer_of_an_earlier_container_is_ignored() -> None:
    bench = Bench()
    bench.see(seen("one"))
    old = bench.readiness.begin(bench.now)
    assert old is not None
    bench.see(seen("two"))
    assert not bench.readiness.finish(old, FINE, bench.now)
    assert bench.verdict == STARTING


@pytest.mark.parametrize("change", [{"port": 3002}, {"path": "/other"}])
def test_another_port_or_path_has_to_be_probed(change: dict[str, Any]) -> None:
    bench = Bench()
    bench.see(seen())
    bench.probe(FINE)
    bench.readiness.want(desired(generation=2, **change), bench.now)
    bench.see(seen(generation=2))
    assert bench.verdict == STARTING


def test_ready_waits_until_the_engine_echoes_the_desired_state_but_keeps_the_probe() -> None:
    bench = Bench()
    bench.see(seen())
    bench.probe(FINE)
    bench.readiness.want(desired(generation=2), bench.now)
    assert bench.verdict == STARTING
    bench.see(seen(generation=2))
    assert bench.verdict == READY
    bench.readiness.want(desired(generation=2, inputs_hash="1" * 64), bench.now)
    assert bench.verdict == STARTING


@pytest.mark.parametrize(
    ("phase", "reason"),
    [
        (InstancePhase.PENDING, InstanceReason.PULLING),
        (InstancePhase.STOPPED, InstanceReason.STOPPED),
        (InstancePhase.ERROR, InstanceReason.CONTAINER_EXITED),
    ],
)
def test_without_a_running_container_the_engine_has_the_word(phase: InstancePhase, reason: InstanceReason) -> None:
    bench = Bench()
    bench.see(seen())
    bench.probe(FINE)
    bench.see(seen(None, phase=phase, reason=reason, message="as it is"))
    assert bench.verdict == (phase, reason)
    assert bench.readiness.next_event(bench.now) is None
    assert bench.readiness.target is None
    assert bench.readiness.observe(bench.now).message == "as it is"


def test_the_old_container_stays_reachable_while_a_new_image_is_pulled() -> None:
    bench = Bench()
    bench.see(seen())
    bench.probe(FINE)
    bench.see(seen(phase=InstancePhase.PENDING, reason=InstanceReason.PULLING))
    assert bench.verdict == (InstancePhase.PENDING, InstanceReason.PULLING)
    assert bench.readiness.target is not None


AWAY = seen(None, phase=InstancePhase.ERROR, reason=InstanceReason.ENGINE_UNAVAILABLE)


def test_what_is_remembered_is_kept_in_reach_until_the_engine_first_answers() -> None:
    known = Target("one", "10.0.0.2", 3001, "/mcp")
    bench = Bench()
    bench.readiness.remembered = (known, FINE)
    bench.see(AWAY)
    assert bench.readiness.target == known and bench.readiness.probed == FINE
    assert bench.verdict == (InstancePhase.ERROR, InstanceReason.ENGINE_UNAVAILABLE)
    bench.see(seen(None))
    assert bench.readiness.target is None
    bench.see(AWAY)
    assert bench.readiness.target is None, "the engine has shown that it is gone"


def test_what_is_remembered_of_a_server_that_should_rest_is_not_kept_in_reach() -> None:
    bench = Bench(state="Stopped")
    bench.readiness.remembered = (Target("one", "10.0.0.2", 3001, "/mcp"), FINE)
    bench.see(AWAY)
    assert bench.readiness.target is None


def test_a_remembered_success_holds_for_the_same_container_only() -> None:
    for incarnation, verdict in (("one", READY), ("two", STARTING)):
        bench = Bench()
        bench.readiness.remembered = (Target("one", "10.0.0.2", 3001, "/mcp"), FINE)
        bench.see(seen(incarnation))
        assert bench.verdict == verdict
        # Remembered or not, it is probed at once.
        assert bench.readiness.begin(bench.now) is not None


# ------------------------------------------------------------- servers with a container for each session
STDIO: dict[str, Any] = {"transport": "stdio", "port": None, "path": None, "sessions": {"max_sessions": 10}}


def deployed(incarnation: str | None = "one", **changes: Any) -> Seen:
    return seen(incarnation, address=None, **changes)


def test_a_stdio_server_is_ready_after_one_conversation_and_then_left_alone_for_long() -> None:
    bench = Bench(**STDIO)
    bench.see(deployed())
    assert bench.verdict == STARTING
    target = bench.probe(FINE)
    assert target.has_sessions and bench.verdict == READY
    assert bench.readiness.next_event(bench.now) == bench.now + TIMINGS.probe_session_interval


def test_a_stdio_server_that_fails_its_first_conversation_is_in_error_at_once_for_that_reason() -> None:
    bench = Bench(**STDIO)
    bench.see(deployed())
    bench.probe(Failure(InstanceReason.CONTAINER_EXITED, "exited with code 1"))
    observed = bench.readiness.observe(bench.now)
    assert (observed.phase, observed.reason) == (InstancePhase.ERROR, InstanceReason.CONTAINER_EXITED)
    assert observed.message == "exited with code 1"
    bench.probe(FINE)
    assert bench.verdict == READY


def test_conversations_that_take_a_container_are_tried_ever_less_often() -> None:
    bench = Bench(**STDIO)
    bench.see(deployed())
    times: list[float] = []
    for _ in range(9):
        bench.probe(BROKEN)
        times.append(bench.now)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses[:3] == [1.0, 2.0, 4.0] and pauses[-1] == TIMINGS.probe_session_retry_max


def test_a_ready_stdio_server_takes_three_failures_like_any_other() -> None:
    bench = Bench(**STDIO)
    bench.see(deployed())
    bench.probe(FINE)
    times: list[float] = []
    for _ in range(TIMINGS.probe_failures - 1):
        bench.probe(BROKEN)
        times.append(bench.now)
        assert bench.verdict == READY
    assert times[-1] - times[-2] == TIMINGS.probe_interval, "after the first failure it is looked at more often"
    bench.probe(BROKEN)
    assert bench.verdict == (InstancePhase.ERROR, InstanceReason.PROBE_FAILED)


def test_what_nobody_could_probe_is_not_its_failure() -> None:
    bench = Bench(**STDIO)
    bench.see(deployed())
    bench.probe(None)
    observed = bench.readiness.observe(bench.now)
    assert observed.phase is InstancePhase.STARTING and "session broker" in observed.message


def test_what_is_deployed_again_after_a_stop_is_talked_to_again_even_if_it_is_the_same() -> None:
    bench = Bench(**STDIO)
    bench.see(deployed())
    target = bench.probe(FINE)
    bench.readiness.remembered = (target, FINE)
    bench.see(deployed(None, phase=InstancePhase.STOPPED, reason=InstanceReason.STOPPED))
    bench.see(deployed())
    assert bench.verdict == STARTING


def test_a_restart_of_dtma_remembers_what_was_probed_of_the_same_deployment() -> None:
    bench = Bench(**STDIO)
    bench.readiness.remembered = (Target("one", "", 0, ""), FINE)
    bench.see(deployed())
    assert bench.verdict == READY
    bench.see(deployed("two"))
    assert bench.verdict == STARTING


def test_a_probe_can_be_asked_for_before_it_falls_due() -> None:
    bench = Bench(**STDIO)
    bench.see(deployed())
    bench.probe(FINE)
    bench.readiness.probe_soon(bench.now)
    assert bench.readiness.begin(bench.now) is not None


# ------------------------------------------------------------- servers of the SSE transport
def test_an_sse_server_is_probed_as_one_that_listens_and_through_the_broker() -> None:
    bench = Bench(transport="sse", path="/sse")
    bench.see(seen())
    target = bench.probe(REFUSED)
    assert target == Target("one", "10.0.0.2", 3001, "/sse", sse=True)
    assert target.bridged and not target.has_sessions
    # Not in error at once: its container may be on its way, and is asked again soon.
    assert bench.verdict == STARTING
    assert bench.readiness.next_event(bench.now) == bench.now + TIMINGS.probe_first_retry
    bench.probe(FINE)
    assert bench.verdict == READY
    assert bench.readiness.next_event(bench.now) == bench.now + TIMINGS.probe_interval


def test_what_nobody_could_probe_of_an_sse_server_may_be_the_brokers_fault() -> None:
    bench = Bench(transport="sse", path="/sse")
    bench.see(seen())
    bench.probe(None)
    assert "session broker" in bench.readiness.observe(bench.now).message


def test_a_conversation_in_one_transport_says_nothing_about_another() -> None:
    bench = Bench(transport="sse")
    bench.readiness.remembered = (Target("one", "10.0.0.2", 3001, "/mcp"), FINE)
    bench.see(seen())
    assert bench.verdict == STARTING
