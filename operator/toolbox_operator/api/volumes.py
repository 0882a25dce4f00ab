"""Volumes of an MCPServer."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import StringConstraints

from toolbox_operator.api.meta import ApiModel

# The forms of name and path are rules, not patterns: their messages are ones a person can act on.
VolumeName = Annotated[str, StringConstraints(min_length=1, max_length=63)]
MountPath = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class Volume(ApiModel):
    """A volume of the server's own on its host. Empty when it is new."""

    name: VolumeName
    """Name of the volume, a DNS label. Another name is another volume; the one before is kept."""
    mount_path: MountPath
    """Where the container sees it, like /data."""
    read_only: bool = False
    """Whether the container can only read it."""


class VolumePolicy(StrEnum):
    """What becomes of volumes when their server is deleted."""

    DELETE = "Delete"
    RETAIN = "Retain"
