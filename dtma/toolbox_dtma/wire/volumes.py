"""Volumes: data of an instance that outlives its containers.

>>> Volume(name="data", mount_path="/var/lib/memory").model_dump(mode="json", by_alias=True)
{'name': 'data', 'mountPath': '/var/lib/memory', 'readOnly': False}
>>> clean_path("/data/.cache"), clean_path("/data/../etc"), clean_path("/data/")
(True, False, False)
>>> reserved_path("/proc/self"), reserved_path("/processed")
(True, False)
>>> apart(("/data", "/data2")), apart(("/data", "/data/cache"))
(True, False)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from itertools import permutations
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from toolbox_dtma.wire.base import DnsLabel, Request

MAX_VOLUMES = 16

PATH = "^(/[A-Za-z0-9._@+~-]+)+$"
"""An absolute path of plain segments, in the common subset of RE2 and Python; the root is none."""
DOTS = "/[.][.]?(/|$)"
"""A segment that stands for another folder."""
RESERVED = "^/(proc|sys|dev|tmp)(/|$)"
"""What every container gets from the kernel and from the host (`/tmp`: a tmpfs), with all that is below."""

_PATH, _DOTS, _RESERVED = re.compile(PATH), re.compile(DOTS), re.compile(RESERVED)


def clean_path(path: str) -> bool:
    """Whether a path is absolute, below the root, and has only one spelling."""
    return _PATH.fullmatch(path) is not None and _DOTS.search(path) is None


def reserved_path(path: str) -> bool:
    """Whether nothing may be mounted at this path."""
    return _RESERVED.search(path) is not None


def apart(paths: Sequence[str]) -> bool:
    """Whether no path is another one's, or lies below it.

    Nested mounts are refused: the inner one's mount point would be a folder in the outer one's data, made by
    whichever container came first.
    """
    return not any(f"{inner}/".startswith(f"{outer}/") for outer, inner in permutations(paths, 2))


def _mountable(path: str) -> str:
    if not clean_path(path) or reserved_path(path):
        raise ValueError("must be an absolute path without '.', '..' and '//', and not below /proc, /sys, /dev or /tmp")
    return path


class Volume(Request):
    """A volume of an instance's own, by its name within the instance, and where the container sees it."""

    name: DnsLabel
    mount_path: Annotated[str, StringConstraints(max_length=256), AfterValidator(_mountable)]
    read_only: bool = False


def _fit_together(volumes: tuple[Volume, ...]) -> tuple[Volume, ...]:
    if len({volume.name for volume in volumes}) < len(volumes):
        raise ValueError("each volume needs a name of its own")
    if not apart([volume.mount_path for volume in volumes]):
        raise ValueError("no volume may be mounted where another one is, or inside it")
    return volumes


Volumes = Annotated[tuple[Volume, ...], AfterValidator(_fit_together)]


class VolumePolicy(StrEnum):
    """What becomes of volumes when their instance is deleted."""

    DELETE = "Delete"
    RETAIN = "Retain"
