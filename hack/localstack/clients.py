"""MCP clients and servers of others that tests talk to, in environments of their own: `tests/clients/NAME`.

Their dependencies contradict ours and each other's, so none of them is in the virtual environment.
"""

from __future__ import annotations

import sys
from pathlib import Path

from localstack import cache, node
from localstack.kubernetes import REPOSITORY
from localstack.progress import run_step

LOCKS = REPOSITORY / "tests" / "clients"
PYTHON_NAMES = ("fastmcp", "mcp1")
"""Environments of Python packages: a `requirements.txt` with hashes."""

BENCH_NAMES = ("contextforge",)
"""The same for what only benchmarks need: made when they ask for it."""

NODE_NAME = "node"
"""The environment of npm packages: a `package-lock.json` with hashes."""


def python(name: str) -> Path:
    """The interpreter of a Python environment, made when it is not in the cache."""
    lock = LOCKS / name / "requirements.txt"
    slot = f"client-{name}-{cache.content_hash([sys.version, sys.base_prefix, lock.read_bytes()])}"
    log = cache.log(f"client-{name}")

    def build(folder: Path) -> None:
        run_step(
            f"environment of {name}", [sys.executable, "-m", "venv", "--without-pip", str(folder)], log, seconds=60
        )
        argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(folder / "bin" / "python")]
        argv += ["install", "--require-hashes", "--no-deps", "--only-binary=:all:", "--progress-bar=off"]
        run_step(f"packages of {name}", [*argv, "-r", str(lock)], log, seconds=300)

    found = cache.ensure(slot, build)
    cache.prune(cache.root(), f"client-{name}-*", slot)
    return found / "bin" / "python"


def node_modules() -> Path:
    """The `node_modules` of the npm environment, fetched when it is not in the cache."""
    source = LOCKS / NODE_NAME
    slot = f"client-{NODE_NAME}-{cache.content_hash((source / name).read_bytes() for name in node.LOCKED)}"

    def build(folder: Path) -> None:
        node.install(source, folder, f"packages of {NODE_NAME}", cache.log(f"client-{NODE_NAME}"))

    found = cache.ensure(slot, build)
    cache.prune(cache.root(), f"client-{NODE_NAME}-*", slot)
    return found / "node_modules"


def prepare() -> None:
    """Everything, into the cache."""
    node_modules()
    for name in PYTHON_NAMES:
        python(name)
