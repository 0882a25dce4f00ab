"""The folder of the user's cache that holds what is expensive to get: binaries, images, packages."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from localstack.progress import say

UNUSED_SECONDS = 7 * 24 * 3600.0


def root() -> Path:
    """`$MAGIC_TOOLBOX_CACHE`, else `$XDG_CACHE_HOME/magic-toolbox`, else `~/.cache/magic-toolbox`."""
    if chosen := os.environ.get("MAGIC_TOOLBOX_CACHE"):
        return Path(chosen)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "magic-toolbox"
    return Path.home() / ".cache" / "magic-toolbox"


def shared_root() -> Path:
    """A folder that other users can read and execute from; root's home usually is not one."""
    return Path("/var/cache/magic-toolbox") if os.geteuid() == 0 else root() / "shared"


def log(name: str) -> Path:
    """Where the output of a step is kept for whoever wants to know why it failed."""
    folder = root() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.log"


@contextmanager
def lock(folder: Path, name: str) -> Generator[None]:
    """Holds an exclusive lock file; a second run that needs the same thing waits, with a line that says so."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run that prepares {name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def ensure(name: str, build: Callable[[Path], None], *, folder: Path | None = None) -> Path:
    """The cached folder `name`, built once: it appears under its name only when `build` has finished."""
    base = folder or root()
    target = base / name
    if target.is_dir():
        return target
    with lock(base, name):
        if target.is_dir():
            return target
        work = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=base))
        try:
            build(work)
            work.chmod(0o755)
            work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


def prune(folder: Path, pattern: str, keep: str) -> None:
    """Removes other versions of something that no run has used for a week; marks `keep` as used now."""
    os.utime(folder / keep)
    oldest = time.time() - UNUSED_SECONDS
    for path in folder.glob(pattern):
        if path.name != keep and path.is_dir() and path.stat().st_mtime < oldest:
            shutil.rmtree(path)


def content_hash(parts: Iterable[bytes | str]) -> str:
    """Twelve hex digits over the parts, each with its length, so that boundaries count."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()[:12]


def folder_parts(folder: Path) -> list[bytes | str]:
    """Names and contents of all files below a folder, in a fixed order, for `content_hash`."""
    parts: list[bytes | str] = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            parts += [str(path.relative_to(folder)), path.read_bytes()]
    return parts
