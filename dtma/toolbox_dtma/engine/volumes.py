"""Docker volumes of instances: named and labelled after their holder, made before the container, handed to its user.

A new volume is empty and belongs to root. Containers have no capabilities, so that its directory must belong to the
very user that writes to it, root too. DTMA may be a container itself, or on another machine than the engine; so the
owner is changed through Docker's API, by unpacking a directory entry in a container that is never started (ADR 0017).
"""

from __future__ import annotations

import asyncio
import io
import posixpath
import re
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from toolbox_dtma.engine.api import Holder, Wanted
from toolbox_dtma.engine.client import DockerClient
from toolbox_dtma.engine.failures import DockerRefused, Failure, volume_failure
from toolbox_dtma.engine.models import Container, Mount, Volume
from toolbox_dtma.engine.names import LABEL_HELPER, LABEL_HOST, LABEL_UID, LABEL_VOLUME, HostNames
from toolbox_dtma.wire import InstanceReason
from toolbox_dtma.wire import Volume as DesiredVolume

log = structlog.stdlib.get_logger(__name__)

_HEAD = 16 * 1024
"""Bytes that hold the first entry of any tar of Docker's."""
_PASSWD = 1024 * 1024
"""Of a longer /etc/passwd no more is read."""
_MAX_LINKS = 8


def mounts(names: HostNames, holder: Holder, volumes: Sequence[DesiredVolume]) -> list[dict[str, Any]]:
    """`HostConfig.Mounts` of any container of the holder's. The source is always a volume of its own, never a path."""
    return [
        {
            "Type": "volume",
            "Source": names.volume(holder, volume.name),
            "Target": volume.mount_path,
            "ReadOnly": volume.read_only,
            # Copying what the image has there is not atomic: a full disk would leave a part of it, for good.
            "VolumeOptions": {"NoCopy": True},
        }
        for volume in volumes
    ]


class Volumes:
    """Makes, hands over and removes volumes."""

    def __init__(self, client: DockerClient, names: HostNames) -> None:
        self._client = client
        self._names = names
        self._handing_over = asyncio.Lock()

    async def make(self, wanted: Wanted) -> None:
        """Make those that are missing; one that the holder has already keeps its data. Raises `Failure`."""
        for volume in wanted.desired.volumes:
            name = self._names.volume(wanted.holder, volume.name)
            labels = self._names.volume_labels(wanted.holder) | {LABEL_VOLUME: volume.name}
            made_for = {LABEL_UID: wanted.desired.uid}
            try:
                found = await self._client.create_volume({"Name": name, "Driver": "local", "Labels": labels | made_for})
            except DockerRefused as refused:
                raise volume_failure(refused) from refused
            if not _is_plain(found, labels):
                raise Failure(
                    InstanceReason.VOLUME_FAILED,
                    f"The host has a volume {name} that DTMA did not make: another driver, options or labels. Its "
                    "administrator must copy or remove it.",
                )

    async def hand_over(self, instance_id: str, container: Container) -> None:
        """Let the container's user write to its volumes. Raises `Failure`.

        For a container that was never started, while no other one with these volumes runs. Only the volume's own
        directory changes hands: what is in it keeps its owner.
        """
        own = [mount for mount in container.mounts if mount.rw and mount.name.startswith(self._names.volume_prefix)]
        if not own:
            return
        try:
            async with self._handing_over:
                # What a crash left of the last one.
                await self._client.remove(self._names.helper(instance_id))
            uid = await self._uid(container)
            # A user that the image does not know: the start will fail and say so.
            foreign = await self._not_owned(container, own, uid) if uid is not None else []
            if uid is None or not foreign:
                return
            async with self._handing_over:
                await self._give(instance_id, container, foreign, uid)
            if await self._not_owned(container, own, uid):
                raise Failure(
                    InstanceReason.VOLUME_FAILED,
                    f"Docker did not let user {uid} have the container's volumes: the image has something else than a "
                    "directory at a spec.volumes[].mountPath, or the engine maps users in another way.",
                )
        except DockerRefused as refused:
            raise volume_failure(refused) from refused

    async def remove(self, instance_id: str, holder: Holder | None) -> None:
        """Remove what a hand-over cut short left behind, and all volumes of the holder. Raises `DockerRefused`."""
        await self._client.remove(self._names.helper(instance_id))
        if holder is not None:
            # Those that are no longer in its spec too.
            for volume in await self._client.volumes(self._names.volume_labels(holder)):
                await self._client.remove_volume(volume.name)

    async def sweep(self, holder: Holder, uids: frozenset[str]) -> None:
        """Remove what a call to make a volume, answered too late, left of objects that are gone.

        Raises `EngineUnavailable`; one that is in use stays.
        """
        try:
            for volume in await self._client.volumes(self._names.volume_labels(holder)):
                if volume.labels.get(LABEL_UID) in uids:
                    log.info("removing an orphaned volume", instance=holder.instance, volume=volume.name)
                    await self._client.remove_volume(volume.name)
        except DockerRefused as refused:
            log.warning("an orphaned volume stays", instance=holder.instance, error=refused.message)

    async def _not_owned(
        self, container: Container, own: Sequence[Mount], uid: int
    ) -> list[tuple[Mount, tarfile.TarInfo]]:
        found: list[tuple[Mount, tarfile.TarInfo]] = []
        for mount in own:
            entry = await self._entry(container.id, mount.destination, _HEAD)
            if entry is None:
                raise Failure(InstanceReason.VOLUME_FAILED, f"Docker shows nothing at {mount.destination}.")
            if entry[0].uid != uid:
                found.append((mount, entry[0]))
        return found

    async def _give(
        self, instance_id: str, container: Container, foreign: Sequence[tuple[Mount, tarfile.TarInfo]], uid: int
    ) -> None:
        # A container of its own: into one with a read-only root Docker unpacks nothing beside its volumes.
        name = self._names.helper(instance_id)
        places = {f"mtb-volume-{index}": found for index, found in enumerate(foreign)}
        helper = await self._client.create(
            name,
            {
                "Image": container.image,
                "Entrypoint": ["/never-started"],
                "Labels": {LABEL_HOST: self._names.host_id, LABEL_HELPER: instance_id},
                "HostConfig": {
                    "NetworkMode": "none",
                    "Mounts": [
                        {
                            "Type": "volume",
                            "Source": mount.name,
                            "Target": f"/{place}",
                            "VolumeOptions": {"NoCopy": True},
                        }
                        for place, (mount, _) in places.items()
                    ],
                },
            },
        )
        try:
            await self._client.put_archive(
                helper, "/", directories({place: entry for place, (_, entry) in places.items()}, uid)
            )
        finally:
            await self._client.remove(helper)

    async def _uid(self, container: Container) -> int | None:
        """The user that the container will run as, as the runtime finds it; none if the image does not know it."""
        user = container.config.user.partition(":")[0] or "0"
        if (uid := _number(user)) is not None:
            return uid
        entry = await self._entry(container.id, "/etc/passwd", _PASSWD)
        return None if entry is None else uid_of(user, entry[1])

    async def _entry(self, container_id: str, path: str, limit: int) -> tuple[tarfile.TarInfo, bytes] | None:
        """What is at a path, links followed within the container, and its content if it is a file."""
        for _ in range(_MAX_LINKS):
            head = await self._client.archive_head(container_id, path, limit)
            if head is None:
                return None
            entry, content = first_entry(head)
            if not entry.issym():
                return entry, content
            path = posixpath.join(posixpath.dirname(path), entry.linkname)
        return None


def _is_plain(found: Volume, labels: Mapping[str, str]) -> bool:
    # Options could make a "volume" of any path, device or share.
    return found.driver == "local" and not found.options and labels.items() <= found.labels.items()


def first_entry(head: bytes) -> tuple[tarfile.TarInfo, bytes]:
    """The first entry of a tar of which the beginning is given, and what is there of its content.

    Raises `DockerRefused` if it is none.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(head), mode="r:") as archive:
            entry = archive.next()
    except tarfile.TarError as error:
        raise DockerRefused(0, f"unexpected archive of the Docker Engine: {error}") from error
    if entry is None:
        raise DockerRefused(0, "the Docker Engine sent an empty archive")
    return entry, head[entry.offset_data : entry.offset_data + entry.size]


def directories(entries: Mapping[str, tarfile.TarInfo], uid: int) -> bytes:
    """A tar of directories that belong to `uid` and are open to it, else as the given entries."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, entry in entries.items():
            made = tarfile.TarInfo(name)
            made.type, made.mtime = tarfile.DIRTYPE, entry.mtime
            made.uid, made.gid, made.mode = uid, entry.gid, entry.mode | 0o700
            archive.addfile(made)
    return out.getvalue()


def uid_of(user: str, passwd: bytes) -> int | None:
    """The user's number in an /etc/passwd; none if it has no such user.

    >>> uid_of("node", b"root:x:0:0::/:/bin/sh\\nnode:x:1000:1000::/home/node:/bin/sh\\n")
    1000
    """
    for line in passwd.decode(errors="replace").splitlines():
        name, *fields = line.split(":")
        if name == user and len(fields) >= 2:
            return _number(fields[1])
    return None


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,10}", text) else None
