"""The disk of a host is full: where Docker keeps images and containers, and where DTMA keeps its state."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Generator
from datetime import datetime
from pathlib import Path

import pytest

from localstack.kubernetes import REPOSITORY
from localstack.processes import Supervisor
from support.hosts.far_host import FarHost, Variation, resize
from support.hosts.far_toolbox import FarToolbox, attached
from support.poll import until
from support.system.space import Space

pytestmark = pytest.mark.faults

REFUSED = re.compile(r'time="([^"]+)".*Handler for POST \S+ returned error.*no space left')
"""Which of its calls first finds no space (a network's, a container's) depends on what the engine had in hand."""


@pytest.fixture(scope="module")
def small_host(supervisor: Supervisor) -> Generator[FarHost]:
    """A host with little space."""
    host = FarHost(supervisor, Variation(data_size="64m", state_size="4m"))
    host.start()
    yield host
    host.close()


@pytest.fixture
def small(space: Space, small_host: FarHost) -> Generator[FarToolbox]:
    """A Toolbox on it."""
    with attached(space, small_host, "small") as found:
        yield found


@pytest.fixture
def ballast() -> Generator[list[Path]]:
    """Files that fill a disk; gone at the end in any case."""
    files: list[Path] = []
    yield files
    for file in files:
        file.unlink(missing_ok=True)


def fill(folder: Path) -> Path:
    """A file that takes all that is free."""
    path = folder / "ballast"
    with path.open("wb") as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    os.write(file.fileno(), bytes(size))
            except OSError:
                continue
    return path


def attempts(host: FarHost) -> list[float]:
    """When the engine refused something that a container needs for want of space, in seconds."""
    lines = host.engine.log.read_text(errors="replace").splitlines()
    found = [match[1] for line in lines if (match := REFUSED.search(line))]
    return [datetime.fromisoformat(time).timestamp() for time in found]


def test_an_image_that_does_not_fit_is_told_of_and_pulled_when_there_is_space(small: FarToolbox) -> None:
    small.host.mirror(small.world.stack.parts.registry)
    first = small.ready_server("first")
    image = small.world.stack.image("hello")
    reference = {"name": small.target.name, "namespace": small.target.namespace}
    big = small.space.server("big", image=image, toolboxRef=reference)
    condition = small.world.await_condition(big, "Ready", "False", "DiskFull", seconds=120)
    assert "disk is full" in condition["message"] and "free space" in condition["message"]
    assert "disk is full" in small.world.await_event(big, "DiskFull")
    assert small.world.status(big)["phase"] == "Error"
    assert small.world.condition(first, "Ready")["status"] == "True"
    resize(small.host.engine.data_root, "700m")
    small.world.await_condition(big, "Ready", "True", seconds=120)
    assert len(small.host.containers(running_only=True)) == 2


def test_a_container_that_finds_no_space_is_tried_again_ever_more_slowly(
    small: FarToolbox, ballast: list[Path]
) -> None:
    running = small.ready_server("running")
    connection = small.ready_connection("bot", running)
    ballast.append(fill(small.host.engine.data_root))
    late = small.server("late")
    condition = small.world.await_condition(late, "Ready", "False", "DiskFull")
    assert "free space" in condition["message"]
    small.world.await_event(late, "DiskFull")
    seen = until("tried again", lambda: attempts(small.host), lambda times: len(times) >= 4)
    gaps = [after - before for before, after in itertools.pairwise(seen)]
    assert min(gaps) >= 0.9, f"a pause between attempts, not {gaps}"
    assert small.call(connection) == small.container(running)
    ballast.pop().unlink()
    small.world.await_condition(late, "Ready", "True")
    assert len(small.host.containers(running_only=True)) == 2


def test_a_volume_that_finds_no_space_is_made_when_there_is_some(small: FarToolbox, ballast: list[Path]) -> None:
    server = small.ready_server("server")
    before = small.container(server)
    ballast.append(fill(small.host.engine.data_root))
    volumes = [{"name": "data", "mountPath": "/data"}]
    small.world.patch(server, {"spec": {"volumes": volumes, "security": {"runAsUser": 1001}}})
    condition = small.world.await_condition(server, "Ready", "False", "DiskFull")
    assert "free space" in condition["message"]
    assert small.host.containers(running_only=True) == [before], "what ran before runs on"
    ballast.pop().unlink()
    small.world.await_condition(server, "Ready", "True")
    assert small.container(server) != before
    owner = small.host.engine.docker("exec", small.container(server), "ls", "-dn", "/data").split()[2]
    assert owner == "1001"


def test_a_host_that_cannot_write_its_state_says_so_and_keeps_what_it_has(
    small: FarToolbox, ballast: list[Path]
) -> None:
    running, leaving = small.ready_server("running"), small.ready_server("leaving")
    connection = small.ready_connection("bot", running)
    state = small.host.host.state_dir
    held = small.host.instances(), small.host.grants()
    ballast.append(fill(state))
    late = small.server("late")
    refused = small.world.await_condition(late, "Deployed", "False", "DiskFull")
    assert "no space to write its state" in refused["message"] and "free space" in refused["message"]
    small.world.await_event(late, "DiskFull")
    small.world.patch(connection, {"spec": {"active": False}})
    pending = small.world.await_condition(connection, "Programmed", "False", "RevocationPending")
    assert "free space" in pending["message"]
    small.space.delete(leaving, wait=False)
    blocked = small.world.await_condition(leaving, "Ready", "False", "CleanupBlocked")
    assert "free space" in blocked["message"]
    assert (small.host.instances(), small.host.grants()) == held
    assert small.refusal(connection) is None, "as status says, it is not revoked yet"

    # A start that cannot raise its boot id says why; what was there is there afterwards.
    dtma = small.host.host.dtma
    assert dtma is not None
    dtma.kill()
    argv = [*small.host.link.prefix, sys.executable, "-m", "toolbox_dtma", "serve", "--state-dir", str(state)]
    environment = {"PYTHONPATH": str(REPOSITORY / "dtma"), "PATH": os.environ["PATH"]}
    ended = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1, "a code after which it is started again"
    assert "the disk is full" in ended.stderr and "Traceback" not in ended.stderr
    assert (small.host.instances(), small.host.grants()) == held

    ballast.pop().unlink()
    small.host.host.start_dtma()
    small.world.await_condition(late, "Ready", "True", seconds=60)
    small.world.await_status(connection, phase="Disconnected")
    assert small.refusal(connection) is not None
    until("gone", lambda: small.world.find(leaving), lambda found: found is None, seconds=60)
    small.world.await_condition(running, "Ready", "True")
    assert len(small.host.containers(running_only=True)) == 2
