"""Builders of what the engine's pure parts work on."""

from __future__ import annotations

from typing import Any

from toolbox_dtma.engine.models import Container
from toolbox_dtma.engine.plan import Candidate
from toolbox_dtma.wire import DesiredInstance


def desired_instance(**changes: Any) -> DesiredInstance:
    """A desired instance, changed as told."""
    fields: dict[str, Any] = {
        "uid": "0b7f6a52-6d0e-4c59-8f6f-2f5b1c7c3a11",
        "namespace": "mcp-system",
        "name": "time",
        "generation": 1,
        "inputs_hash": "0" * 64,
        "image": "registry.example.com/mcp-time:1.4",
        "port": 3001,
        "path": "/mcp",
    }
    return DesiredInstance.model_validate(fields | changes)


def container(
    status: str,
    *,
    id: str = "c1",
    image: str = "sha256:aa",
    labels: dict[str, str] | None = None,
    networks: dict[str, str] | None = None,
    created: str = "2026-01-01T00:00:00Z",
    **state: Any,
) -> Container:
    """An inspected container. `networks` maps a name to a network id, `state` goes into Docker's State."""
    return Container.model_validate(
        {
            "Id": id,
            "Name": f"/name-{id}",
            "Created": created,
            "Image": image,
            "State": {"Status": status, "StartedAt": "2026-01-01T00:00:01Z", "FinishedAt": "2026-01-01T00:00:02Z"}
            | state,
            "Config": {"Image": "registry.example.com/mcp-time:1.4", "Labels": labels},
            "NetworkSettings": {"Networks": {name: {"NetworkID": key} for name, key in (networks or {}).items()}},
        }
    )


def candidate(found: Container, *, same_spec: bool = True, on_network: bool = True) -> Candidate:
    """A container of the instance."""
    return Candidate(found, same_spec, on_network)
