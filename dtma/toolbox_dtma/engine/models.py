"""The parts of Docker's answers that DTMA reads, parsed at the edge."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_pascal


def _none_is_empty(value: object) -> object:
    return {} if value is None else value


def _none_is_empty_list(value: object) -> object:
    return [] if value is None else value


Labels = Annotated[dict[str, str], BeforeValidator(_none_is_empty)]
Strings = Annotated[tuple[str, ...], BeforeValidator(_none_is_empty_list)]


class _Docker(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_pascal, populate_by_name=True, hide_input_in_errors=True
    )


class EngineVersion(_Docker):
    """Answer of `GET /version`."""

    version: str
    api_version: str


class Created(_Docker):
    """Answer of a create call."""

    id: str


class ContainerState(_Docker):
    """State of an inspected container. Docker writes year 1 for "never"."""

    status: str
    oom_killed: Annotated[bool, Field(alias="OOMKilled")] = False
    exit_code: int = 0
    error: str = ""
    started_at: str = ""
    finished_at: str = ""


class ContainerConfig(_Docker):
    image: str = ""
    labels: Labels = {}
    user: str = ""
    """`user[:group]` by name or number; the image's unless another was asked for, empty for root."""


class Mount(_Docker):
    """What a container sees at a path."""

    type: str = ""
    name: str = ""
    """Of the volume, if it is one."""
    destination: str = ""
    rw: Annotated[bool, Field(alias="RW")] = False


class Endpoint(_Docker):
    network_id: Annotated[str, Field(alias="NetworkID")] = ""
    ip_address: Annotated[str, Field(alias="IPAddress")] = ""


class NetworkSettings(_Docker):
    networks: Annotated[dict[str, Endpoint], BeforeValidator(_none_is_empty)] = {}


class ContainerSummary(_Docker):
    """One item of the container list."""

    id: str
    state: str
    labels: Labels = {}
    network_settings: NetworkSettings = NetworkSettings()


class Container(_Docker):
    """An inspected container."""

    id: str
    name: str
    created: str = ""
    image: str
    """Image id, `sha256:…`."""
    state: ContainerState
    config: ContainerConfig
    network_settings: NetworkSettings = NetworkSettings()
    mounts: Annotated[tuple[Mount, ...], BeforeValidator(_none_is_empty_list)] = ()

    @property
    def running(self) -> bool:
        """Whether it has processes, be they frozen."""
        return self.state.status in {"running", "paused", "restarting"}

    @property
    def incarnation(self) -> str:
        """Changes with every start of the container, and with nothing else."""
        return hashlib.sha256(f"{self.id}@{self.state.started_at}".encode()).hexdigest()[:32]

    @property
    def started_at(self) -> datetime | None:
        """When it was last started; none if never."""
        return parse_time(self.state.started_at)

    @property
    def uptime(self) -> float:
        """Seconds between the last start and the last exit; 0 when unknown."""
        started, finished = parse_time(self.state.started_at), parse_time(self.state.finished_at)
        return max(0.0, (finished - started).total_seconds()) if started and finished else 0.0


class IpamConfig(_Docker):
    subnet: str = ""


class Ipam(_Docker):
    config: Annotated[tuple[IpamConfig, ...], BeforeValidator(_none_is_empty_list)] = ()


class Network(_Docker):
    """One item of the network list."""

    id: str
    name: str
    created: str = ""
    labels: Labels = {}
    ipam: Annotated[Ipam, Field(alias="IPAM")] = Ipam()
    internal: bool = False
    options: Labels = {}

    @property
    def subnets(self) -> tuple[str, ...]:
        """Subnets of the network, v4 and v6."""
        return tuple(item.subnet for item in self.ipam.config if item.subnet)


class Volume(_Docker):
    """A volume."""

    name: str
    driver: str = ""
    labels: Labels = {}
    options: Labels = {}


class VolumeList(_Docker):
    """Answer of `GET /volumes`."""

    volumes: Annotated[tuple[Volume, ...], BeforeValidator(_none_is_empty_list)] = ()


class Image(_Docker):
    """An inspected image."""

    id: str
    repo_digests: Strings = ()


class EventActor(_Docker):
    id: Annotated[str, Field(alias="ID")] = ""
    attributes: Labels = {}


class DockerEvent(_Docker):
    """One line of the event stream."""

    type: str = ""
    action: str = ""
    actor: EventActor = EventActor()


class PullProgress(BaseModel):
    """One line of a pull."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    status: str = ""
    error: str | None = None


def parse_time(text: str) -> datetime | None:
    """Docker's RFC 3339 time with nanoseconds; none for "never" and for nothing."""
    if not text or text.startswith("0001-"):
        return None
    seconds, _, rest = text.partition(".")
    if not rest:
        return datetime.fromisoformat(seconds)
    digits = rest.rstrip("Z").split("+")[0].split("-")[0]
    zone = rest[len(digits) :]
    return datetime.fromisoformat(f"{seconds}.{digits[:6]:0<6}{zone}")
