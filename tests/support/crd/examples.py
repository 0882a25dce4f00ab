"""The objects of our kinds in `examples/`."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import yaml

from support.crd.cases import Manifest
from toolbox_operator.api.meta import API_VERSION, Kind

_ROOT = Path(__file__).resolve().parents[3] / "examples"


def load(path: Path) -> list[tuple[Kind, Manifest]]:
    """Objects of our kinds in a file."""
    documents = cast("list[Manifest | None]", list(yaml.safe_load_all(path.read_text(encoding="utf-8"))))
    return [(Kind(body["kind"]), body) for body in documents if body and body.get("apiVersion") == API_VERSION]


EXAMPLES: list[Path] = [path for path in sorted(_ROOT.rglob("*.yaml")) if load(path)]
"""Files that hold at least one."""
