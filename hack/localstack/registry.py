"""A local image registry on loopback, so that pulls in demo and tests are real."""

from __future__ import annotations

import json
import secrets
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import yaml

from localstack import debian
from localstack.ports import free_port
from localstack.processes import Child, Command, Supervisor
from localstack.progress import step


@dataclass(frozen=True, slots=True)
class Registry:
    """A running registry, plain HTTP on loopback (which Docker accepts without configuration)."""

    port: int
    blobs: Path
    """Its storage; what is copied there is served at once."""
    child: Child

    @property
    def address(self) -> str:
        """`127.0.0.1:PORT`, the first part of image names."""
        return f"127.0.0.1:{self.port}"

    def tags(self, repository: str) -> list[str]:
        """Tags of a repository; none if it does not exist."""
        try:
            with urllib.request.urlopen(f"http://{self.address}/v2/{repository}/tags/list", timeout=5) as answer:
                return cast("dict[str, list[str] | None]", json.load(answer)).get("tags") or []
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:
                    return []
                raise


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def program() -> Path:
    """The registry's binary, from the PATH or from Debian's package."""
    return debian.program("docker-registry", "docker-registry", "usr/bin/docker-registry")


def start(supervisor: Supervisor, folder: Path, name: str = "registry") -> Registry:
    """Starts a registry that keeps its images in `folder`/blobs, which may hold some already."""
    binary = program()
    with step(f"image {name}"):
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        config = {
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(folder / "blobs")}, "delete": {"enabled": True}},
            "http": {"addr": f"127.0.0.1:{port}", "secret": secrets.token_hex(16)},
        }
        path = folder / "config.yml"
        path.write_text(yaml.safe_dump(config))
        child = supervisor.start(Command(name, [str(binary), "serve", str(path)]))
        child.wait_until(lambda: _answers(port), 30, "answering")
        # The engine keeps what it pulled from here under this address, which no later run has.
        supervisor.leave_to_janitor({"images": f"127.0.0.1:{port}/*"})
        return Registry(port, folder / "blobs", child)
