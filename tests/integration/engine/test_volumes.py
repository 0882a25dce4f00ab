"""Volumes on the real engine: what survives, who may write, what goes and what stays."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from support.engine.host import EngineHost, eventually, is_running
from support.engine.images import derived_image, docker
from toolbox_dtma.engine.api import EngineUnavailable
from toolbox_dtma.engine.names import LABEL_HELPER, LABEL_HOST, LABEL_INSTANCE, LABEL_UID
from toolbox_dtma.wire import InstancePhase, InstanceReason

pytestmark = pytest.mark.integration

DATA = {"name": "data", "mount_path": "/data"}


def write(host: EngineHost, instance: str, path: str, text: str) -> str:
    """Write a file inside the container; what went wrong, or nothing."""
    return host.execute(instance, "sh", "-c", f"echo {text} > {path}")


def owner_of(host: EngineHost, instance: str, path: str) -> str:
    """The number of the user that a directory belongs to."""
    return host.execute(instance, "ls", "-dn", path).split()[2]


async def replaced(host: EngineHost, instance: str, generation: int, **changes: Any) -> None:
    """Edit the instance, and wait for the container of the edit."""
    host.want(instance, generation=generation, **changes)
    await host.until(instance, lambda seen: is_running(seen) and seen.generation == generation, f"edit {generation}")


async def test_data_survives_edits_stops_kills_and_restarts_of_dtma(host: EngineHost, instance: str) -> None:
    host.want(instance, volumes=(DATA,))
    first = await host.running(instance)
    assert write(host, instance, "/data/file", "kept") == ""

    await replaced(host, instance, 2, volumes=(DATA,), env=({"name": "N", "value": "2"},))
    edited = host.last(instance)
    assert edited is not None and edited.container is not None and first.container is not None
    assert edited.container.id != first.container.id
    assert host.execute(instance, "cat", "/data/file") == "kept"

    host.want(instance, generation=3, state="Stopped", volumes=(DATA,))
    await host.until(instance, lambda seen: seen.phase is InstancePhase.STOPPED, "stopped")
    await replaced(host, instance, 4, volumes=(DATA,))
    assert host.execute(instance, "cat", "/data/file") == "kept"

    before = await host.running(instance)
    docker("kill", *host.ids())
    await host.until(instance, lambda seen: is_running(seen) and seen.incarnation != before.incarnation, "restarted")
    assert host.execute(instance, "cat", "/data/file") == "kept"

    await host.stop()
    docker("rm", "--force", "--volumes", *host.ids())
    host.start()
    host.want(instance, generation=5, volumes=(DATA,))
    await host.running(instance)
    assert host.execute(instance, "cat", "/data/file") == "kept"
    assert len(host.volumes()) == 1


async def test_a_new_volume_is_empty_whatever_the_image_has_there(host: EngineHost, instance: str) -> None:
    host.want(instance, volumes=({"name": "web", "mount_path": "/www"}, {"name": "etc", "mount_path": "/etc/app/deep"}))
    await host.running(instance)
    assert host.execute(instance, "ls", "-A", "/www") == ""
    assert write(host, instance, "/etc/app/deep/file", "x") == "", "a path that the image does not have"


async def test_what_is_read_only_can_be_read_only(host: EngineHost, instance: str) -> None:
    host.want(instance, volumes=(DATA,))
    await host.running(instance)
    assert write(host, instance, "/data/file", "kept") == ""
    await replaced(host, instance, 2, volumes=(DATA | {"read_only": True},))
    assert host.execute(instance, "cat", "/data/file") == "kept"
    assert "exit" in write(host, instance, "/data/file", "changed")
    assert host.execute(instance, "cat", "/data/file") == "kept"
    await replaced(host, instance, 3, volumes=(DATA,), security={"run_as_user": 1234})
    assert owner_of(host, instance, "/data") == "1234"


USERS = {
    "root": ((), None, "0"),
    "a number in the spec": ((), 12345, "12345"),
    "a number in the image": (("USER 2345:2346",), None, "2345"),
    "a name in the image": (("USER nobody",), None, "65534"),
    "a name behind links": (
        ("RUN mkdir /real && cat /etc/passwd > /real/pw && busybox ln -sf ../real/pw /etc/passwd", "USER nobody"),
        None,
        "65534",
    ),
    "a number in the spec before a name in the image": (("USER nobody",), 7, "7"),
    "the greatest there is": ((), 2_147_483_647, "2147483647"),
    "root, where the image gave the directory away": (
        ("RUN mkdir /data && touch /data/file && busybox chown 99 /data && busybox chmod 0500 /data",),
        None,
        "0",
    ),
}


@pytest.mark.parametrize("read_only_root", [True, False])
@pytest.mark.parametrize("case", USERS, ids=str)
async def test_whoever_the_server_runs_as_can_write(
    host: EngineHost, instance: str, case: str, read_only_root: bool
) -> None:
    lines, run_as_user, expected = USERS[case]
    image = derived_image(host.image, *lines) if lines else host.image
    security = {"run_as_user": run_as_user, "read_only_root_filesystem": read_only_root}
    host.want(instance, image=image, security=security, volumes=(DATA, {"name": "more", "mount_path": "/var/lib/more"}))
    await host.running(instance)
    assert f"uid={expected}" in host.execute(instance, "id")
    for folder in ("/data", "/var/lib/more"):
        assert owner_of(host, instance, folder) == expected
        assert write(host, instance, f"{folder}/file", "mine") == ""
        assert host.execute(instance, "mkdir", f"{folder}/folder") == ""
    status = host.execute(instance, "cat", "/proc/self/status")
    assert "CapEff:\t0000000000000000" in status
    assert host.ids(LABEL_HELPER) == [], "nothing is left of the hand-over"


async def test_another_user_gets_the_directory_and_what_is_in_it_keeps_its_owner(
    host: EngineHost, instance: str
) -> None:
    host.want(instance, volumes=(DATA,), security={"run_as_user": 1001})
    await host.running(instance)
    assert write(host, instance, "/data/old", "theirs") == ""
    await replaced(host, instance, 2, volumes=(DATA,), security={"run_as_user": 1002})
    assert (owner_of(host, instance, "/data"), owner_of(host, instance, "/data/old")) == ("1002", "1001")
    assert write(host, instance, "/data/new", "mine") == ""
    assert host.execute(instance, "cat", "/data/old") == "theirs"


async def test_volumes_go_with_their_instance_those_it_no_longer_names_too(host: EngineHost, instance: str) -> None:
    other = str(uuid.uuid4())
    both = (DATA, {"name": "cache", "mount_path": "/cache"})
    host.want(instance, volumes=both)
    host.want(other, volumes=both)
    await asyncio.gather(host.running(instance), host.running(other))
    assert write(host, instance, "/cache/file", "kept") == ""
    await replaced(host, instance, 2, volumes=(DATA,))
    assert "exit" in host.execute(instance, "ls", "/cache")
    assert len(host.volumes(f"{LABEL_INSTANCE}={instance}")) == 2, "an edit removes no data"
    await replaced(host, instance, 3, volumes=both)
    assert host.execute(instance, "cat", "/cache/file") == "kept"
    await replaced(host, instance, 4, volumes=(DATA,))

    holder = host.wanted(instance).holder
    await host.engine.remove(instance, volumes_of=holder)
    assert host.volumes(f"{LABEL_INSTANCE}={instance}") == [] and host.inspect(instance) == []
    assert len(host.volumes(f"{LABEL_INSTANCE}={other}")) == 2
    await host.engine.remove(instance, volumes_of=holder)


async def test_what_is_retained_is_found_again_by_the_same_object_and_by_nobody_else(
    host: EngineHost, instance: str
) -> None:
    host.want(instance, volumes=(DATA,))
    await host.running(instance)
    assert write(host, instance, "/data/file", "secret") == ""
    await host.engine.remove(instance)
    (retained,) = host.volumes()

    strangers = ({"owner": "cluster-2"}, {"namespace": "other"}, {"name": "other"})
    for generation, stranger in enumerate(strangers, start=2):
        await replaced(host, instance, generation, volumes=(DATA,), **stranger)
        assert host.execute(instance, "ls", "-A", "/data") == ""
        assert len(host.volumes()) == 2
        await host.engine.remove(instance, volumes_of=host.wanted(instance, **stranger).holder)
        assert host.volumes() == [retained]

    await replaced(host, instance, 9, uid="another-uid", volumes=(DATA,))
    assert host.execute(instance, "cat", "/data/file") == "secret"
    assert host.volumes() == [retained]
    await host.engine.remove(instance, volumes_of=host.wanted(instance).holder)
    assert host.volumes() == []


async def test_two_instances_cannot_see_each_others_volumes(host: EngineHost, instance: str) -> None:
    other = str(uuid.uuid4())
    for key in (instance, other):
        host.want(key, volumes=(DATA,))
    await asyncio.gather(host.running(instance), host.running(other))
    assert write(host, instance, "/data/file", "mine") == ""
    assert host.execute(other, "ls", "-A", "/data") == ""
    mounted = {mount["Name"] for key in (instance, other) for mount in host.inspect(key)[0]["Mounts"]}
    assert mounted == set(host.volumes()) and len(mounted) == 2
    listed = host.execute(other, "cat", "/proc/self/mountinfo")
    (mine,) = host.inspect(instance)[0]["Mounts"]
    assert mine["Name"] not in listed and mine["Source"] not in listed


async def test_a_hand_over_that_a_crash_cut_short_is_made_good(host: EngineHost, instance: str) -> None:
    await host.stop()
    labels = (f"{LABEL_HOST}={host.host_id}", f"{LABEL_HELPER}={instance}")
    leftover = ("create", "--name", host.names.helper(instance), *(f"--label={label}" for label in labels), host.image)
    docker(*leftover)
    host.start()
    host.want(instance, volumes=(DATA,), security={"run_as_user": 1001})
    await host.running(instance)
    assert owner_of(host, instance, "/data") == "1001"
    assert host.ids(LABEL_HELPER) == []

    docker(*leftover)
    await replaced(host, instance, 2, volumes=(DATA,), security={"run_as_user": 1001}, args=("again",))
    assert host.ids(LABEL_HELPER) == [], "also where nothing has to change hands"

    docker(*leftover)
    await host.engine.remove(instance, volumes_of=host.wanted(instance).holder)
    assert host.ids() == [] and host.volumes() == []

    docker(*leftover)
    assert await host.engine.sweep(frozenset()) == (instance,)
    assert host.ids() == []


async def test_a_volume_of_that_name_that_is_not_ours_is_never_mounted(host: EngineHost, instance: str) -> None:
    wanted = host.wanted(instance, volumes=(DATA,))
    name = host.names.volume(wanted.holder, "data")
    options = ("--opt", "type=none", "--opt", "o=bind", "--opt", "device=/etc")
    labels = [f"--label={key}={value}" for key, value in host.names.volume_labels(wanted.holder).items()]
    docker("volume", "create", *options, *labels, "--label=magictoolbox.dev/volume=data", name)
    host.want(instance, volumes=(DATA,))
    refused = await host.until(instance, lambda seen: seen.phase is InstancePhase.ERROR, "refused")
    assert refused.reason is InstanceReason.VOLUME_FAILED and name in refused.message
    assert host.ids() == []
    docker("volume", "rm", name)
    await host.running(instance)


@pytest.mark.parametrize("read_only", [False, True])
async def test_a_path_at_which_the_image_has_a_file_is_told_of(
    host: EngineHost, instance: str, read_only: bool
) -> None:
    host.want(instance, volumes=({"name": "data", "mount_path": "/etc/passwd", "read_only": read_only},))
    refused = await host.until(instance, lambda seen: seen.phase is InstancePhase.ERROR, "refused")
    assert refused.reason is InstanceReason.VOLUME_FAILED
    assert "choose another mountPath" in refused.message
    await replaced(host, instance, 2, volumes=(DATA,))


async def test_a_volume_that_somebody_elses_container_uses_holds_the_removal_up(
    host: EngineHost, instance: str
) -> None:
    host.want(instance, volumes=(DATA,))
    await host.running(instance)
    (volume,) = host.volumes()
    stranger = docker("create", "--volume", f"{volume}:/theirs", host.image)
    holder = host.wanted(instance).holder
    try:
        with pytest.raises(EngineUnavailable, match="in use"):
            await host.engine.remove(instance, volumes_of=holder)
        assert host.inspect(instance) == [], "all else is gone"
    finally:
        docker("rm", "--force", stranger)
    await eventually(lambda: not host.volumes(), lambda: f"gone by itself: {host.volumes()}")


async def test_a_sweep_takes_a_volume_only_on_an_order_for_whom_it_was_made(host: EngineHost, instance: str) -> None:
    host.want(instance, uid="uid-1", volumes=(DATA,))
    await host.running(instance)
    await host.engine.remove(instance)
    (volume,) = host.volumes(f"{LABEL_UID}=uid-1")
    holder = host.wanted(instance).holder
    nothing = frozenset[str]()

    assert await host.engine.sweep(nothing) == ()
    await host.engine.sweep(nothing, {host.wanted(instance, namespace="other").holder: frozenset({"uid-1"})})
    await host.engine.sweep(nothing, {holder: frozenset({"uid-2"})})
    await host.engine.sweep(frozenset({instance}), {holder: frozenset({"uid-1"})})
    assert host.volumes() == [volume], "silence is no order"

    stranger = docker("create", "--volume", f"{volume}:/theirs", host.image)
    await host.engine.sweep(nothing, {holder: frozenset({"uid-1"})})
    docker("rm", "--force", stranger)
    assert host.volumes() == [volume], "one in use stays"

    await host.engine.sweep(nothing, {holder: frozenset({"uid-1"})})
    assert host.volumes() == []
