"""Toolbox (`tbx`): a Docker host whose DTMA this cluster drives."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from toolbox_operator.api.conditions import Condition
from toolbox_operator.api.meta import ApiModel, StatusModel
from toolbox_operator.api.refs import KeyRef, Sharing

HttpsUrl = Annotated[str, StringConstraints(min_length=9, max_length=512, pattern=r"^https://[^\s/?#@]+/?$")]
Duration = Annotated[str, StringConstraints(min_length=2, max_length=16, pattern=r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$")]


class ToolboxSpec(ApiModel):
    """How to reach a host and who may use it."""

    endpoint: HttpsUrl
    gateway_url: Annotated[HttpsUrl, Field(alias="gatewayURL")]
    auth_secret_ref: KeyRef
    ca_secret_ref: KeyRef | None = None
    gateway_ca_secret_ref: Annotated[KeyRef | None, Field(alias="gatewayCASecretRef")] = None
    lease_duration: Duration = "40s"
    allowed_servers: Sharing = Sharing()


class ToolboxPhase(StrEnum):
    """Summary for people; conditions are the truth."""

    PENDING = "Pending"
    READY = "Ready"
    UNREACHABLE = "Unreachable"
    LOST = "Lost"
    STALLED = "Stalled"
    DELETING = "Deleting"


class AgentStatus(StatusModel):
    """The host's agent, as it reports itself."""

    version: str
    protocol: int
    engine: str | None = None
    os: str
    arch: str


class ToolboxStatus(StatusModel):
    """What is known of the host."""

    phase: ToolboxPhase = ToolboxPhase.PENDING
    conditions: tuple[Condition, ...] = ()
    host_id: str | None = None
    agent: AgentStatus | None = None
    servers: int = 0
    observed_generation: int = 0
