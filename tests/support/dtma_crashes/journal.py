"""The journal of what a DTMA under test wrote to the outside, and the trap that ends it right after one of these.

Both are files, so that they need no thread and no connection: the trap is read before each write is counted, and
the journal's last line survives the SIGKILL that follows it.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Trap(BaseModel):
    """After which write to die, counted from now on, or after which of one kind. None: never."""

    model_config = ConfigDict(frozen=True)

    serial: int
    """A new one begins a new count."""
    after: int | None = None
    kind: str | None = None


class Write(BaseModel):
    """One line of the journal."""

    model_config = ConfigDict(frozen=True)

    serial: int
    kind: str
    """What was written, without what differs from run to run."""
    fatal: bool


class Journal:
    """The writing side, inside DTMA."""

    def __init__(self, folder: Path) -> None:
        self._trap = folder / "trap.json"
        self._path = folder / "journal.jsonl"
        self._lock = threading.Lock()
        self._serial = -1
        self._writes = 0

    def wrote(self, kind: str) -> None:
        """A write has taken effect; does not return when it is the one to die after."""
        with self._lock:
            trap = Trap.model_validate_json(self._trap.read_bytes())
            if trap.serial != self._serial:
                self._serial, self._writes = trap.serial, 0
            counts = trap.kind in (None, kind)
            self._writes += counts
            fatal = counts and self._writes == trap.after
            line = Write(serial=trap.serial, kind=kind, fatal=fatal)
            with self._path.open("a") as file:
                file.write(line.model_dump_json() + "\n")
            if fatal:
                os.kill(os.getpid(), signal.SIGKILL)


class Observer:
    """The reading side, in the test."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._trap = folder / "trap.json"
        self._path = folder / "journal.jsonl"
        self._path.touch()
        self._offset = 0
        self._lines: list[Write] = []
        self.serial = 0
        self.disarm()

    def arm(self, after: int | None, kind: str | None = None) -> int:
        """Set the trap and begin a new count; its serial."""
        self.serial += 1
        trap = Trap(serial=self.serial, after=after, kind=kind)
        fresh = self._trap.with_suffix(".new")
        fresh.write_text(trap.model_dump_json())
        fresh.replace(self._trap)
        return self.serial

    def disarm(self) -> int:
        """No trap; the count begins anew."""
        return self.arm(None)

    def writes(self, serial: int) -> list[Write]:
        """What was written since the trap of this serial was set and until the next one was."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._lines += [Write.model_validate_json(line) for line in whole.splitlines()]
        return [line for line in self._lines if line.serial == serial]
