"""What an installation is made of: manifests on an API server, images in the engine."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from delivery import images
from localstack.docker import Engine
from localstack.postgres import Postgres
from localstack.processes import Supervisor
from localstack.registry import Registry
from support.install.containers import Ground
from support.install.installation import LABEL, Installation, install


@pytest.fixture(scope="session")
def installation(supervisor: Supervisor, state_folder: Path) -> Installation:
    """The dev overlay, applied in one go to a cluster that nothing else uses."""
    return install(supervisor, state_folder / "installation")


@pytest.fixture(scope="session")
def operator_image(docker_engine: Engine) -> str:
    """The operator's image, of the sources as they are."""
    return images.ensure(docker_engine, "operator")


@pytest.fixture(scope="session")
def dtma_image(docker_engine: Engine) -> str:
    """DTMA's image, of the sources as they are."""
    return images.ensure(docker_engine, "dtma")


@pytest.fixture(scope="session")
def ground(
    supervisor: Supervisor,
    docker_engine: Engine,
    registry: Registry,
    postgres_server: Postgres,
    operator_image: str,
    dtma_image: str,
) -> Ground:
    """Both images and what else an installation in containers needs."""
    label = f"{LABEL}={secrets.token_hex(6)}"
    supervisor.leave_to_janitor({"label": label})
    return Ground(supervisor, docker_engine, registry, postgres_server, operator_image, dtma_image, label)
