"""The Docker engine of this machine: the running one, else one that this run starts and stops."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from localstack import debian
from localstack.processes import Child, Command, Supervisor
from localstack.progress import SetupError, capture, step

SOCKET = Path("/var/run/docker.sock")


@dataclass(frozen=True, slots=True)
class Engine:
    """A reachable Docker engine."""

    version: str
    started_here: Child | None
    """The daemon, if this run started it; an engine that was there before is never stopped or restarted."""

    def docker(self, *args: str, seconds: float = 60.0, stdin: str | None = None) -> str:
        """Runs the docker command line client and gives its standard output."""
        return capture(["docker", *args], seconds=seconds, stdin=stdin)

    def has(self, image: str) -> bool:
        """Whether the engine stores an image by this name."""
        return self.docker("images", "--quiet", image).strip() != ""


def running_version(socket: Path = SOCKET) -> str | None:
    """Version of the engine behind a socket; None when nothing answers."""
    if shutil.which("docker") is None or not socket.exists():
        return None
    try:
        argv = ["docker", "--host", f"unix://{socket}", "version", "--format", "{{.Server.Version}}"]
        return capture(argv, seconds=10).strip()
    except SetupError:
        return None


def launch(supervisor: Supervisor, argv: Sequence[str] = ("dockerd",), socket: Path = SOCKET) -> Engine:
    """Starts an engine for this run and waits until it answers."""
    # It has to outlive a crash of this run by a moment: the janitor removes our containers through it first.
    token = f"engine-{supervisor.token}"
    supervisor.leave_to_janitor({"kill": token}, late=True)
    child = supervisor.start(Command("dockerd", argv, death_signal=None), token=token)
    child.wait_until(lambda: running_version(socket) is not None, 60, "answering")
    version = running_version(socket)
    if version is None:
        raise child.explain("stopped answering")
    return Engine(version, child)


def ensure(supervisor: Supervisor) -> Engine:
    """The running engine; else, as root on Debian, one installed from `docker.io` and started for this run."""
    if version := running_version():
        return Engine(version, None)
    if os.geteuid() != 0:
        raise SetupError("no Docker engine answers on /var/run/docker.sock: run this as root, or start Docker first")
    if shutil.which("dockerd") is None or shutil.which("docker") is None:
        debian.install(["docker.io", "iptables"], "Docker is not installed")
        # Where systemd runs, the package has started the engine: it is the machine's, not ours.
        if version := running_version():
            return Engine(version, None)
    with step("Docker engine"):
        return launch(supervisor)
