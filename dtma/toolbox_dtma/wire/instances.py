"""Instances: what a host should run, and what it reports of it.

>>> desired = DesiredInstance(
...     uid="5b6f", namespace="mcp-system", name="time", generation=1, inputs_hash="0" * 64,
...     image="registry.example.com/mcp-time:1.4", port=3001, path="/mcp",
... )
>>> desired.model_dump(mode="json", by_alias=True)["security"]
{'readOnlyRootFilesystem': True, 'runAsUser': None}
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from toolbox_dtma.wire.base import Answer, DnsLabel, Request, Uid, absent
from toolbox_dtma.wire.expose import Expose
from toolbox_dtma.wire.volumes import MAX_VOLUMES, VolumePolicy, Volumes

Transport = Literal["streamable-http", "sse", "stdio"]
Image = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\s]+$")]
HttpPath = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^/[!-~]*$")]
Argument = Annotated[str, StringConstraints(max_length=4096)]


class EnvVar(Request):
    """One environment variable with its resolved value, which is never returned, logged or shown in a repr."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")]
    value: Annotated[str, Field(max_length=32768, repr=False)]


class RegistryCredential(Request):
    """Credentials for one image registry, resolved from an image pull secret."""

    registry: Annotated[str, StringConstraints(min_length=1, max_length=253)]
    username: Annotated[str, Field(max_length=1024)]
    password: Annotated[str, Field(max_length=16384, repr=False)]


class Limits(Request):
    """Hard limits of one container; the defaults are the platform's (design §3)."""

    memory_bytes: Annotated[int, Field(ge=6 * 1024 * 1024, le=1 << 50)] = 512 * 1024 * 1024
    cpu_millis: Annotated[int, Field(ge=10, le=1_000_000)] = 1000
    pids: Annotated[int, Field(ge=1, le=1_000_000)] = 256


class Egress(StrEnum):
    """What a container may open connections to; never its host, metadata services or other instances."""

    NONE = "None"
    """Nothing, and it resolves no names."""
    INTERNET = "Internet"
    """Public addresses, and the host's resolvers."""
    ALL = "All"
    """Private addresses besides."""


def _as_ever(egress: Egress) -> bool:
    return egress is Egress.INTERNET


class Security(Request):
    """Container security choices; everything else is fixed by the host.

    >>> "egress" in Security().model_dump()
    False
    """

    read_only_root_filesystem: bool = True
    run_as_user: Annotated[int, Field(ge=1, le=2_147_483_647)] | None = None
    egress: Annotated[Egress, Field(exclude_if=_as_ever)] = Egress.INTERNET
    """A host that does not know it refuses the instance rather than give it more than was asked for."""


class Sessions(Request):
    """How a server is run that has a container for each session."""

    max_sessions: Annotated[int, Field(ge=1, le=1000)] = 10
    """Open at a time; each has the instance's limits for itself."""
    idle_seconds: Annotated[float, Field(ge=1, le=86_400)] = 1800.0
    """A session in which nothing was said for so long is ended."""


class InstanceState(StrEnum):
    """What an admin wants of a server."""

    RUNNING = "Running"
    STOPPED = "Stopped"


class DesiredInstance(Request):
    """The whole desired instance, body of `PUT /v2/instances/{id}`.

    `inputs_hash` covers everything resolved (environment values, registry credentials), so that a changed
    Secret is a change although the generation is not. `restart_token` changes to ask for a restart.
    """

    uid: Uid
    namespace: DnsLabel
    name: DnsLabel
    generation: Annotated[int, Field(ge=1)]
    inputs_hash: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    restart_token: Annotated[str, StringConstraints(max_length=128)] = ""
    image: Image
    registry_credentials: Annotated[tuple[RegistryCredential, ...], Field(max_length=16)] = ()
    transport: Transport = "streamable-http"
    port: Annotated[int | None, Field(ge=1, le=65535, exclude_if=absent)] = None
    path: Annotated[HttpPath | None, Field(exclude_if=absent)] = None
    """`port` and `path` are where the server listens; neither for stdio, both otherwise."""
    sessions: Annotated[Sessions | None, Field(exclude_if=absent)] = None
    """For stdio, and only there."""
    command: Annotated[tuple[Argument, ...], Field(max_length=64)] = ()
    args: Annotated[tuple[Argument, ...], Field(max_length=256)] = ()
    env: Annotated[tuple[EnvVar, ...], Field(max_length=256)] = ()
    limits: Limits = Limits()
    security: Security = Security()
    state: InstanceState = InstanceState.RUNNING
    expose: Expose = Expose()
    volumes: Annotated[Volumes, Field(max_length=MAX_VOLUMES, exclude_if=lambda volumes: not volumes)] = ()
    volume_policy: Annotated[VolumePolicy, Field(exclude_if=lambda policy: policy is VolumePolicy.DELETE)] = (
        VolumePolicy.DELETE
    )

    @model_validator(mode="after")
    def _fits_its_transport(self) -> Self:
        if self.transport == "stdio":
            if self.port is not None or self.path is not None or self.sessions is None:
                raise ValueError("a stdio server has sessions, and neither port nor path")
        elif self.port is None or self.path is None or self.sessions is not None:
            raise ValueError("a server that listens has port and path, and no sessions")
        return self


class InstancePhase(StrEnum):
    """Where the host's convergence of an instance stands."""

    PENDING = "Pending"
    """Accepted, nothing running yet: pulling or creating."""
    STARTING = "Starting"
    """The container runs or is about to; no successful probe of it yet."""
    READY = "Ready"
    """The last probe of this container, with this desired state, held an MCP conversation."""
    STOPPED = "Stopped"
    ERROR = "Error"
    """Something failed; `reason` says what. The host keeps trying where trying can help."""


class InstanceReason(StrEnum):
    """Why an instance is in its phase. Stable: they appear in Kubernetes conditions."""

    PULLING = "Pulling"
    CREATING = "Creating"
    STARTING = "Starting"
    READY = "Ready"
    STOPPED = "Stopped"
    IMAGE_NOT_FOUND = "ImageNotFound"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    IMAGE_INVALID = "ImageInvalid"
    REGISTRY_UNAUTHORIZED = "RegistryUnauthorized"
    CREATE_FAILED = "CreateFailed"
    START_FAILED = "StartFailed"
    CONTAINER_EXITED = "ContainerExited"
    OUT_OF_MEMORY = "OutOfMemory"
    PORT_NOT_LISTENING = "PortNotListening"
    PROBE_FAILED = "ProbeFailed"
    """Something answered on the port, but no MCP conversation came about; the message says why."""
    DISK_FULL = "DiskFull"
    NETWORK_FAILED = "NetworkFailed"
    VOLUME_FAILED = "VolumeFailed"
    ENGINE_UNAVAILABLE = "EngineUnavailable"


class ContainerReport(Answer):
    """The Docker container of an instance, as the engine reports it."""

    name: str
    id: str
    image: str
    image_digest: str | None = None
    """Repository digest (`sha256:…`) or, for an image without one, its image id."""
    state: str
    """Docker's own word: created, running, paused, restarting, removing, exited, dead."""
    started_at: datetime | None = None
    restarts: int = 0
    """Restarts by the host since this container was created."""
    exit_code: int | None = None
    reason: str | None = None
    message: str | None = None


class ToolSummary(Answer):
    """One tool for display: the description is cut to 256 characters."""

    name: str
    description: str = ""
    hash: str | None = None
    """`sha256:…` of its definition; None if that has no canonical form."""


class ServerInfo(Answer):
    """`serverInfo` of the MCP conversation."""

    name: str
    version: str = ""


class ProbeReport(Answer):
    """Result of the last MCP conversation the gateway held with the container."""

    ok: bool
    protocol_version: str | None = None
    server_info: ServerInfo | None = None
    capabilities: tuple[str, ...] = ()
    tools: Annotated[tuple[ToolSummary, ...], Field(max_length=256)] = ()
    tools_total: int = 0
    tools_truncated: bool = False
    tools_hash: str | None = None
    """`sha256:…` of the whole surface: what `Expose.approved_hash` is compared with."""
    tools_problem: str | None = None
    """Why the first of those tools without a hash has none."""
    message: str | None = None


class ToolApproval(Answer):
    """What an instance's own `approved_hash` comes to, with the tools of the last probe."""

    hash: str
    known: bool
    """Whether a surface with this hash was ever seen here while it was asked for."""
    hidden: Annotated[tuple[str, ...], Field(max_length=256)] = ()
    """The first names of tools that are not approved."""
    hidden_total: int = 0


class DesiredSummary(Answer):
    """What the host was last told, without any value that may be secret."""

    generation: int
    inputs_hash: str
    restart_token: str = ""
    image: str
    port: int | None = None
    path: str | None = None
    state: InstanceState


class SessionCounts(Answer):
    """Sessions of a server that has a container for each."""

    open: int
    max: int


class ObservedInstance(Answer):
    """What the host sees. Ready only if `generation` and `inputs_hash` echo the desired ones."""

    generation: int
    inputs_hash: str
    seq: int
    """Host-wide sequence number of this observation, ordered within a `bootId`."""
    phase: InstancePhase
    reason: InstanceReason
    message: str = ""
    container: ContainerReport | None = None
    probe: ProbeReport | None = None
    sessions: SessionCounts | None = None
    """None for a server that listens."""
    approval: ToolApproval | None = None
    """None where every tool counts as approved, and before the first probe."""


class InstanceReport(Answer):
    """One item of `GET /v2/instances` and the data of an `instance` event."""

    id: Uid
    uid: Uid
    namespace: str
    name: str
    desired: DesiredSummary
    observed: ObservedInstance


class InstanceList(Answer):
    """The complete list of the owner's instances; an incomplete one is never sent."""

    boot_id: int
    cursor: str
    """`{bootId}:{seq}`: where to begin watching `GET /v2/events?after=`."""
    complete: Literal[True]
    items: tuple[InstanceReport, ...]


class DeletedInstance(Answer):
    """Data of a `deleted` event."""

    id: Uid
    uid: Uid
