"""Images of published servers, volumes for them, and a network with a page in it."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Callable, Generator

import pytest

from localstack import images
from localstack.docker import Engine
from localstack.processes import Supervisor
from localstack.progress import SetupError
from support.poll import until


@pytest.fixture(scope="session")
def published(docker_engine: Engine) -> Callable[[str], str]:
    """An example's image by its name, stored in the engine."""
    return lambda name: images.built(docker_engine, name)


@pytest.fixture(scope="session")
def label(supervisor: Supervisor) -> str:
    """Of containers and networks that a broken run may leave behind."""
    found = f"magic-toolbox.test=published-{secrets.token_hex(6)}"
    supervisor.leave_to_janitor({"label": found})
    return found


def remove(engine: Engine, kind: str, name: str) -> None:
    """Docker may hold on to a container for some seconds after its client has gone."""

    def problem() -> str:
        try:
            engine.docker(kind, "rm", name)
        except SetupError as error:
            return str(error)
        return ""

    until(f"{kind} {name} removed", problem, lambda said: said == "")


@pytest.fixture
def volume(docker_engine: Engine) -> Generator[str]:
    """A new named volume, removed at the end."""
    name = f"mtb-published-{secrets.token_hex(6)}"
    docker_engine.docker("volume", "create", name)
    yield name
    remove(docker_engine, "volume", name)


@pytest.fixture
def page_network(docker_engine: Engine, published: Callable[[str], str], volume: str, label: str) -> Generator[str]:
    """A network in which `http://page:8000/` says who it is, and nothing else answers."""
    name = f"mtb-published-{secrets.token_hex(6)}"
    docker_engine.docker("network", "create", "--internal", "--label", label, name)
    try:
        write = "from pathlib import Path; Path('/data/index.html').write_text('<h1>Lighthouse</h1><p>It blinks.</p>')"
        serve = "from http.server import *; from functools import partial"
        serve += "; HTTPServer(('', 8000), partial(SimpleHTTPRequestHandler, directory='/data')).serve_forever()"
        flags = ["--detach", "--rm", "--init", "--label", label, "--network", name, "--network-alias=page"]
        flags += [f"--volume={volume}:/data", "--entrypoint=python3", published("time"), "-c", f"{write}\n{serve}"]
        container = docker_engine.docker("run", *flags).strip()
        try:
            asks = "from urllib.request import urlopen; urlopen('http://page:8000/', timeout=5)"

            def serves() -> bool:
                argv = ["docker", "exec", container, "python3", "-c", asks]
                return subprocess.run(argv, capture_output=True, timeout=20, check=False).returncode == 0

            until("serving", serves)
            yield name
        finally:
            docker_engine.docker("rm", "--force", container)
    finally:
        remove(docker_engine, "network", name)
