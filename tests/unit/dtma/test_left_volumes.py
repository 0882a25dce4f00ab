"""Which volumes count as ordered away, from the tombstones of those who had them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from support.dtma.host import instance_body
from toolbox_dtma.engine.api import Holder
from toolbox_dtma.management.volumes import left_by, removal_of, spent_by, spent_volumes
from toolbox_dtma.state.records import InstanceRecord, LeftVolumes, TombstoneRecord
from toolbox_dtma.wire import DesiredInstance, VolumePolicy

HOLDER = Holder("i-1", "cluster-a", "team-a", "time")
DATA = [{"name": "data", "mountPath": "/data"}]


def stone(uid: str, policy: VolumePolicy | None, instance: str = "i-1", owner: str = "cluster-a") -> TombstoneRecord:
    left = LeftVolumes(instance=instance, namespace="team-a", name="time", policy=policy) if policy else None
    return TombstoneRecord(kind="instance", uid=uid, owner=owner, deleted_at=datetime.now(UTC), volumes=left)


def record(**changes: object) -> InstanceRecord:
    return InstanceRecord(id="i-1", owner="cluster-a", desired=DesiredInstance.model_validate(instance_body(**changes)))


@pytest.mark.parametrize("first", VolumePolicy)
@pytest.mark.parametrize("second", VolumePolicy)
def test_one_order_to_keep_outweighs_all_to_remove(first: VolumePolicy, second: VolumePolicy) -> None:
    spent = spent_volumes([stone("uid-1", first), stone("uid-2", second)])
    both_removed = first is second is VolumePolicy.DELETE
    assert spent == ({HOLDER: frozenset({"uid-1", "uid-2"})} if both_removed else {})


def test_an_order_is_about_one_holder_only() -> None:
    stones = [
        stone("uid-1", VolumePolicy.DELETE),
        stone("uid-2", VolumePolicy.RETAIN, instance="i-2"),
        stone("uid-3", VolumePolicy.RETAIN, owner="cluster-b"),
        stone("uid-4", None),
    ]
    assert spent_volumes(stones) == {HOLDER: frozenset({"uid-1"})}


def test_an_order_is_remembered_where_there_were_volumes_or_any_were_to_stay() -> None:
    assert left_by(record()) is None
    for changes, policy in (
        ({"volumes": DATA}, VolumePolicy.DELETE),
        ({"volumes": DATA, "volumePolicy": "Retain"}, VolumePolicy.RETAIN),
        ({"volumePolicy": "Retain"}, VolumePolicy.RETAIN),
    ):
        assert left_by(record(**changes)) == LeftVolumes(instance="i-1", namespace="team-a", name="time", policy=policy)


def test_the_last_word_about_volumes_wins_and_without_one_the_spec_does() -> None:
    kept, removed = record(volumePolicy="Retain"), record()
    assert spent_by(removal_of(kept, None)) is None
    assert spent_by(removal_of(kept, VolumePolicy.DELETE)) == HOLDER
    assert spent_by(removal_of(removed, None)) == HOLDER
    assert spent_by(removal_of(removed, VolumePolicy.RETAIN)) is None


def test_files_of_objects_without_volumes_are_as_an_earlier_release_wrote_them() -> None:
    assert stone("uid-1", None).model_dump().keys() == {"version", "kind", "uid", "owner", "deleted_at"}
    assert not record().model_dump()["desired"].keys() & {"volumes", "volume_policy"}
