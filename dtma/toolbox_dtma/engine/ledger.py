"""What must survive a restart of DTMA and isn't in Docker: restart counts, what rests, which image `:latest` meant.

One small file in the runtime folder. Losing it costs a restart count, never a container.
"""

from __future__ import annotations

import os
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

log = structlog.stdlib.get_logger(__name__)


class Pulled(BaseModel):
    """Which image a floating reference meant for one generation of an object."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    uid: str
    generation: int
    image: str
    image_id: str


class Record(BaseModel):
    """Memory of one instance."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    pulled: Pulled | None = None
    container_id: str = ""
    restarts: int = 0
    delay: float = 0.0
    exit_seen: str = ""
    rested: str = ""
    """Incarnation seen at rest while it was meant to rest: starting it is not a restart after a crash."""


class _File(BaseModel):
    instances: dict[str, Record] = {}


class Ledger:
    """The records of all instances; every change is written at once (they are rare) and atomically."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "engine.json"
        self._records = self._read()

    def get(self, instance_id: str) -> Record:
        """The record of an instance, empty if there is none."""
        return self._records.get(instance_id, Record())

    def put(self, instance_id: str, record: Record) -> None:
        """Replace a record."""
        if self._records.get(instance_id) != record:
            self._records[instance_id] = record
            self._write()

    def forget(self, instance_id: str) -> None:
        """Drop a record."""
        if self._records.pop(instance_id, None) is not None:
            self._write()

    def _read(self) -> dict[str, Record]:
        try:
            return _File.model_validate_json(self._path.read_bytes()).instances
        except FileNotFoundError:
            return {}
        except (ValidationError, OSError) as error:
            log.warning("engine ledger unreadable, starting empty", path=str(self._path), error=str(error))
            return {}

    def _write(self) -> None:
        text = _File(instances=self._records).model_dump_json(exclude_defaults=True)
        temporary = self._path.with_suffix(".tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
            temporary.replace(self._path)
        except OSError as error:
            # A full disk must not stop containers from being restarted; the file is only memory.
            log.warning("engine ledger not written", path=str(self._path), error=str(error))
