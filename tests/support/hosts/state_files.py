"""The files in which DTMA keeps what it was told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def records_in(folder: Path) -> dict[Path, Any]:
    """What a folder of its state holds, by file; DTMA may remove any of them meanwhile."""
    found: dict[Path, Any] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found[path] = json.loads(path.read_text())
        except FileNotFoundError:
            continue
    return found
