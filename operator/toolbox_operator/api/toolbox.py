"""Toolbox (`tbx`): a Docker host whose DTMA this cluster drives."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from toolbox_operator.api.conditions import Conditions
from toolbox_operator.api.meta import ApiModel, Duration, StatusModel, Text64, Text256
from toolbox_operator.api.refs import KeyRef, Sharing

# The form is a rule, not a pattern: its message is one a person can act on.
HttpsUrl = Annotated[str, StringConstraints(min_length=1, max_length=512)]


class ToolboxSpec(ApiModel):
    """How to reach a host and who may use it."""

    endpoint: HttpsUrl
    """URL of the host's management API, like https://203.0.113.10:30000."""
    gateway_url: Annotated[HttpsUrl, Field(alias="gatewayURL")]
    """Base URL under which agents reach the host's gateway, like https://toolbox.example.com:30443."""
    auth_secret_ref: KeyRef
    """The management API's bearer token, in a Secret of this namespace."""
    ca_secret_ref: KeyRef | None = None
    """CA certificate (PEM) that the management API's certificate is checked against; system roots when absent."""
    gateway_ca_secret_ref: Annotated[KeyRef | None, Field(alias="gatewayCASecretRef")] = None
    """CA certificate (PEM) of the gateway, handed to agents as ca.crt in the Secret of each connection."""
    lease_duration: Duration = "40s"
    """How long the host may be out of contact before it counts as Lost and its servers as Unknown; 20s to 1h."""
    allowed_servers: Sharing = Sharing()
    """Which MCPServers may be deployed here. Default: those in this namespace."""


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

    version: Text64
    """Version of the agent."""
    protocol: int
    """Generation of its management API."""
    engine: Text64 | None = None
    """Version of the Docker Engine; absent while the engine does not answer."""
    os: Text64
    """Operating system of the host."""
    arch: Text64
    """Processor architecture of the host."""


class ToolboxStatus(StatusModel):
    """What is known of the host."""

    phase: ToolboxPhase = ToolboxPhase.PENDING
    """Summary for people; programs read the conditions."""
    conditions: Conditions = ()
    """Ready and Reachable; Reconciling and Stalled while true."""
    host_id: Text256 | None = None
    """Identity that the host gave itself when its agent was set up."""
    agent: AgentStatus | None = None
    """The host's agent, as it reported itself when last in contact."""
    servers: Annotated[int, Field(ge=0)] = 0
    """How many MCPServers name this Toolbox."""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The metadata.generation this status was written for."""
