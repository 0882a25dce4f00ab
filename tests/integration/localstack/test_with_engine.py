"""A command for which an engine is there."""

from __future__ import annotations

import signal
import subprocess
import sys
from subprocess import PIPE

import pytest

from localstack.docker import Engine
from localstack.kubernetes import REPOSITORY
from localstack.processes import base_environment

pytestmark = pytest.mark.integration

PROGRAM = [sys.executable, "-m", "localstack.with_engine"]
ENVIRONMENT = {
    **base_environment(),
    "PYTHONPATH": ":".join(str(REPOSITORY / name) for name in ("operator", "dtma", "hack")),
}


def started(*argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*PROGRAM, *argv], env=ENVIRONMENT, stdout=PIPE, stderr=PIPE, text=True)


def test_the_exit_code_is_the_commands_and_the_engine_answers_it(docker_engine: Engine) -> None:
    with started("sh", "-c", "docker version --format '{{.Server.Version}}'; exit 7") as process:
        output, _ = process.communicate(timeout=60)
    assert (process.returncode, output.strip()) == (7, docker_engine.version)


def test_sigterm_ends_the_command(docker_engine: Engine) -> None:
    with started("sh", "-c", "echo there; exec sleep 100") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


def test_sigterm_that_comes_as_soon_as_the_command_is_there_ends_it_too() -> None:
    program = "import sys\nfrom localstack.with_engine import run\nsys.exit(run(sys.argv[1:]))"
    at_once = "kill -TERM $PPID; exec sleep 60"
    for _ in range(10):
        done = subprocess.run([sys.executable, "-c", program, "sh", "-c", at_once], env=ENVIRONMENT, check=False)
        assert done.returncode == 128 + signal.SIGTERM


def test_without_a_command_it_says_how_it_is_used() -> None:
    with started() as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and errors.startswith("usage: ")
