"""Which Docker engine is used, and which one is stopped."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from localstack import docker
from localstack.docker import Engine
from localstack.janitor import carriers
from localstack.processes import Supervisor

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="an engine of one's own needs root"),
]


def test_an_engine_that_runs_already_is_used_and_left_alone(docker_engine: Engine, tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs") as supervisor:
        found = docker.ensure(supervisor)
        assert found.started_here is None
        assert supervisor.children() == []
    assert docker.running_version() == docker_engine.version


@pytest.fixture
def short() -> Generator[Path]:
    """A folder whose name leaves room for containerd's: a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="mtb-engine-", dir="/tmp") as name:
        yield Path(name)


def test_an_engine_started_by_a_run_is_stopped_with_it(docker_engine: Engine, short: Path) -> None:
    socket = short / "docker.sock"
    # In a network namespace of its own, so that it does not touch the bridges and rules of the machine's engine.
    argv = ["unshare", "--net", "dockerd", "--host", f"unix://{socket}", "--pidfile", str(short / "pid")]
    argv += ["--data-root", str(short / "data"), "--exec-root", str(short / "exec"), "--storage-driver=vfs"]
    with Supervisor(short / "logs") as supervisor:
        engine = docker.launch(supervisor, argv, socket)
        token = f"engine-{supervisor.token}"
        assert engine.version == docker_engine.version
        assert len(carriers(token)) >= 2, "dockerd and its containerd"
    assert carriers(token) == []
    assert docker.running_version(socket) is None
