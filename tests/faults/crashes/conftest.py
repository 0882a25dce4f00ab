"""A host whose DTMA can be killed after any of its writes."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from localstack import images as example_images
from localstack.docker import Engine
from localstack.processes import Supervisor
from localstack.registry import Registry
from support.dtma_crashes.enumeration import Scene
from support.dtma_crashes.host import CrashHost
from support.dtma_crashes.owner import Images
from support.dtma_crashes.world import Onlooker
from toolbox_dtma.engine.names import LABEL_HOST, LABEL_INSTANCE


@pytest.fixture(scope="session")
def crash_scene(
    supervisor: Supervisor, state_folder: Path, docker_engine: Engine, registry: Registry
) -> Generator[Scene]:
    """The host, two images for it, and a container of somebody else."""
    stored = example_images.ensure(supervisor, docker_engine, registry, "hello")
    docker_engine.docker("pull", "--quiet", stored, seconds=120)
    # In the same repository, so that no layer is pushed again.
    images = Images(*(f"{stored.rpartition(':')[0]}:crash-{number}" for number in ("first", "second")))
    for name in (images.first, images.second):
        docker_engine.docker("tag", stored, name)
        docker_engine.docker("push", "--quiet", name, seconds=120)
    crash = CrashHost(supervisor, state_folder / "crash")
    stranger = f"{LABEL_HOST}=not-{crash.names.host_id}"
    supervisor.leave_to_janitor({"label": stranger})
    run = ("run", "--detach", "--label", stranger, "--label", f"{LABEL_INSTANCE}=theirs")
    foreign = docker_engine.docker(*run, "--entrypoint", "sleep", stored, "86400").strip()
    onlooker = Onlooker(crash, {images.first: "FIRST", images.second: "SECOND"})
    try:
        yield Scene(crash, onlooker, images, docker_engine, foreign)
    finally:
        onlooker.close()
        crash.close()
        docker_engine.docker("rm", "--force", foreign)
