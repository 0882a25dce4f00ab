"""Models of the state files. Each carries `version`; an unknown one is refused, not guessed at."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from toolbox_dtma.link.messages import KeyRing, Surface
from toolbox_dtma.wire import DesiredInstance, Grant, HostConfig, ProbeReport, VolumePolicy


class Record(BaseModel):
    """Base of all state files."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    version: Literal[1] = 1


class HostRecord(Record):
    """`host.json`: what `toolbox-dtma init` decided. The identity never changes afterwards."""

    host_id: str
    name: str
    namespace: str
    addresses: Annotated[tuple[str, ...], Field(min_length=1)]
    bind: str
    management_port: int
    gateway_port: int
    gateway_dir: str
    gateway_uid: int
    gateway_gid: int
    gateway_workers: int
    runtime_dir: str
    docker_url: str | None = None


class BootRecord(Record):
    """`boot.json`: the number of the last start; each has a higher one."""

    boot_id: int


class OwnerRecord(Record):
    """`owners/<owner>.json`: the highest epoch a cluster has shown."""

    owner: str
    epoch: int


class ConfigRecord(Record):
    """`config.json`: the gateway's configuration, as an owner last put it."""

    owner: str
    config: HostConfig


class InstanceRecord(Record):
    """`instances/<id>.json`. `deleting`: removal was ordered and goes on until the container is gone."""

    id: str
    owner: str
    desired: DesiredInstance
    deleting: bool = False


def _with_more_than_tools(value: Any) -> Any:
    """Files of before prompts and resources were probed hold the names of tools only."""
    return {"tools": cast("list[Any]", value), "prompts": None, "resources": None} if isinstance(value, list) else value


class ProbedRecord(Record):
    """`probed/<id>.json`: the last successful probe, so that a restart of DTMA does not make servers unready."""

    incarnation: str
    address: str
    port: int
    path: str
    report: ProbeReport
    surface: Annotated[Surface, BeforeValidator(_with_more_than_tools)]


class ApprovedSurface(BaseModel):
    """Which definitions of tools a surface had when it was approved, by their hashes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hash: str
    tools: tuple[str, ...]


class ApprovalsRecord(Record):
    """`approvals/<id>.json`: surfaces of an instance that were approved, the newest at the end."""

    surfaces: tuple[ApprovedSurface, ...] = ()


class GrantRecord(Record):
    """`grants/<connection UID>.json`."""

    uid: str
    owner: str
    grant: Grant


class DepartedRecord(Record):
    """`departed/<connection UID>.json`: whose calls these were, for records that come after the grant has gone."""

    uid: str
    owner: str
    namespace: str
    agent: str
    instance: str
    departed_at: datetime


class LeftVolumes(BaseModel):
    """Whose volumes an instance that was deleted had, and whether they were to stay."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instance: str
    namespace: str
    name: str
    policy: VolumePolicy


class TombstoneRecord(Record):
    """`tombstones/<kind>-<uid>.json`: an object that was deleted and must not come back by a late request."""

    kind: Literal["instance", "grant"]
    uid: str
    owner: str
    deleted_at: datetime
    volumes: Annotated[LeftVolumes | None, Field(exclude_if=lambda left: left is None)] = None
    """None where there were none, and left out of the file, so that an earlier release can read it."""


class KeyRingRecord(Record):
    """`keyring.json`: keys of the session ids."""

    keyring: KeyRing
    signing_since: datetime = datetime.fromtimestamp(0, UTC)
    """When the signing key began to sign; files of before keys were renewed do not say it."""
    retired: dict[str, datetime] = {}
    """When each key ceased to sign, by its kid. One that is not here and does not sign has yet to begin."""


class WorkerRecord(BaseModel):
    """A gateway worker that was given policy, by what identifies its process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    start_time: int
    """Clock ticks after the machine's boot, from `/proc/<pid>/stat`."""
    machine_boot: str
    """The kernel's boot id: after a reboot every earlier process is gone."""


class WorkersRecord(Record):
    """`workers.json`: every worker process that may still serve policy."""

    workers: tuple[WorkerRecord, ...] = ()
