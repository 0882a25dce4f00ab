"""Settings of local hosts whose DTMA is started by a module of the tests (`varied_dtma`)."""

from __future__ import annotations

from typing import Any

from localstack.kubernetes import REPOSITORY


def settings_for(module: str) -> dict[str, Any]:
    """Of a local host whose DTMA is started by this module."""
    environment = {"PYTHONPATH": f"{REPOSITORY / 'dtma'}:{REPOSITORY / 'tests'}"}
    return {"environment": environment, "serve_module": module}
