"""Names of volumes, and what is read and written of archives to hand them over."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace

import pytest

from toolbox_dtma.engine.api import Holder
from toolbox_dtma.engine.failures import DockerRefused
from toolbox_dtma.engine.names import HostNames
from toolbox_dtma.engine.volumes import directories, first_entry, uid_of

NAMES = HostNames("7c5e4d6a-0f3b-4a53-9a43-0c1f9a5f8f11")
HOLDER = Holder("0b7f6a52-6d0e-4c59-8f6f-2f5b1c7c3a11", "cluster", "team-a", "time")
PASSWD = b"root:x:0:0::/:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\nbroken\nodd:x:ten:1::/:\n" + (
    b"long:x:" + b"9" * 5000 + b":1::/:\n"
)


def archive(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for entry, content in entries:
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize("member", ["instance", "owner", "namespace", "name"])
def test_no_two_holders_have_a_volume_or_a_set_of_labels_in_common(member: str) -> None:
    other = replace(HOLDER, **{member: "another"})
    assert NAMES.volume(other, "data") != NAMES.volume(HOLDER, "data")
    assert NAMES.volume_labels(other) != NAMES.volume_labels(HOLDER)


def test_volumes_of_one_holder_and_of_two_hosts_have_names_of_their_own() -> None:
    names = {NAMES.volume(HOLDER, "data"), NAMES.volume(HOLDER, "cache"), HostNames("other").volume(HOLDER, "data")}
    assert len(names) == 3
    # The parts are not merely joined: where one ends is part of the name.
    split = NAMES.volume(replace(HOLDER, namespace="team", name="a-time"), "data")
    assert split != NAMES.volume(replace(HOLDER, namespace="team-a", name="time"), "data")


def test_the_longest_name_is_one_that_docker_takes() -> None:
    name = NAMES.volume(replace(HOLDER, namespace="n" * 63, name="a" * 63), "v" * 63)
    assert len(name) <= 128 and name.startswith(f"{NAMES.volume_prefix}{'a' * 30}-{'v' * 30}-")


def test_the_first_entry_is_read_from_the_beginning_of_an_endless_archive() -> None:
    root, child = tarfile.TarInfo("data"), tarfile.TarInfo("data/big")
    root.type, root.uid, root.mode = tarfile.DIRTYPE, 3_000_000_000, 0o2750
    whole = archive((root, b""), (child, bytes(100_000)))
    entry, content = first_entry(whole[:4096])
    assert (entry.isdir(), entry.uid, entry.mode, content) == (True, 3_000_000_000, 0o2750, b"")


def test_a_file_that_is_cut_is_read_as_far_as_it_came() -> None:
    whole = archive((tarfile.TarInfo("passwd"), b"x" * 5000))
    assert first_entry(whole[:2048])[1] == b"x" * 1536


@pytest.mark.parametrize("head", [b"", bytes(1024), b"<html>" * 200])
def test_what_is_no_archive_is_a_refusal(head: bytes) -> None:
    with pytest.raises(DockerRefused, match="archive"):
        first_entry(head)


def test_a_directory_changes_hands_and_nothing_else_of_it() -> None:
    found = tarfile.TarInfo("whatever")
    found.uid, found.gid, found.mode, found.mtime = 0, 999, 0o2055, 1234.0
    with tarfile.open(fileobj=io.BytesIO(directories({"a": found, "b": found}, 2_147_483_647))) as made:
        entries = made.getmembers()
    assert [entry.name for entry in entries] == ["a", "b"]
    for entry in entries:
        assert entry.isdir()
        assert (entry.uid, entry.gid, entry.mode, entry.mtime) == (2_147_483_647, 999, 0o2755, 1234)


@pytest.mark.parametrize(
    ("user", "uid"), [("root", 0), ("node", 1000), ("nobody", None), ("odd", None), ("long", None), ("", None)]
)
def test_a_name_is_the_number_that_the_image_gives_it(user: str, uid: int | None) -> None:
    assert uid_of(user, PASSWD) == uid


def test_names_in_another_encoding_are_in_nobodys_way() -> None:
    assert uid_of("node", b"\xff\xfe:x:1:1\n" + PASSWD) == 1000
