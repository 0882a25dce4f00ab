"""MCPServer (`mcps`): one MCP server container on a toolbox."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from toolbox_operator.api.conditions import Condition
from toolbox_operator.api.meta import ApiModel, StatusModel
from toolbox_operator.api.refs import KeyRef, LocalRef, NamespacedRef, Sharing

Glob = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Globs = Annotated[tuple[Glob, ...], Field(max_length=256)]
Image = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[a-zA-Z0-9][^\s]*$")]
HttpPath = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^/[!-~]*$")]
EnvName = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")]
Quantity = Annotated[str, StringConstraints(min_length=1, max_length=32)]
Argument = Annotated[str, StringConstraints(max_length=4096)]


class EnvValueSource(ApiModel):
    """Where a value comes from; exactly one."""

    secret_key_ref: KeyRef | None = None
    config_map_key_ref: KeyRef | None = None


class EnvVar(ApiModel):
    """An environment variable with either `value` or `valueFrom`."""

    name: EnvName
    value: Annotated[str, Field(max_length=32768)] | None = None
    value_from: EnvValueSource | None = None


class ResourceLimits(ApiModel):
    """Hard limits. Resolved defaults: 512Mi, 1 CPU, 256 processes."""

    memory: Annotated[str, StringConstraints(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|k|M|G)?$")] | None = None
    cpu: Annotated[str, StringConstraints(max_length=32, pattern=r"^([0-9]+m|[0-9]+(\.[0-9]+)?)$")] | None = None
    pids: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


class Resources(ApiModel):
    """Resources of the container."""

    limits: ResourceLimits = ResourceLimits()


class Security(ApiModel):
    """Security of the container; what is not here is fixed by the host."""

    read_only_root_filesystem: bool = True
    run_as_user: Annotated[int, Field(ge=1, le=2_147_483_647)] | None = None


class RunState(StrEnum):
    """Whether the server should run."""

    RUNNING = "Running"
    STOPPED = "Stopped"


class NameFilter(ApiModel):
    """Globs (`*` and `?`); deny wins; an empty `allow` allows nothing."""

    allow: Globs = ("*",)
    deny: Globs = ()


class Expose(ApiModel):
    """What of the server is visible and callable."""

    tools: NameFilter = NameFilter()


class MCPServerSpec(ApiModel):
    """What to run, where, and who may connect."""

    toolbox_ref: NamespacedRef
    image: Image
    image_pull_secrets: Annotated[tuple[LocalRef, ...], Field(max_length=16)] = ()
    transport: Literal["streamable-http"]
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    path: HttpPath | None = None
    command: Annotated[tuple[Argument, ...], Field(max_length=64)] = ()
    args: Annotated[tuple[Argument, ...], Field(max_length=256)] = ()
    env: Annotated[tuple[EnvVar, ...], Field(max_length=256)] = ()
    resources: Resources = Resources()
    security: Security = Security()
    state: RunState = RunState.RUNNING
    sharing: Sharing = Sharing()
    expose: Expose = Expose()


class MCPServerPhase(StrEnum):
    """Summary for people; the database's `status_on_toolbox` is its lower case."""

    PENDING = "Pending"
    STARTING = "Starting"
    ACTIVE = "Active"
    STOPPED = "Stopped"
    ERROR = "Error"
    UNKNOWN = "Unknown"
    DELETING = "Deleting"


class ResolvedServer(StatusModel):
    """The spec with every default filled in, and the reference point of immutability."""

    toolbox: str
    """`namespace/name` of the Toolbox."""
    image: str
    transport: str
    port: int
    path: str
    memory: str
    cpu: str
    pids: int


class ContainerStatus(StatusModel):
    """The container as Docker reports it."""

    name: str
    id: str
    image: str
    image_digest: str | None = None
    state: str
    started_at: datetime | None = None
    restarts: int = 0
    exit_code: int | None = None
    reason: str | None = None
    message: str | None = None


class ToolStatus(StatusModel):
    """A tool of the server."""

    name: str
    description: str = ""


class ServerInfo(StatusModel):
    """What the server calls itself."""

    name: str
    version: str = ""


class MCPServerStatus(StatusModel):
    """The truth about the server."""

    phase: MCPServerPhase = MCPServerPhase.PENDING
    conditions: tuple[Condition, ...] = ()
    instance_id: str | None = None
    resolved: ResolvedServer | None = None
    container: ContainerStatus | None = None
    endpoint: str | None = None
    protocol_version: str | None = None
    server_info: ServerInfo | None = None
    tools: Annotated[tuple[ToolStatus, ...], Field(max_length=256)] = ()
    tools_total: int = 0
    tools_truncated: bool = False
    connections: int = 0
    observed_generation: int = 0
