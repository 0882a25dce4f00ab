"""A wall clock that is wrong, for one process: Debian's libfaketime, preloaded. Monotonic time stays as it is."""

from __future__ import annotations

import platform
from pathlib import Path

from localstack import cache, debian

_PACKAGE = "libfaketime"
_LIBRARY = "libfaketimeMT.so.1"


def turned(seconds: int) -> tuple[str, ...]:
    """What executes a program whose clock is this far ahead (or behind) of the machine's.

    To be executed by the program's own user: the library shares memory with the children, and removes it at the end.
    """
    settings = {"LD_PRELOAD": str(_library()), "FAKETIME": f"{seconds:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    return ("/usr/bin/env", *(f"{name}={value}" for name, value in settings.items()))


def _library() -> Path:
    def build(folder: Path) -> None:
        debian.extract(_PACKAGE, f"usr/lib/{platform.machine()}-linux-gnu/faketime/{_LIBRARY}", folder)

    # Where the gateway's user can read it.
    return cache.ensure(f"debian-{_PACKAGE}", build, folder=cache.shared_root()) / _LIBRARY
