"""MCPServer (`mcps`): one MCP server container on a toolbox."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Protocol, TypeVar

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, StringConstraints
from pydantic.config import JsonDict

from toolbox_operator.api.conditions import Conditions
from toolbox_operator.api.meta import ApiModel, StatusModel, Text64, Text256, Text1024
from toolbox_operator.api.quantity import CPU_PATTERN, MEMORY_PATTERN
from toolbox_operator.api.refs import KeyRef, LocalRef, NamespacedRef, Sharing
from toolbox_operator.api.sessions import Sessions, SessionsStatus
from toolbox_operator.api.volumes import Volume, VolumePolicy

INT_OR_STRING: JsonDict = {"x-kubernetes-int-or-string": True}
LIST_MAP_BY_NAME: JsonDict = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}


class _Named(Protocol):
    @property
    def name(self) -> str: ...


NamedT = TypeVar("NamedT", bound=_Named)


def _whole_number_as_text(value: object) -> object:
    # YAML reads `cpu: 1` as a number; Kubernetes takes it as the quantity "1", and so do we.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _each_name_once(entries: tuple[NamedT, ...]) -> tuple[NamedT, ...]:
    # The API server does this for every list that is a map by name; as CEL it would cost too much.
    names = [entry.name for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is there more than once; keep one")
    return entries


Glob = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Globs = Annotated[tuple[Glob, ...], Field(max_length=256)]
# The forms of image and path are rules, not patterns: their messages are ones a person can act on.
Image = Annotated[str, StringConstraints(min_length=1, max_length=512)]
HttpPath = Annotated[str, StringConstraints(min_length=1, max_length=256)]
EnvName = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")]
EnvValue = Annotated[str, StringConstraints(max_length=32768)]
Argument = Annotated[str, StringConstraints(max_length=4096)]
MemoryQuantity = Annotated[
    str,
    StringConstraints(min_length=1, max_length=32, pattern=MEMORY_PATTERN),
    BeforeValidator(_whole_number_as_text),
    Field(json_schema_extra=INT_OR_STRING),
]
CpuQuantity = Annotated[
    str,
    StringConstraints(min_length=1, max_length=32, pattern=CPU_PATTERN),
    BeforeValidator(_whole_number_as_text),
    Field(json_schema_extra=INT_OR_STRING),
]


class EnvValueSource(ApiModel):
    """Where a value comes from; exactly one."""

    secret_key_ref: KeyRef | None = None
    """A key of a Secret in this namespace."""
    config_map_key_ref: KeyRef | None = None
    """A key of a ConfigMap in this namespace."""


class EnvVar(ApiModel):
    """An environment variable with either `value` or `valueFrom`."""

    name: EnvName
    """Name of the variable."""
    value: Annotated[EnvValue | None, Field(repr=False)] = None
    """The value itself. Keep secrets in a Secret and use valueFrom."""
    value_from: EnvValueSource | None = None
    """Where the value comes from."""


class ResourceLimits(ApiModel):
    """Hard limits of the container; status.resolved shows the ones in force."""

    memory: MemoryQuantity | None = None
    """Memory, like 256Mi; 512Mi when absent. At least 6Mi."""
    cpu: CpuQuantity | None = None
    """CPU time, like 500m (half a CPU); 1 when absent. At least 10m."""
    pids: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Number of processes and threads; 256 when absent."""


class Resources(ApiModel):
    """Resources of the container."""

    limits: ResourceLimits = ResourceLimits()
    """Hard limits."""


class Egress(StrEnum):
    """What a server may open connections to."""

    NONE = "None"
    INTERNET = "Internet"
    ALL = "All"


class Security(ApiModel):
    """Security of the container; what is not here is fixed by the host."""

    read_only_root_filesystem: bool = True
    """Whether the container's root filesystem is read-only."""
    run_as_user: Annotated[int, Field(ge=1, le=2_147_483_647)] | None = None
    """User id the container runs as, never root; the image's own user when absent."""
    egress: Egress = Egress.INTERNET
    """What it may connect to: Internet (public addresses), All (private ones too), None. Never its host."""


class RunState(StrEnum):
    """Whether the server should run."""

    RUNNING = "Running"
    STOPPED = "Stopped"


class NameFilter(ApiModel):
    """Names, chosen by globs: `*` is any run of characters, `?` one character, nothing else is special."""

    allow: Globs = ("*",)
    """What is let through; an empty list lets nothing through. Default: everything."""
    deny: Globs = ()
    """What is kept back; it wins over allow."""


class ToolFilter(NameFilter):
    """Names of tools, chosen by globs, and the tools that were approved."""

    approved_hash: Annotated[str, StringConstraints(min_length=1, max_length=71)] | None = None
    """A value of status.toolsHash: only tools exactly as they were defined then may be used. Default: any."""


class Expose(ApiModel):
    """What of the server is visible and usable."""

    tools: ToolFilter = ToolFilter()
    """Which tools are listed and may be called, by name."""
    resources: NameFilter = NameFilter()
    """Which resources are listed, read and subscribed to, by URI; templates by their URI template."""
    prompts: NameFilter = NameFilter()
    """Which prompts are listed and may be used, by name."""


PullSecrets = Annotated[
    tuple[LocalRef, ...],
    Field(max_length=16, json_schema_extra=LIST_MAP_BY_NAME),
    AfterValidator(_each_name_once),
]
Variables = Annotated[
    tuple[EnvVar, ...],
    Field(max_length=256, json_schema_extra=LIST_MAP_BY_NAME),
    AfterValidator(_each_name_once),
]


class MCPServerSpec(ApiModel):
    """What to run, where, and who may connect."""

    toolbox_ref: NamespacedRef
    """The Toolbox to run on. Cannot change."""
    image: Image
    """Container image, like registry.example.com/team/server:1.4."""
    image_pull_secrets: Annotated[
        tuple[LocalRef, ...], Field(max_length=16, json_schema_extra=LIST_MAP_BY_NAME), AfterValidator(_each_name_once)
    ] = ()
    """Secrets of this namespace (type kubernetes.io/dockerconfigjson) with credentials for the image's registry."""
    transport: Literal["streamable-http", "sse", "stdio"]
    """How the server speaks MCP: streamable-http, sse, or stdio, with a container for each session. Cannot change."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """The port the server listens on inside its container. Not with stdio."""
    path: HttpPath | None = None
    """The HTTP path the server answers on; /mcp when absent, with sse /sse. Not with stdio."""
    sessions: Sessions | None = None
    """How sessions of a stdio server are run. Only with stdio."""
    command: Annotated[tuple[Argument, ...], Field(max_length=64)] = ()
    """Replaces the image's entrypoint."""
    args: Annotated[tuple[Argument, ...], Field(max_length=256)] = ()
    """Replaces the image's arguments."""
    env: Annotated[
        tuple[EnvVar, ...], Field(max_length=256, json_schema_extra=LIST_MAP_BY_NAME), AfterValidator(_each_name_once)
    ] = ()
    """Environment variables."""
    resources: Resources = Resources()
    """Resources of the container."""
    security: Security = Security()
    """Security of the container; what cannot be chosen here is fixed by the host."""
    volumes: Annotated[
        tuple[Volume, ...], Field(max_length=16, json_schema_extra=LIST_MAP_BY_NAME), AfterValidator(_each_name_once)
    ] = ()
    """Data that outlives the container: kept when the server is stopped, changed or restarted."""
    volume_policy: VolumePolicy = VolumePolicy.DELETE
    """What becomes of the volumes when this object is deleted: Delete, or Retain to leave them on the host."""
    state: RunState = RunState.RUNNING
    """Running, or Stopped to keep everything but the process."""
    sharing: Sharing = Sharing()
    """Which AgentMCPConnections are accepted. Default: those in this namespace."""
    expose: Expose = Expose()
    """What every connection may use at most. Default: everything."""


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

    toolbox: Text256
    """The Toolbox, as namespace/name."""
    image: Annotated[str, Field(max_length=512)]
    """The image."""
    transport: Text64
    """The transport."""
    port: int | None = None
    """The port; absent with stdio."""
    path: Text256 | None = None
    """The path; absent with stdio."""
    max_sessions: int | None = None
    """How many sessions may be open at a time; only with stdio."""
    idle_timeout: Text64 | None = None
    """How long nothing may be said in a session; only with stdio."""
    memory: Text64
    """The memory limit."""
    cpu: Text64
    """The CPU limit."""
    pids: int
    """The limit of processes and threads."""


class ContainerStatus(StatusModel):
    """The container as Docker reports it."""

    name: Text256
    """Name of the container."""
    id: Text256
    """Id of the container."""
    image: Text1024
    """Image it was created from."""
    image_digest: Text256 | None = None
    """Digest of that image, sha256:…"""
    state: Text64
    """Docker's own word: created, running, paused, restarting, removing, exited or dead."""
    started_at: AwareDatetime | None = None
    """When it was last started."""
    restarts: Annotated[int, Field(ge=0)] = 0
    """How often the host restarted it since it was created."""
    exit_code: int | None = None
    """Exit code of its last run; absent while it runs."""
    reason: Text256 | None = None
    """Why it is in this state, in one word."""
    message: Text1024 | None = None
    """Why it is in this state."""


class ToolStatus(StatusModel):
    """A tool of the server."""

    name: Text256
    """Name of the tool."""
    description: Text256 = ""
    """The beginning of its description."""
    hash: Text256 | None = None
    """Hash of its name, description, input schema and annotations; absent if they have no canonical form."""


class ServerInfo(StatusModel):
    """What the server calls itself."""

    name: Text256
    """Its name."""
    version: Text256 = ""
    """Its version."""


class MCPServerStatus(StatusModel):
    """The truth about the server."""

    phase: MCPServerPhase = MCPServerPhase.PENDING
    """Summary for people; programs read the conditions."""
    conditions: Conditions = ()
    """Accepted, ResolvedRefs, Deployed and Ready; ToolsChanged, Reconciling and Stalled while true."""
    instance_id: Text256 | None = None
    """Identity of the deployment: in the database, on the container and in URLs."""
    resolved: ResolvedServer | None = None
    """The spec in force, with every default filled in."""
    container: ContainerStatus | None = None
    """The container as Docker reports it; absent with stdio, where each session has one."""
    sessions: SessionsStatus | None = None
    """Sessions of a stdio server."""
    endpoint: Text1024 | None = None
    """URL under which agents reach the server through the gateway."""
    protocol_version: Text64 | None = None
    """MCP revision the server negotiated with the readiness probe."""
    server_info: ServerInfo | None = None
    """What the server calls itself."""
    tools: Annotated[
        tuple[ToolStatus, ...], Field(max_length=256, json_schema_extra={"x-kubernetes-list-type": "atomic"})
    ] = ()
    """The first 256 tools the server listed to the readiness probe."""
    tools_total: Annotated[int, Field(ge=0)] = 0
    """How many tools the server listed."""
    tools_truncated: bool = False
    """Whether tools leaves some of them out."""
    tools_hash: Text256 | None = None
    """Hash of all those tools: set expose.tools.approvedHash to it to let nothing else be used."""
    tools_generation: Annotated[int, Field(ge=0)] | None = None
    """The metadata.generation with which the server was first seen after the spec changed."""
    connections: Annotated[int, Field(ge=0)] = 0
    """How many AgentMCPConnections to this server are accepted."""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The metadata.generation this status was written for."""
