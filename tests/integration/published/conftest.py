"""Images of published servers, volumes for them, and a network with a page in it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator

import pytest

from localstack import images
from localstack.docker import Engine
from localstack.processes import Supervisor


@pytest.fixture(scope="session")
def published(docker_engine: Engine) -> Callable[[str], str]:
    """An example's image by its name, stored in the engine."""
    return lambda name: images.built(docker_engine, name)


@pytest.fixture
def volume(docker_engine: Engine) -> Generator[str]:
    """A new named volume, removed at the end."""
    name = f"mtb-published-{secrets.token_hex(6)}"
    docker_engine.docker("volume", "create", name)
    yield name
    docker_engine.docker("volume", "rm", name)


@pytest.fixture
def page_network(
    supervisor: Supervisor, docker_engine: Engine, published: Callable[[str], str], volume: str
) -> Generator[str]:
    """A network in which `http://page:8000/` says who it is, and nothing else answers."""
    name = f"mtb-published-{secrets.token_hex(6)}"
    label = f"magic-toolbox.test={name}"
    supervisor.leave_to_janitor({"label": label})
    docker_engine.docker("network", "create", "--internal", "--label", label, name)
    try:
        write = "from pathlib import Path; Path('/data/index.html').write_text('<h1>Lighthouse</h1><p>It blinks.</p>')"
        serve = "from http.server import *; from functools import partial"
        serve += "; HTTPServer(('', 8000), partial(SimpleHTTPRequestHandler, directory='/data')).serve_forever()"
        flags = ["--detach", "--rm", "--init", "--label", label, "--network", name, "--network-alias=page"]
        flags += [f"--volume={volume}:/data", "--entrypoint=python3", published("time"), "-c", f"{write}\n{serve}"]
        container = docker_engine.docker("run", *flags).strip()
        try:
            yield name
        finally:
            docker_engine.docker("rm", "--force", container)
    finally:
        docker_engine.docker("network", "rm", name)
