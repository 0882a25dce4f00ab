"""Where the Kubernetes control plane's binaries come from: a ladder, first rung that holds."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localstack import cache, debian
from localstack.progress import SetupError, capture, run_step, say, step

ASSETS_VARIABLE = "KUBEBUILDER_ASSETS"
RELEASE = "1.30.0"
ENVTEST_URL = (
    "https://github.com/kubernetes-sigs/controller-tools/releases/download/envtest-v{v}/envtest-v{v}-linux-{a}.tar.gz"
)
ENVTEST_SHA512 = {
    "amd64": "d53870e1a6c9b3b50366489a9387f4e254c664955e932e3e25e2088bb437b270"
    "bfab75d241b50849233f9a34bb1f08b41567ebb81ea29352104ae0f5b1cb9e88",
    "arm64": "140748efaa394598f50175e809cd53896881ed046d93ebdfbd5442100f68b3d8"
    "d51fd22f8cf1ae06a6e43473897b789df0db6e0ae6c45c8320b000d5ee900005",
}
MANAGER_URL = "https://dl.k8s.io/release/v{v}/bin/linux/{a}/kube-controller-manager"
DEBIAN_BUILD = "kubernetes-debian-1.20.2"
CONNECT_SECONDS = 4.0
"""How long a download may take to answer before the next rung is tried."""

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager")


@dataclass(frozen=True, slots=True)
class Binaries:
    """Paths of the control plane's programs, and the API server's version."""

    etcd: Path
    apiserver: Path
    controller_manager: Path
    version: tuple[int, int]


def parse_version(text: str) -> tuple[int, int, int]:
    """Reads `Kubernetes v1.30.0`."""
    match = re.search(r"v(\d+)\.(\d+)\.(\d+)", text)
    if match is None:
        raise SetupError(f"no Kubernetes version in {text!r}")
    return int(match[1]), int(match[2]), int(match[3])


def architecture() -> str:
    """The machine's architecture as release files name it."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _binaries(folder: Path, manager: Path | None = None) -> Binaries:
    major, minor, _ = parse_version(capture([str(folder / "kube-apiserver"), "--version"]))
    return Binaries(
        etcd=folder / "etcd",
        apiserver=folder / "kube-apiserver",
        controller_manager=manager or folder / "kube-controller-manager",
        version=(major, minor),
    )


def download(url: str, target: Path, checksum: Callable[[], tuple[str, str]]) -> None:
    """Fetches a file and compares its digest: `checksum` gives (algorithm, expected hex digits)."""
    try:
        with (
            step(f"downloading {url.rsplit('/', 1)[1]}"),
            urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as answer,
        ):
            with target.open("wb") as file:
                shutil.copyfileobj(answer, file, 1 << 20)
        algorithm, expected = checksum()
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise SetupError(f"{url}: {error}") from error
    with target.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected:
        raise SetupError(f"{url}: the {algorithm} checksum is {found}, expected {expected}; not used")


def _published_sha256(url: str) -> Callable[[], tuple[str, str]]:
    def fetch() -> tuple[str, str]:
        with urllib.request.urlopen(f"{url}.sha256", timeout=CONNECT_SECONDS) as answer:
            return "sha256", answer.read(200).decode().split()[0]

    return fetch


def _download_manager(folder: Path, version: str) -> Path:
    url = MANAGER_URL.format(v=version, a=architecture())
    target = folder / "kube-controller-manager"
    download(url, target, _published_sha256(url))
    target.chmod(0o755)
    return target


def _manager_beside(assets: Path) -> Path:
    """Envtest assets have no controller manager: the one that fits, downloaded once."""
    beside = assets / "kube-controller-manager"
    if beside.exists():
        return beside
    version = ".".join(str(part) for part in parse_version(capture([str(assets / "kube-apiserver"), "--version"])))
    name = f"kube-controller-manager-{version}"
    try:
        return cache.ensure(name, lambda folder: void(_download_manager(folder, version))) / beside.name
    except SetupError as error:
        raise SetupError(
            f"{ASSETS_VARIABLE}={assets} has no kube-controller-manager (namespaces would never finish deleting) "
            f"and it cannot be downloaded ({error}): put one of version {version} there, or unset the variable"
        ) from error


def void(_: object) -> None:
    """Drops a value where a callback must return nothing."""


def _download_release(folder: Path) -> None:
    arch = architecture()
    if arch not in ENVTEST_SHA512:
        raise SetupError(f"no pinned checksum for {arch}")
    archive = folder / "envtest.tar.gz"
    download(ENVTEST_URL.format(v=RELEASE, a=arch), archive, lambda: ("sha512", ENVTEST_SHA512[arch]))
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            name = Path(member.name).name
            if name in ("etcd", "kube-apiserver", "kubectl") and (source := tar.extractfile(member)) is not None:
                with (folder / name).open("wb") as file:
                    shutil.copyfileobj(source, file)
                (folder / name).chmod(0o755)
    archive.unlink()
    _download_manager(folder, RELEASE)


def _build_from_debian(folder: Path) -> None:
    if missing := [tool for tool in ("dpkg-source", "make", "gcc", "rsync") if shutil.which(tool) is None]:
        debian.install(["dpkg-dev", "make", "gcc", "libc6-dev", "rsync"], f"to build Kubernetes ({', '.join(missing)})")
    script = Path(__file__).parent.parent / "build-kubernetes.sh"
    log = cache.log("build-kubernetes")
    log.unlink(missing_ok=True)
    run_step("building Kubernetes from Debian's sources", [str(script), str(folder)], log, seconds=1800)


def find() -> Binaries:
    """The binaries: `$KUBEBUILDER_ASSETS`, else the cache, else a download, else built from Debian's sources."""
    if assets := os.environ.get(ASSETS_VARIABLE):
        folder = Path(assets)
        if missing := [name for name in PROGRAMS[:2] if not (folder / name).exists()]:
            raise SetupError(f"{ASSETS_VARIABLE}={assets} has no {' and no '.join(missing)}")
        return _binaries(folder, _manager_beside(folder))
    release = f"kubernetes-{RELEASE}"
    for name in (release, DEBIAN_BUILD):
        if all((cache.root() / name / program).exists() for program in PROGRAMS):
            return _binaries(cache.root() / name)
    try:
        return _binaries(cache.ensure(release, _download_release))
    except SetupError as error:
        say(f"no download of Kubernetes {RELEASE} ({error})")
    if not debian.available():
        raise SetupError(
            f"Kubernetes cannot be downloaded here, and this is not Debian: set {ASSETS_VARIABLE} to a folder with "
            "etcd, kube-apiserver and kube-controller-manager, or MAGIC_TOOLBOX_KUBECONFIG to a cluster for tests"
        )
    return _binaries(cache.ensure(DEBIAN_BUILD, _build_from_debian))
