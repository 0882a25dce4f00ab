"""A folder with our wheel and the wheels of one extra: what an image or a host is installed from, without a network."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

from delivery import lock
from localstack import cache
from localstack.kubernetes import REPOSITORY
from localstack.progress import run_step

PYTHON = "3.11"
"""The Python of the images; the wheels fit it and this machine's architecture."""

_SOURCES = ("operator", "dtma", "crds")
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def build_own(into: Path) -> Path:
    """Builds our wheel; with `hatchling` from the environment if it is there, else from the package index."""
    # A copy: the build must not see what lies about in a work tree, nor leave anything there.
    with tempfile.TemporaryDirectory(prefix="magic-toolbox-wheel-") as name:
        copy = Path(name) / "source"
        copy.mkdir()
        for folder in _SOURCES:
            shutil.copytree(REPOSITORY / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy2(REPOSITORY / file, copy / file)
        argv = [*_PIP, "wheel", "--no-deps", "--progress-bar=off", "--wheel-dir", str(into)]
        if importlib.util.find_spec("hatchling") is not None:
            argv.append("--no-build-isolation")
        # The same sources give the same wheel, whenever they are built.
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "1577836800"}
        run_step("wheel of Magic Toolbox", [*argv, str(copy)], cache.log("wheel"), seconds=180, env=environment)
    (wheel,) = into.glob("magic_toolbox-*.whl")
    return wheel


def _download(extra: str) -> Path:
    """The locked packages of an extra, cached by what the lock says."""
    text = lock.requirements(extra)

    def build(folder: Path) -> None:
        listing = folder / "requirements.txt"
        listing.write_text(text)
        argv = [*_PIP, "download", "--require-hashes", "--no-deps", "--only-binary=:all:", f"--python-version={PYTHON}"]
        argv += ["--progress-bar=off", "-r", str(listing), "-d", str(folder / "wheels")]
        run_step(f"packages of {extra}", argv, cache.log(f"packages-{extra}"), seconds=300)

    slot = f"wheels-{extra}-{cache.content_hash([PYTHON, text])}"
    found = cache.ensure(slot, build)
    cache.prune(cache.root(), f"wheels-{extra}-*", slot)
    return found


def assemble(extra: str, into: Path) -> None:
    """Fills `into` with `wheels/` of others and `own/` with ours; `requirements.txt` and `own.txt` pin them by hash."""
    packages = _download(extra)
    shutil.copytree(packages / "wheels", into / "wheels")
    shutil.copy2(packages / "requirements.txt", into / "requirements.txt")
    (into / "own").mkdir()
    own = build_own(into / "own")
    version = own.name.split("-")[1]
    digest = hashlib.sha256(own.read_bytes()).hexdigest()
    (into / "own.txt").write_text(f"magic-toolbox=={version} --hash=sha256:{digest}\n")
