"""Files that are either old or new after a crash, never in between."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Error numbers of a full disk."""

TEMPORARY_PREFIX = ".new-"
_SAFE_NAME = re.compile(r"^[A-Za-z0-9-]{1,128}$")

M = TypeVar("M", bound=BaseModel)


class StateCorrupt(Exception):
    """A state file cannot be read as what it must be. DTMA refuses to start: "empty" would mean "delete"."""

    def __init__(self, path: Path, why: str):
        super().__init__(
            f"{path} is damaged ({why}). Restore it from a backup, or remove this one file to make the host forget "
            "what it describes; nothing was changed."
        )
        self.path = path


def record_path(folder: Path, key: str) -> Path:
    """The file of one record. Raises `ValueError` for a key that could leave the folder."""
    if not _SAFE_NAME.fullmatch(key):
        raise ValueError("a record key may only have letters, digits and dashes")
    return folder / f"{key}.json"


def ensure_folder(path: Path, mode: int = 0o700) -> None:
    """Make a folder with exactly this mode; parents that are missing get 0755."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.mkdir(mode=mode, exist_ok=True)
    path.chmod(mode)


def sync_folder(path: Path) -> None:
    """Make renames and removals in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: bytes, *, mode: int = 0o600, owner: tuple[int, int] | None = None) -> None:
    """Replace a file: temporary file in the same folder, fsync, rename, fsync of the folder.

    `owner` is (uid, gid). Raises `OSError`; the old content is then still there.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            if owner is not None:
                os.fchown(file.fileno(), *owner)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a file for good; absent is success."""
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_record(path: Path, record: BaseModel) -> None:
    """Write one record with `write_atomic`."""
    write_atomic(path, record.model_dump_json(by_alias=True, indent=1).encode() + b"\n")


def read_record(path: Path, model: type[M]) -> M:
    """One record. Raises `StateCorrupt` when it is unreadable, not of the model, or missing."""
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        # The location is enough to find the place; the value may be a secret.
        where = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'content'}: {item['msg']}"
            for item in error.errors(include_input=False, include_url=False, include_context=False)[:3]
        )
        raise StateCorrupt(path, where) from None
    except OSError as error:
        raise StateCorrupt(path, error.strerror or type(error).__name__) from error


def remove_leftovers(folder: Path) -> None:
    """Remove what writes that a crash cut short left in a folder. Nobody else may be writing there."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        path.unlink()


def read_folder(folder: Path, model: type[M]) -> dict[str, M]:
    """Every record of a folder by key. Leftovers of writes cut short by a crash are removed.

    Raises `StateCorrupt` for any other file that is not a record.
    """
    remove_leftovers(folder)
    records: dict[str, M] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix != ".json" or not _SAFE_NAME.fullmatch(path.stem):
            raise StateCorrupt(path, "not a record of this folder")
        else:
            records[path.stem] = read_record(path, model)
    return records
