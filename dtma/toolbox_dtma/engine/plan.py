"""What to do next for one instance: a pure decision from what is desired and what the engine shows.

Each step is one call to the engine, after which everything is observed again. So a crash between any two steps
leaves a state this table knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from toolbox_dtma.engine.models import Container
from toolbox_dtma.wire import InstancePhase, InstanceReason, InstanceState


@dataclass(frozen=True, slots=True)
class Candidate:
    """A container of the instance, and whether it was made for the desired spec."""

    container: Container
    same_spec: bool
    on_network: bool
    """Attached to the instance's present network, or not attached yet."""


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything the decision depends on."""

    state: InstanceState
    candidates: Sequence[Candidate]
    floating: bool
    """The image reference is expected to move (`:latest`), so its meaning is pinned per generation."""
    resolved_image: str | None
    """Image id the reference means for this generation, once that is known."""
    has_network: bool
    new_name: str | None
    """Name the container to create would have; none while the image is not resolved."""
    stopped_by_us: str | None
    """Incarnation seen at rest while it was meant to rest: starting it is not a restart after a crash."""
    restart_at: float
    """Monotonic time before which an exited container is left alone."""
    now: float
    spare_network: bool
    """A network that no container of the instance is on, nor should be, is to be removed now."""


class Do(StrEnum):
    """The kinds of step."""

    SETTLE = "settle"
    PULL = "pull"
    MAKE_NETWORK = "make network"
    REPLACE_NETWORK = "replace network"
    """Remove it, with every session that is attached to it."""
    CREATE = "create"
    START = "start"
    RESTART = "restart"
    """Start after an exit that nobody asked for."""
    AWAIT_RESTART = "await restart"
    STOP = "stop"
    UNPAUSE = "unpause"
    REMOVE = "remove"
    REMOVE_NETWORK = "remove network"
    """One that a change of egress left behind, or that is not as this host makes them."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step, and the phase the instance is in until it is done."""

    do: Do
    phase: InstancePhase
    reason: InstanceReason
    container: Container | None = None
    """What the step acts on, or what is there while it acts."""
    message: str = ""


def decide(at: Situation) -> Step:
    """The next step."""
    if at.state is InstanceState.STOPPED:
        return _towards_stopped(at)
    match = matching(at)
    if at.resolved_image is None and (at.floating or match is None):
        return Step(Do.PULL, InstancePhase.PENDING, InstanceReason.PULLING, newest(at.candidates))
    if match is None:
        return _towards_created(at)
    for other in at.candidates:
        if other.container.id != match.id:
            return clear_away(other.container, "Replacing the container.")
    return _towards_running(at, match)


def tidied(step: Step, at: Situation) -> Step:
    """The step; or, where nothing is left to do, the removal of a network that was left behind."""
    return replace(step, do=Do.REMOVE_NETWORK) if step.do is Do.SETTLE and at.spare_network else step


def matching(at: Situation) -> Container | None:
    """The container that already is what is desired; the furthest along if there are several."""
    found = [
        item.container
        for item in at.candidates
        if item.same_spec
        and item.on_network
        and item.container.state.status not in {"dead", "removing"}
        and (not at.floating or at.resolved_image in (None, item.container.image))
    ]
    return min(found, key=lambda c: (not c.running, c.created, c.id), default=None)


def newest(candidates: Sequence[Candidate]) -> Container | None:
    """The container to show while none matches: the running one, else the newest."""
    return max((item.container for item in candidates), key=lambda c: (c.running, c.created, c.id), default=None)


def _towards_stopped(at: Situation) -> Step:
    for item in at.candidates:
        container = item.container
        if container.state.status == "paused":
            return Step(
                Do.UNPAUSE, InstancePhase.PENDING, InstanceReason.STOPPED, container, "Unpausing, to stop the server."
            )
        if container.running:
            return Step(Do.STOP, InstancePhase.PENDING, InstanceReason.STOPPED, container, "Stopping the server.")
    kept = matching(at) or newest(at.candidates)
    for item in at.candidates:
        if kept is None or item.container.id != kept.id:
            return Step(Do.REMOVE, InstancePhase.STOPPED, InstanceReason.STOPPED, item.container)
    return Step(Do.SETTLE, InstancePhase.STOPPED, InstanceReason.STOPPED, kept)


def _towards_created(at: Situation) -> Step:
    if not at.has_network:
        return towards_network(at, newest(at.candidates))
    for item in at.candidates:
        status = item.container.state.status
        # Never started and outdated already, half gone, or unusable under the very name the new one gets.
        if status in {"created", "dead"} or item.container.name.lstrip("/") == at.new_name:
            return clear_away(item.container, "Removing a container that cannot be used any more.")
    return Step(
        Do.CREATE, InstancePhase.PENDING, InstanceReason.CREATING, newest(at.candidates), "Creating the container."
    )


def towards_network(at: Situation, shown: Container | None) -> Step:
    """The next step towards a network, where there is none to use."""
    # One that is of no use may have the very name.
    do, message = (
        (Do.REMOVE_NETWORK, "Removing a network that cannot be used.")
        if at.spare_network
        else (Do.MAKE_NETWORK, "Creating the network.")
    )
    return Step(do, InstancePhase.PENDING, InstanceReason.CREATING, shown, message)


def clear_away(container: Container, message: str) -> Step:
    """The next step towards a container that is not there any more."""
    do = Do.REMOVE
    if container.state.status == "paused":
        do = Do.UNPAUSE
    elif container.running:
        do = Do.STOP
    return Step(do, InstancePhase.PENDING, InstanceReason.CREATING, container, message)


def _towards_running(at: Situation, match: Container) -> Step:
    starting, reason = InstancePhase.STARTING, InstanceReason.STARTING
    if not at.has_network:
        return towards_network(at, match)
    match match.state.status:
        case "running":
            return Step(Do.SETTLE, starting, reason, match)
        case "paused":
            return Step(Do.UNPAUSE, starting, reason, match, "Unpausing the container.")
        case "created":
            return Step(Do.START, starting, reason, match, "Starting the container.")
        case "restarting":
            return Step(Do.SETTLE, starting, reason, match, "The container is being restarted.")
        case _ if at.stopped_by_us == match.incarnation:
            return Step(Do.START, starting, reason, match, "Starting the container.")
        case _ if at.now >= at.restart_at:
            return Step(Do.RESTART, starting, reason, match, "Restarting the container.")
        case _:
            exited = exit_reason(match)
            return Step(Do.AWAIT_RESTART, InstancePhase.ERROR, exited, match, exit_message(match))


def exit_reason(container: Container) -> InstanceReason:
    """Why a container that should run does not."""
    return InstanceReason.OUT_OF_MEMORY if container.state.oom_killed else InstanceReason.CONTAINER_EXITED


_SIGNALLED = 128
_SIGNALS = {6: "SIGABRT", 9: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM"}


def exit_message(container: Container) -> str:
    """One sentence for an exit."""
    code = container.state.exit_code
    if container.state.oom_killed:
        return (
            f"The container used more memory than its limit and was killed (exit code {code}); it is restarted with "
            "back-off. Raise spec.resources.limits.memory."
        )
    signal = _SIGNALS.get(code - _SIGNALLED)
    how = f"was ended by {signal} (exit code {code})" if signal else f"exited with code {code}"
    if signal == "SIGKILL":
        # Docker misses some: a control group can be gone before its event is read.
        how += ", which may be for more memory than its limit"
    return f"The container {how}; it is restarted with back-off. Its logs say why."
