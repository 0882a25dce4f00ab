"""`manifests/` as kustomize (>= 5) builds it; on request with CRDs as servers before 1.25 take them (tests only).

python -m delivery.manifests [--before-1.25] [manifests/overlays/dev] | kubectl apply -f -
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import yaml

from localstack.kubernetes import REPOSITORY, Manifest, for_old_servers
from localstack.progress import SetupError, capture

FOLDER = REPOSITORY / "manifests"
DEFAULT = FOLDER / "default"
DEV = FOLDER / "overlays" / "dev"
KUSTOMIZE_SINCE = (5, 0)
KUBECTL_SINCE = (1, 27)
"""The first kubectl with kustomize 5 inside."""


def _version(text: str) -> tuple[int, int]:
    found = re.search(r"v(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def builder() -> list[str] | None:
    """The command that builds a kustomization, if a new enough one is on the PATH."""
    if (path := shutil.which("kustomize")) and _version(capture([path, "version"])) >= KUSTOMIZE_SINCE:
        return [path, "build"]
    if path := shutil.which("kubectl"):
        client = json.loads(capture([path, "version", "--client", "-o", "json"]))["clientVersion"]
        if _version(client["gitVersion"]) >= KUBECTL_SINCE:
            return [path, "kustomize"]
    return None


def build(folder: Path = DEFAULT) -> list[Manifest]:
    """The objects of a kustomization, in the order to apply them. Raises `SetupError`."""
    command = builder()
    if command is None:
        raise SetupError("building manifests needs kustomize >= 5 or kubectl >= 1.27 on the PATH")
    text = capture([*command, str(folder)], seconds=60)
    documents = cast("list[Manifest | None]", list(yaml.safe_load_all(text)))
    return [document for document in documents if document]


def adapted(objects: Sequence[Manifest]) -> list[Manifest]:
    """The same objects with CRDs that a server before 1.25 takes."""
    return [for_old_servers(each) if each["kind"] == "CustomResourceDefinition" else each for each in objects]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a kustomization's objects."""
    parser = argparse.ArgumentParser(prog="python -m delivery.manifests")
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT)
    parser.add_argument("--before-1.25", dest="old", action="store_true", help="CRDs without CEL rules, for tests")
    given = parser.parse_args(arguments)
    try:
        objects = build(given.folder)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    yaml.safe_dump_all(adapted(objects) if given.old else objects, sys.stdout, sort_keys=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
