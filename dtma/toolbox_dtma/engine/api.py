"""The seam between what a host should run and the Docker Engine that runs it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from toolbox_dtma.wire import ContainerReport, DesiredInstance, EngineFacts, InstancePhase, InstanceReason


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose volumes: one object of one owner, by the instance id that it keeps when it is created anew.

    Under an instance id that somebody else had before, nobody gets, or removes, what was theirs.
    """

    instance: str
    owner: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """One desired instance of one owner."""

    id: str
    owner: str
    desired: DesiredInstance

    @property
    def holder(self) -> Holder:
        """Whose its volumes are."""
        return Holder(self.id, self.owner, self.desired.namespace, self.desired.name)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the engine shows of an instance, measured against `generation` and `inputs_hash` of its desired state.

    `phase` is never READY here: the engine knows processes, the probe knows MCP. STARTING with an `address`
    means the container runs and can be probed. `incarnation` changes with every container start.

    A stdio server has neither container nor address. STARTING with an `incarnation` means that sessions can be
    opened; it changes with everything that makes their containers other ones.
    """

    generation: int
    inputs_hash: str
    phase: InstancePhase
    reason: InstanceReason
    message: str = ""
    container: ContainerReport | None = None
    address: str | None = None
    incarnation: str | None = None


Spent = Mapping[Holder, frozenset[str]]
"""Volumes whose removal was ordered: by holder, the UIDs of the objects that they were made for."""

NOTHING_SPENT: Spent = MappingProxyType({})

SeenListener = Callable[[str, Seen], None]
"""Called with (instance id, what is seen) on every change; must not block or raise."""


class EngineUnavailable(Exception):
    """The Docker Engine does not answer."""


class NotDeployed(Exception):
    """No session can be opened of this instance now: it is not meant to run, or on its way there."""


@dataclass(frozen=True, slots=True)
class SessionStream:
    """A session's process, started. `stream` is the caller's to hand on and to close."""

    incarnation: str
    """What `Seen` says of the instance it was made for."""
    stream: socket.socket
    """In: the process's stdin. Out: its stdout and stderr, in the frames of Docker's attach stream."""


@dataclass(frozen=True, slots=True)
class SessionExit:
    """How a session's process ended by itself."""

    code: int | None = None
    """None where nobody saw it."""
    out_of_memory: bool = False


ExitListener = Callable[[str, SessionExit], None]
"""Called with (session, how) when a session's process ended by itself; must not block or raise."""


class Engine(Protocol):
    """Docker as DTMA uses it: level-triggered, one container per instance, only its own labels touched."""

    async def run(self, listener: SeenListener) -> None:
        """Converge until cancelled: follows Docker's event stream, survives the engine's restarts."""
        ...

    def want(self, wanted: Wanted) -> None:
        """Replace the desired state of an instance; convergence starts at once. Idempotent."""
        ...

    async def remove(self, instance_id: str, *, volumes_of: Holder | None = None) -> None:
        """Forget the instance and remove its container and network; absent is success.

        With `volumes_of` every volume of that holder goes too; otherwise none does. Raises `EngineUnavailable`; the
        removal then goes on when the engine is back.
        """
        ...

    async def sweep(self, known: frozenset[str], spent: Spent = NOTHING_SPENT) -> tuple[str, ...]:
        """Remove containers and networks of this host's whose instance is neither known nor wanted; their ids.

        Only with a complete set of known instances. Of volumes, which nobody can make again, only those go that are
        `spent`. Raises `EngineUnavailable`.
        """
        ...

    def logs(self, instance_id: str, *, tail: int, since: float | None, follow: bool) -> AsyncIterator[bytes]:
        """Container output, stdout and stderr in order. Raises `KeyError` for an unknown instance."""
        ...

    async def facts(self) -> EngineFacts:
        """Version facts; `available=False` while the engine does not answer."""
        ...

    def follow_sessions(self, listener: ExitListener) -> None:
        """Tell `listener` of sessions whose process ends by itself. To be called before `run`."""
        ...

    async def open_session(self, instance_id: str, session: str) -> SessionStream:
        """A container of an instance's present deployment for one session, whose name is never used again.

        Raises `NotDeployed`, `EngineUnavailable`, and `Failure` of `engine.failures`; nothing is left of it then.
        """
        ...

    def end_session(self, session: str, *, grace: int = 0) -> None:
        """Have a session's container removed, killed at once or after `grace` seconds. Absent is success."""
        ...
