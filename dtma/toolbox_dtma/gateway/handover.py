"""A supervisor that becomes a newer version of itself: what the one hands to the other, over exec in one process.

Sockets and workers stay where they are. What is said about them goes through one variable of the environment, so that
it needs no option that the other version might not have.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

VARIABLE = "TOOLBOX_GATEWAY_HANDOVER"
CHECK = "--check"
CHECK_SECONDS = 60.0
_MAX_WHY = 400


class HeldChild(BaseModel):
    """A worker that runs on."""

    model_config = ConfigDict(frozen=True)

    place: int
    pid: int
    control: int
    """Descriptor of the socket to it."""
    records: int
    """Descriptor of its memory file for call records."""
    started_at: float
    """Monotonic seconds, which go on over exec."""


class HeldSlot(BaseModel):
    """A listening socket and the worker on it."""

    model_config = ConfigDict(frozen=True)

    listening: int
    child: HeldChild | None = None


class Handover(BaseModel):
    """All that outlives the exec. Fields of a newer version are not an error to an older one."""

    model_config = ConfigDict(frozen=True)

    v: Literal[1] = 1
    slots: tuple[HeldSlot, ...]
    counts: int
    fence: int
    """Descriptors of what the workers count in."""
    left: tuple[int, ...] = ()
    """Descriptors of call records that ended workers left."""
    certificate: int | None = None
    """Descriptor of a memory file with the pair in use."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Every descriptor that has to stay open."""
        listening = [slot.listening for slot in self.slots]
        children = [each for slot in self.slots if (child := slot.child) for each in (child.control, child.records)]
        certificate = () if self.certificate is None else (self.certificate,)
        return (*listening, *children, self.counts, self.fence, *self.left, *certificate)


class ReloadRefused(Exception):
    """The other version would not start; the message says why."""


def own_command() -> list[str]:
    """The command that this process was started with, by the same path: behind a link may be a newer version."""
    script = sys.argv[0]
    if os.path.basename(script) != "__main__.py" and os.access(script, os.X_OK):
        return [os.path.abspath(script), *sys.argv[1:]]
    return [sys.executable, *sys.orig_argv[1:]]


def check(command: Sequence[str]) -> None:
    """Have the other version look at its settings, before this one is gone. Raises `ReloadRefused`."""
    try:
        done = subprocess.run(
            [*command, CHECK], capture_output=True, stdin=subprocess.DEVNULL, timeout=CHECK_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ReloadRefused(f"{command[0]} cannot be run: {type(error).__name__}") from error
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit {done.returncode}"]
        raise ReloadRefused(lines[-1][:_MAX_WHY])


def become(command: Sequence[str], handover: Handover) -> None:
    """Replace this program. Returns only by raising `ReloadRefused`; everything is then as it was."""
    for each in handover.descriptors:
        os.set_inheritable(each, True)
    try:
        os.execve(command[0], list(command), {**os.environ, VARIABLE: handover.model_dump_json()})
    except OSError as error:
        for each in handover.descriptors:
            os.set_inheritable(each, False)
        raise ReloadRefused(f"{command[0]} cannot be run: {error.strerror}") from error


def taken_over() -> Handover | None:
    """What an earlier version of this process left; None at an ordinary start. Raises `ReloadRefused`."""
    text = os.environ.pop(VARIABLE, None)
    if text is None:
        return None
    try:
        handover = Handover.model_validate_json(text)
    except ValidationError:
        raise ReloadRefused("what the version before left behind cannot be read; start anew") from None
    for each in handover.descriptors:
        os.set_inheritable(each, False)
    return handover


def memory_file(content: bytes) -> int:
    """A descriptor from which `content` can be read."""
    descriptor = os.memfd_create("held")
    os.write(descriptor, content)
    return descriptor


def read_memory_file(descriptor: int) -> bytes:
    """What `memory_file` holds; the descriptor is closed."""
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        return file.read()


def adopt(descriptor: int) -> socket.socket:
    """A socket that was left open."""
    return socket.socket(fileno=descriptor)
