"""Spec hash and create request."""

from __future__ import annotations

from typing import Any

import pytest

from support.engine.objects import desired_instance
from toolbox_dtma.engine.names import LABEL_GENERATION, LABEL_HOST, LABEL_SPEC_HASH, LABEL_UID, HostNames
from toolbox_dtma.engine.spec import container_config, same_spec, spec_hash
from toolbox_dtma.wire import Egress

KEY = b"k" * 32
NAMES = HostNames("7c5e4d6a-0f3b-4a53-9a43-0c1f9a5f8f11")


def config(**changes: Any) -> dict[str, Any]:
    return container_config(NAMES, "i1", "cluster", desired_instance(**changes), KEY, "net", "10.200.0.2")


@pytest.mark.parametrize(
    "change",
    [
        {"image": "registry.example.com/mcp-time:1.5"},
        {"command": ("run",)},
        {"args": ("--verbose",)},
        {"env": ({"name": "A", "value": "1"},)},
        {"limits": {"memory_bytes": 64 * 1024 * 1024}},
        {"limits": {"cpu_millis": 500}},
        {"limits": {"pids": 10}},
        {"security": {"run_as_user": 1000}},
        {"security": {"read_only_root_filesystem": False}},
        {"security": {"egress": "None"}},
        {"security": {"egress": "All"}},
        {"restart_token": "again"},
        {"volumes": ({"name": "data", "mount_path": "/data"},)},
    ],
)
def test_what_shapes_a_container_changes_the_hash(change: dict[str, Any]) -> None:
    assert spec_hash(desired_instance(**change), KEY) != spec_hash(desired_instance(), KEY)


@pytest.mark.parametrize(
    "change",
    [
        {"generation": 2},
        {"inputs_hash": "1" * 64},
        {"uid": "another"},
        {"port": 9999},
        {"path": "/other"},
        {"state": "Stopped"},
        {"expose": {"tools": {"allow": []}}},
        {"registry_credentials": ({"registry": "registry.example.com", "username": "u", "password": "p"},)},
        {"limits": {"memory_bytes": 512 * 1024 * 1024}},
        {"volume_policy": "Retain"},
        {"security": {"egress": "Internet"}},
    ],
)
def test_what_does_not_shape_a_container_keeps_the_hash(change: dict[str, Any]) -> None:
    assert spec_hash(desired_instance(**change), KEY) == spec_hash(desired_instance(), KEY)


def test_each_member_of_a_volume_shapes_the_container_and_the_order_of_volumes_does_not() -> None:
    data, cache = {"name": "data", "mount_path": "/data"}, {"name": "cache", "mount_path": "/cache"}
    different: list[tuple[dict[str, Any], ...]] = [
        (),
        (data,),
        (data | {"read_only": True},),
        (data | {"mount_path": "/other"},),
        (data | {"name": "other"},),
        (data, cache),
    ]
    assert len({spec_hash(desired_instance(volumes=volumes), KEY) for volumes in different}) == len(different)
    turned = desired_instance(volumes=(cache, data))
    assert spec_hash(turned, KEY) == spec_hash(desired_instance(volumes=(data, cache)), KEY)


def test_env_values_are_in_the_hash_but_cannot_be_guessed_without_the_key() -> None:
    one, two = (desired_instance(env=({"name": "TOKEN", "value": value},)) for value in ("one", "two"))
    assert spec_hash(one, KEY) != spec_hash(two, KEY)
    assert spec_hash(one, KEY) != spec_hash(one, b"other")


def test_the_hash_of_version_one_is_pinned() -> None:
    """A change of this value would recreate every container of every host."""
    desired = desired_instance(env=({"name": "TZ", "value": "UTC"},), limits={"pids": 64})
    assert spec_hash(desired, KEY) == "v1:f460f717d07ffff55ab73735af983404515a9c09051ea74faa01aa005424836f"


def test_a_container_is_compared_by_its_own_hash_version() -> None:
    labels = {LABEL_SPEC_HASH: spec_hash(desired_instance(), KEY)}
    assert same_spec(labels, desired_instance(generation=7), KEY)
    assert not same_spec(labels, desired_instance(args=("x",)), KEY)


def test_an_unknown_hash_version_is_compared_by_object_and_generation() -> None:
    desired = desired_instance(generation=3)
    labels = {LABEL_SPEC_HASH: "v9:whatever", LABEL_UID: desired.uid, LABEL_GENERATION: "3"}
    assert same_spec(labels, desired, KEY)
    assert not same_spec(labels, desired_instance(generation=4), KEY)


def test_a_container_is_hardened() -> None:
    host = config()["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["ReadonlyRootfs"] is True
    assert host["Memory"] == host["MemorySwap"] == 512 * 1024 * 1024
    assert (host["NanoCpus"], host["PidsLimit"], host["Init"]) == (1_000_000_000, 256, True)
    assert host["RestartPolicy"] == {"Name": "no"}
    assert "noexec" in host["Tmpfs"]["/tmp"] and "size=" in host["Tmpfs"]["/tmp"]
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}


def test_nothing_of_the_host_is_passed_through() -> None:
    request = config()
    refused = {"Binds", "Mounts", "VolumesFrom", "PortBindings", "Devices", "CapAdd", "PidMode", "UTSMode"}
    assert not refused & request["HostConfig"].keys()
    assert "ExposedPorts" not in request
    assert request["HostConfig"]["Privileged"] is False


def test_a_mount_is_a_volume_of_the_hosts_own_and_nothing_else() -> None:
    volumes = ({"name": "data", "mount_path": "/data"}, {"name": "seed", "mount_path": "/seed", "read_only": True})
    host = config(volumes=volumes)["HostConfig"]
    assert "Binds" not in host
    assert [(mount["Type"], mount["Target"], mount["ReadOnly"]) for mount in host["Mounts"]] == [
        ("volume", "/data", False),
        ("volume", "/seed", True),
    ]
    for mount in host["Mounts"]:
        assert mount["Source"].startswith(NAMES.volume_prefix) and "/" not in mount["Source"]
        assert mount["VolumeOptions"] == {"NoCopy": True}


def test_an_image_keeps_its_command_and_user_unless_told_otherwise() -> None:
    assert not {"Entrypoint", "Cmd", "User"} & config().keys()
    request = config(command=("a",), args=("b",), security={"run_as_user": 7})
    assert (request["Entrypoint"], request["Cmd"], request["User"]) == (["a"], ["b"], "7")


def test_labels_name_host_and_hash() -> None:
    labels = config()["Labels"]
    assert labels[LABEL_HOST] == NAMES.host_id
    assert labels[LABEL_SPEC_HASH].startswith("v1:")


def test_names_fit_and_are_never_the_bare_name() -> None:
    name = NAMES.container("0b7f6a52-6d0e-4c59-8f6f-2f5b1c7c3a11", "a" * 63, "v1:00", "sha256:aa")
    assert name.startswith("mtb-" + "a" * 30 + "-0b7f6a52-") and len(name) <= 63
    for egress in Egress:
        assert len(NAMES.bridge(1023, egress)) <= 15 and NAMES.bridge(1023, egress).startswith(NAMES.bridge_prefix)
    assert len(NAMES.input_chain) <= 28 and len(NAMES.forward_chain) <= 28


def test_two_instances_of_one_name_have_different_containers() -> None:
    one = NAMES.container("11111111-a", "time", "v1:00", "sha256:aa")
    two = NAMES.container("11111111-b", "time", "v1:00", "sha256:aa")
    assert one != two
