"""What the image of an example is built from: `examples/images/NAME`, or NAME and the Dockerfile of its ecosystem."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from localstack import cache
from localstack.kubernetes import REPOSITORY
from localstack.progress import SetupError

CONTEXTS = REPOSITORY / "examples" / "images"
QUICKSTART = ("everything", "hello")
"""Images that the quickstart names."""

PYPI = ("time", "git", "fetch")
NPM = ("memory", "filesystem", "sequential-thinking")
SERVERS = (*PYPI, *NPM)
"""Published servers that speak stdio, each built by the Dockerfile for its ecosystem."""

Kind = Literal["python", "node"]
Base = Literal["python", "git", "node"]
_VERSION = "1"
"""Raise it when the way the images of `SERVERS` are built changes; see `images.RECIPE` for all images."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One image: the folder that is its build context, and what `docker build` is told beside it."""

    name: str
    context: Path
    kind: Kind
    dockerfile: Path
    base: Base
    arguments: Mapping[str, str] = field(default_factory=dict[str, str])
    """Build arguments beside `BASE_IMAGE`."""

    def parts(self) -> list[bytes | str]:
        """Everything that shapes the image, for a tag that changes with it."""
        parts = cache.folder_parts(self.context)
        if self.dockerfile.parent != self.context:
            parts += [_VERSION, self.base, self.dockerfile.read_bytes()]
        return parts


def kind_of(context: Path) -> Kind:
    """By the lock file in the build context."""
    if (context / "package-lock.json").exists():
        return "node"
    if (context / "requirements.txt").exists():
        return "python"
    raise SetupError(f"{context} has neither package-lock.json nor requirements.txt")


def pinned(context: Path) -> tuple[str, str]:
    """Name and version of the one package that a build context is about, from what its lock was made of."""
    if kind_of(context) == "node":
        package = cast("dict[str, Any]", json.loads((context / "package.json").read_text()))
        found = list(cast("dict[str, str]", package["dependencies"]).items())
    else:
        found = re.findall(r"^([\w.-]+)==(\S+)$", (context / "requirements.in").read_text(), re.MULTILINE)
    if len(found) != 1:
        raise SetupError(f"{context} has to pin exactly one package, not {found or 'none'}")
    return found[0]


def recipe(name: str) -> Recipe:
    """How an example's image is made; a name that is no example is an error."""
    context = CONTEXTS / name
    kind = kind_of(context)
    if (own := context / "Dockerfile").exists():
        return Recipe(name, context, kind, own, kind)
    package, version = pinned(context)
    ecosystem = "npm" if kind == "node" else "pypi"
    base: Base = "git" if name == "git" else kind
    arguments = {"PACKAGE": package, "VERSION": version}
    return Recipe(name, context, kind, CONTEXTS / ecosystem / "Dockerfile", base, arguments)
