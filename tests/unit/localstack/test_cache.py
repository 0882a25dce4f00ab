"""The cache of what is expensive to get."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from localstack import cache


def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MAGIC_TOOLBOX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.root() == tmp_path / "magic-toolbox"


def test_without_xdg_the_cache_is_in_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MAGIC_TOOLBOX_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.root() == tmp_path / ".cache" / "magic-toolbox"


def test_something_is_built_once(tmp_path: Path) -> None:
    built: list[Path] = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "file").write_text("made")

    first = cache.ensure("thing", build, folder=tmp_path)
    assert cache.ensure("thing", build, folder=tmp_path) == first
    assert (first / "file").read_text() == "made"
    assert len(built) == 1


def test_a_failed_build_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("of it")
        raise RuntimeError("the network went away")

    with pytest.raises(RuntimeError):
        cache.ensure("thing", fail, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".thing.lock"]
    assert cache.ensure("thing", lambda folder: None, folder=tmp_path).is_dir()


def test_two_runs_at_once_build_once(tmp_path: Path) -> None:
    building, release = threading.Event(), threading.Event()
    built: list[str] = []

    def slow(_: Path) -> None:
        building.set()
        assert release.wait(10)
        built.append("first")

    first = threading.Thread(target=lambda: cache.ensure("thing", slow, folder=tmp_path))
    first.start()
    assert building.wait(10)
    second = threading.Thread(target=lambda: cache.ensure("thing", lambda _: built.append("second"), folder=tmp_path))
    second.start()
    release.set()
    first.join(10)
    second.join(10)
    assert built == ["first"]


def test_a_hash_tells_boundaries_apart() -> None:
    assert cache.content_hash(["ab", "c"]) != cache.content_hash(["a", "bc"])


def test_a_folders_parts_change_with_a_files_name_and_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    before = cache.content_hash(cache.folder_parts(tmp_path))
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = cache.content_hash(cache.folder_parts(tmp_path))
    (tmp_path / "b").write_text("2")
    assert len({before, renamed, cache.content_hash(cache.folder_parts(tmp_path))}) == 3


def test_versions_unused_for_a_week_are_removed_and_others_stay(tmp_path: Path) -> None:
    for name in ("thing-old", "thing-recent", "thing-now", "other-old"):
        (tmp_path / name).mkdir()
    long_ago = time.time() - cache.UNUSED_SECONDS - 60
    for name in ("thing-old", "thing-now", "other-old"):
        os.utime(tmp_path / name, (long_ago, long_ago))
    cache.prune(tmp_path, "thing-*", "thing-now")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other-old", "thing-now", "thing-recent"]
    assert (tmp_path / "thing-now").stat().st_mtime > long_ago
