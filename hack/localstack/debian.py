"""Debian packages: single files out of them without installing, or installed where only that works."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from localstack import cache
from localstack.processes import base_environment
from localstack.progress import SetupError, capture, run_step, say

APT = Path("/usr/bin/apt-get")


def available() -> bool:
    """Whether this is Debian or a derivative."""
    return APT.exists()


def update() -> None:
    """Refreshes the package lists; needs root."""
    run_step("apt-get update", [str(APT), "-qq", "update"], cache.log("apt"), seconds=180)


def install(packages: Sequence[str], why: str) -> None:
    """Installs packages, as root on Debian; anywhere else the error is the line to run."""
    names = " ".join(packages)
    if not available():
        raise SetupError(f"{why}: install {names} by your package manager, then run this again")
    if os.geteuid() != 0:
        raise SetupError(f"{why}: run as root: apt-get install -y {names}")
    with cache.lock(cache.root(), "apt"):
        update()
        # Without this run's mark: a service that the package starts is the machine's, not ours to stop.
        environment = {**base_environment(), "DEBIAN_FRONTEND": "noninteractive"}
        argv = [str(APT), "-qq", "-oDPkg::Lock::Timeout=300", "install", "-y", "--no-install-recommends", *packages]
        run_step(f"installing {names}", argv, cache.log("apt"), seconds=600, env=environment)


def bootstrap(archive: Path, packages: Sequence[str], *options: str, log: str) -> None:
    """Writes the root file system of a minimal Debian with some packages: the base of an image where none is pulled."""
    if shutil.which("mmdebstrap") is None:
        install(["mmdebstrap"], "base images cannot be pulled here and have to be made from packages")
    argv = ["mmdebstrap", "--variant=minbase", f"--include={','.join(packages)}", *options, "bookworm", str(archive)]
    run_step("base image from Debian's packages", argv, cache.log(log), seconds=600)


def extract(package: str, member: str, into: Path) -> Path:
    """Downloads a package and copies one file of it to `into`; installs nothing."""
    if not available():
        raise SetupError(f"{Path(member).name} is not on the PATH: install it, then run this again")
    with tempfile.TemporaryDirectory(prefix="magic-toolbox-deb-") as name:
        work = Path(name)
        fetch = [str(APT), "-qq", "-oAPT::Sandbox::User=root", "download", package]
        try:
            capture(fetch, seconds=120, cwd=work)
        except SetupError:
            if os.geteuid() != 0:
                raise
            update()
            capture(fetch, seconds=120, cwd=work)
        (deb,) = work.glob("*.deb")
        capture(["dpkg-deb", "-x", str(deb), str(work / "tree")], seconds=60)
        target = into / Path(member).name
        shutil.copy2(work / "tree" / member, target)
        target.chmod(0o755)
        return target


def program(name: str, package: str, member: str) -> Path:
    """A program: from the PATH, else out of a Debian package, cached."""
    if found := shutil.which(name):
        return Path(found)

    def build(folder: Path) -> None:
        say(f"{name}: taking it from Debian's package {package}")
        extract(package, member, folder)

    return cache.ensure(f"debian-{package}", build) / Path(member).name
