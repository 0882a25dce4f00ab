"""The ladder by which the Kubernetes binaries are found, without a network."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pytest

from localstack import kube_binaries
from localstack.progress import SetupError


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of the test's own, and none of the user's variables."""
    monkeypatch.setenv("MAGIC_TOOLBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(kube_binaries.ASSETS_VARIABLE, raising=False)
    return tmp_path / "cache"


def programs(folder: Path, version: str, names: tuple[str, ...] = kube_binaries.PROGRAMS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(f"#!/bin/sh\necho Kubernetes v{version}\n")
        (folder / name).chmod(0o755)
    return folder


def releases(monkeypatch: pytest.MonkeyPatch, folder: Path, *, checksum: str | None = None) -> None:
    """Lets the downloads come from a folder: an envtest archive and a controller manager."""
    tree = programs(folder / "controller-tools" / "envtest", "1.30.0", ("etcd", "kube-apiserver"))
    archive = folder / "envtest.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tree, "controller-tools/envtest")
    programs(folder, "1.30.0", ("kube-controller-manager",))
    digest = hashlib.sha256((folder / "kube-controller-manager").read_bytes()).hexdigest()
    (folder / "kube-controller-manager.sha256").write_text(f"{digest}\n")
    monkeypatch.setattr(kube_binaries, "ENVTEST_URL", archive.as_uri())
    monkeypatch.setattr(kube_binaries, "MANAGER_URL", (folder / "kube-controller-manager").as_uri())
    expected = checksum or hashlib.sha512(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(kube_binaries, "ENVTEST_SHA512", {kube_binaries.architecture(): expected})


def no_debian(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_binaries.debian, "APT", Path("/nonexistent"))


def test_named_assets_come_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty_cache: Path) -> None:
    programs(empty_cache / kube_binaries.DEBIAN_BUILD, "1.20.2")
    monkeypatch.setenv(kube_binaries.ASSETS_VARIABLE, str(programs(tmp_path / "assets", "1.33.1")))
    found = kube_binaries.find()
    assert found.version == (1, 33)
    assert found.controller_manager == tmp_path / "assets" / "kube-controller-manager"


def test_named_assets_that_lack_a_program_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(kube_binaries.ASSETS_VARIABLE, str(programs(tmp_path / "assets", "1.33.1", ("kube-apiserver",))))
    with pytest.raises(SetupError, match="has no etcd"):
        kube_binaries.find()


def test_envtest_assets_get_the_controller_manager_that_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    releases(monkeypatch, tmp_path / "releases")
    assets = programs(tmp_path / "assets", "1.30.0", ("etcd", "kube-apiserver"))
    monkeypatch.setenv(kube_binaries.ASSETS_VARIABLE, str(assets))
    found = kube_binaries.find()
    assert found.apiserver.parent == assets
    assert found.controller_manager.parent.name == "kube-controller-manager-1.30.0"
    assert found.controller_manager.stat().st_mode & 0o111


def test_the_cache_beats_a_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty_cache: Path) -> None:
    releases(monkeypatch, tmp_path / "releases")
    programs(empty_cache / kube_binaries.DEBIAN_BUILD, "1.20.2")
    assert kube_binaries.find().version == (1, 20)


def test_a_download_is_unpacked_into_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty_cache: Path
) -> None:
    releases(monkeypatch, tmp_path / "releases")
    found = kube_binaries.find()
    assert found.version == (1, 30)
    names = sorted(path.name for path in (empty_cache / f"kubernetes-{kube_binaries.RELEASE}").iterdir())
    assert names == ["etcd", "kube-apiserver", "kube-controller-manager"]


def test_a_download_with_another_checksum_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty_cache: Path
) -> None:
    releases(monkeypatch, tmp_path / "releases", checksum="0" * 128)
    no_debian(monkeypatch)
    with pytest.raises(SetupError, match=kube_binaries.ASSETS_VARIABLE):
        kube_binaries.find()
    assert not (empty_cache / f"kubernetes-{kube_binaries.RELEASE}").exists()


def test_without_network_and_debian_the_message_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kube_binaries, "ENVTEST_URL", (tmp_path / "missing").as_uri())
    no_debian(monkeypatch)
    with pytest.raises(SetupError, match="MAGIC_TOOLBOX_KUBECONFIG"):
        kube_binaries.find()
