"""Whether an instance is ready: what the engine sees of its process, joined with MCP probes. Pure, time passed in.

A probe counts for one target only: this container start at this address, port and path. A new start, or a changed
port or path, begins anew; a change of `expose` does not. Of a stdio server, which has a container for each session, it
counts for everything that those containers are made of.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from toolbox_dtma.engine.api import Seen
from toolbox_dtma.link.messages import Surface
from toolbox_dtma.settings import Timings
from toolbox_dtma.wire import (
    DesiredInstance,
    InstancePhase,
    InstanceReason,
    InstanceState,
    ObservedInstance,
    ProbeReport,
)


@dataclass(frozen=True, slots=True)
class Target:
    """What a probe talks to."""

    incarnation: str
    address: str
    """Empty for a stdio server, as is `path`; `port` is 0 then."""
    port: int
    path: str
    sse: bool = False
    """Whether it is the SSE transport that is spoken there."""

    @property
    def has_sessions(self) -> bool:
        """Whether it takes a process of its own to talk to it."""
        return not self.address

    @property
    def bridged(self) -> bool:
        """Whether it is talked to through the session broker."""
        return self.sse or self.has_sessions


@dataclass(frozen=True, slots=True)
class Probed:
    """A conversation that worked."""

    report: ProbeReport
    surface: Surface


@dataclass(frozen=True, slots=True)
class Failure:
    """A conversation that did not, and why: PORT_NOT_LISTENING or PROBE_FAILED where a container runs, and of a stdio
    server also what kept its process from answering.
    """

    reason: InstanceReason
    message: str


@dataclass(slots=True)
class _Trial:
    """Probing of one target. Times are monotonic seconds."""

    target: Target
    since: float
    next_at: float
    probed: Probed | None = None
    failure: Failure | None = None
    failures: int = 0
    """In a row, since the last success."""
    pause: float = 0.0
    running: bool = False


@dataclass(slots=True)
class Readiness:
    """One instance."""

    desired: DesiredInstance
    timings: Timings
    seen: Seen | None = None
    remembered: tuple[Target, Probed] | None = None
    """The last success of an earlier run of DTMA: holds if the same target is still there."""
    _sighted: bool = field(default=False, repr=False)
    """Whether the engine has answered since this run began, whatever it showed."""
    _trial: _Trial | None = field(default=None, repr=False)

    # ------------------------------------------------------------------ inputs
    def want(self, desired: DesiredInstance, now: float) -> None:
        """The desired state changed."""
        self.desired = desired
        self._retarget(now)

    def see(self, seen: Seen, now: float) -> None:
        """The engine saw something."""
        self.seen = seen
        self._sighted = self._sighted or seen.reason is not InstanceReason.ENGINE_UNAVAILABLE
        self._retarget(now)

    def begin(self, now: float) -> Target | None:
        """The target to probe now, if a probe is due; it then counts as running."""
        trial = self._trial
        if trial is None or trial.running or now < trial.next_at:
            return None
        trial.running = True
        return trial.target

    def finish(self, target: Target, result: Probed | Failure | None, now: float) -> bool:
        """A probe ended; None when no worker could run it. Whether it was of the present target."""
        trial = self._trial
        if trial is None or trial.target != target:
            return False
        trial.running = False
        match result:
            case Probed():
                trial.probed, trial.failure, trial.failures, trial.pause = result, None, 0, 0.0
            case Failure():
                trial.failure, trial.failures = result, trial.failures + 1
            case None:
                if trial.probed is None and trial.failures == 0:
                    who = "gateway worker or session broker" if target.bridged else "gateway worker"
                    trial.failure = Failure(InstanceReason.PROBE_FAILED, f"no {who} could probe it yet")
        trial.next_at = now + self._pause(trial, now, lost=result is None)
        return True

    def probe_soon(self, now: float) -> None:
        """Something that a probe depends on was replaced."""
        if self._trial is not None:
            self._trial.next_at = now

    def _retarget(self, now: float) -> None:
        target = self._target()
        if target is None:
            self._trial = None
            if self._sighted:
                # It was stopped, or is gone: what comes next is to be talked to, even if it is the very same.
                self.remembered = None
        elif self._trial is None or self._trial.target != target:
            probed = self.remembered[1] if self.remembered and self.remembered[0] == target else None
            self._trial = _Trial(target, since=now, next_at=now, probed=probed)

    def _target(self) -> Target | None:
        seen = self.seen
        if seen is not None and not self._sighted and self.desired.state is InstanceState.RUNNING:
            # An engine that is away says nothing about its containers: agents that are connected keep what they had.
            return self.remembered[0] if self.remembered else None
        # Not only while STARTING: an old container may go on serving while a new image is pulled.
        if seen is None or seen.incarnation is None:
            return None
        if self.desired.port is None or self.desired.path is None:
            return Target(seen.incarnation, "", 0, "")
        if seen.address is None:
            return None
        sse = self.desired.transport == "sse"
        return Target(seen.incarnation, seen.address, self.desired.port, self.desired.path, sse)

    def _pause(self, trial: _Trial, now: float, *, lost: bool) -> float:
        timings = self.timings
        if trial.probed is not None and trial.failures < timings.probe_failures:
            if lost:
                return timings.probe_start_interval
            rare = trial.target.has_sessions and trial.failures == 0
            return timings.probe_session_interval if rare else timings.probe_interval
        if trial.target.has_sessions and not lost:
            # Each takes a container: ever less often, as a container that exits is restarted.
            trial.pause = min(max(trial.pause * 2, timings.probe_session_retry), timings.probe_session_retry_max)
            return trial.pause
        if now - trial.since >= timings.probe_start_deadline or trial.probed is not None:
            return timings.probe_error_interval
        longer = trial.pause * timings.probe_retry_growth or timings.probe_first_retry
        trial.pause = min(longer, timings.probe_start_interval)
        return trial.pause

    # ----------------------------------------------------------------- outputs
    @property
    def target(self) -> Target | None:
        """Where the container is reached, None while it is not running."""
        return self._trial.target if self._trial else None

    @property
    def probed(self) -> Probed | None:
        """The last conversation that worked with the present target."""
        return self._trial.probed if self._trial else None

    def next_event(self, now: float) -> float | None:
        """When to look again, in monotonic seconds: a probe falls due, or the start deadline passes."""
        trial = self._trial
        if trial is None:
            return None
        times = [] if trial.running else [trial.next_at]
        deadline = trial.since + self.timings.probe_start_deadline
        if trial.probed is None and now < deadline:
            times.append(deadline)
        return min(times, default=None)

    def observe(self, now: float) -> ObservedInstance:
        """What to report; `seq` is 0, for the publisher to fill in."""
        seen = self.seen
        if seen is None:
            return ObservedInstance(
                generation=0,
                inputs_hash="",
                seq=0,
                phase=InstancePhase.PENDING,
                reason=InstanceReason.CREATING,
                message="accepted; the engine has not shown it yet",
            )
        phase, reason, message = self._verdict(seen, now)
        return ObservedInstance(
            generation=seen.generation,
            inputs_hash=seen.inputs_hash,
            seq=0,
            phase=phase,
            reason=reason,
            message=message,
            container=seen.container,
            probe=self._report(phase),
        )

    def _verdict(self, seen: Seen, now: float) -> tuple[InstancePhase, InstanceReason, str]:
        trial = self._trial
        if trial is None or seen.phase is not InstancePhase.STARTING:
            return seen.phase, seen.reason, seen.message
        failure = trial.failure
        if trial.probed is not None:
            if failure is not None and trial.failures >= self.timings.probe_failures:
                reason = failure.reason if trial.target.has_sessions else InstanceReason.PROBE_FAILED
                return InstancePhase.ERROR, reason, failure.message
            if (seen.generation, seen.inputs_hash) != (self.desired.generation, self.desired.inputs_hash):
                return InstancePhase.STARTING, InstanceReason.STARTING, "a newer desired state is being applied"
            return InstancePhase.READY, InstanceReason.READY, ""
        if failure is not None and trial.failures > 0 and trial.target.has_sessions:
            # Nothing is on its way there: its process was started for the probe, and did not do.
            return InstancePhase.ERROR, failure.reason, failure.message
        if now - trial.since >= self.timings.probe_start_deadline:
            if failure is None:
                return InstancePhase.ERROR, InstanceReason.PROBE_FAILED, "no probe of it has ended in time"
            return InstancePhase.ERROR, failure.reason, failure.message
        return InstancePhase.STARTING, seen.reason, failure.message if failure else seen.message

    def _report(self, phase: InstancePhase) -> ProbeReport | None:
        trial = self._trial
        if trial is None:
            return None
        last = trial.probed.report if trial.probed else None
        # A single failure of a ready instance is not yet news.
        if trial.failure is None or phase is InstancePhase.READY:
            return last
        return (last or ProbeReport(ok=False)).model_copy(update={"ok": False, "message": trial.failure.message})
