"""The host itself: ownership, configuration and facts.

>>> HostConfig(gateway_url="https://tbx-1.example.com:30443").model_dump(mode="json", by_alias=True)
{'gatewayURL': 'https://tbx-1.example.com:30443', 'allowedOrigins': [], 'issuers': []}
>>> OwnerClaim.model_validate_json('{"epoch": 3}').epoch
3
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field, StringConstraints

from toolbox_dtma.wire.base import Answer, Epoch, Request

Url = Annotated[str, StringConstraints(min_length=8, max_length=512, pattern=r"^https?://[^\s]+$")]


class OwnerClaim(Request):
    """Body of `PUT /v2/owners/{owner}`: a leader announces its epoch."""

    epoch: Epoch


class OwnerClaimed(Answer):
    """Answer to a claim: the highest epoch the host now holds for the owner."""

    epoch: int
    host_id: str


class HostConfig(Request):
    """Body of `PUT /v2/host/config`."""

    gateway_url: Annotated[Url, Field(alias="gatewayURL")]
    allowed_origins: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    issuers: Annotated[tuple[str, ...], Field(max_length=0)] = ()


class EngineFacts(Answer):
    """Docker Engine facts; `available` is false while the engine does not answer."""

    available: bool
    version: str | None = None
    api_version: str | None = None


class GatewayFacts(Answer):
    """How many gateway workers hold the current policy revision. Also sent as the event `gateway`."""

    workers: int
    workers_current: int
    revision: int
    available: bool = True
    """False once no worker has been connected for some seconds: agents reach nothing on this host."""


class Capacity(Answer):
    """What the host has."""

    cpus: int
    memory_bytes: int


class Reserved(Answer):
    """What limits let the servers of all owners that are to run take of the host together.

    A server on stdio counts as often as it may have sessions. It can be more than the host has.
    """

    memory_bytes: int
    cpu_millis: int


class Usage(Answer):
    """What this owner uses on the host."""

    instances: int
    running: int
    grants: int


class HostFacts(Answer):
    """Answer of `GET /v2/host`."""

    host_id: str
    boot_id: int
    version: str
    protocol: int
    engine: EngineFacts
    gateway: GatewayFacts
    os: str
    arch: str
    capacity: Capacity
    reserved: Reserved | None = None
    """None from a host that is older than this."""
    usage: Usage
    time: datetime | None = None
    """The host's clock: what ends at a time ends there by it."""
