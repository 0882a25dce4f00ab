"""When a container that exited is started again."""

from __future__ import annotations

from dataclasses import dataclass

from toolbox_dtma.engine.timings import Timings


@dataclass(frozen=True, slots=True)
class RestartState:
    """Restarts of one container. `exit_seen` is the incarnation whose exit was last counted."""

    container_id: str = ""
    restarts: int = 0
    delay: float = 0.0
    """Seconds the last exit had to wait; 0 before the first."""
    exit_seen: str = ""
    not_before: float = 0.0
    """Monotonic time of the next start."""


def after_exit(
    state: RestartState,
    *,
    container_id: str,
    incarnation: str,
    uptime: float,
    now: float,
    timings: Timings,
    witnessed: bool = True,
) -> RestartState:
    """Count an exit once: the delay doubles, unless the container had been up long enough.

    One that happened while the engine or DTMA was away has no delay: it most likely went down with them.
    """
    if state.container_id != container_id:
        state = RestartState(container_id=container_id)
    if state.exit_seen == incarnation:
        return state
    if not witnessed:
        return RestartState(container_id, state.restarts, state.delay, incarnation, now)
    fresh = state.delay == 0.0 or uptime >= timings.restart_reset
    delay = timings.restart_first if fresh else min(state.delay * 2, timings.restart_max)
    return RestartState(container_id, state.restarts, delay, incarnation, now + delay)


def after_start(state: RestartState, container_id: str) -> RestartState:
    """Count a start of a container that had run before."""
    if state.container_id != container_id:
        return RestartState(container_id=container_id, restarts=1)
    return RestartState(container_id, state.restarts + 1, state.delay, state.exit_seen, state.not_before)
