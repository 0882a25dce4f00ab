"""The conformance server on stdio, in as many processes as are asked for, each started in a moment.

`python -m support.conformance.forks PATH` imports the server once and forks for everybody who passes three descriptors
over the unix socket at PATH. `LAUNCH` does that with its own, and lives as long as the fork.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

from localstack.kubernetes import REPOSITORY
from localstack.processes import Command, Supervisor
from support.conformance.server import on_pipes

LAUNCH = """
import socket, sys
with socket.socket(socket.AF_UNIX) as fork:
    fork.connect(sys.argv[1])
    socket.send_fds(fork, [b"x"], [0, 1, 2])
    fork.recv(1)
"""


def launcher(supervisor: Supervisor, path: Path) -> list[str]:
    """Starts the process that forks; the command of a server on stdio."""
    environment = {"PYTHONPATH": os.pathsep.join(str(REPOSITORY / name) for name in ("dtma", "hack", "tests"))}
    command = Command("conformance-forks", [sys.executable, "-m", __name__, str(path)], env=environment)
    supervisor.start(command).wait_until(path.exists, 30, "listening")
    return [sys.executable, "-I", "-S", "-c", LAUNCH, str(path)]


def _serve(descriptors: list[int]) -> None:
    """In a process of its own, which ends with it."""
    for standard, given in enumerate(descriptors):
        os.dup2(given, standard)
        os.close(given)
    asyncio.run(on_pipes())


def main() -> None:
    """Forks until it is ended."""
    # Nobody asks how they ended.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        aside = f"{sys.argv[1]}.new"
        listening.bind(aside)
        listening.listen(64)
        os.rename(aside, sys.argv[1])
        while True:
            asking, _ = listening.accept()
            with asking:
                _, descriptors, _, _ = socket.recv_fds(asking, 1, 3)
                if os.fork() == 0:
                    listening.close()
                    _serve(descriptors)
                    # What `asking` ends with is seen by the launcher.
                    os._exit(0)
                for given in descriptors:
                    os.close(given)


if __name__ == "__main__":
    main()
