"""The commands of docs/servers, run as they stand there, but for the names of a registry and of base images."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from localstack import images, node, recipes
from localstack.docker import Engine
from localstack.kubernetes import REPOSITORY
from localstack.registry import Registry

pytestmark = [
    pytest.mark.integration,
    pytest.mark.install,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="the local stack needs root"),
]

PAGES = {"pypi": "mcp-time", "npm": "mcp-memory", "own-image": "mcp-hello"}
"""Pages and the repositories that they push to."""


class Workshop:
    """A copy of `examples/images`, and a shell in which a page's words mean what is at hand here."""

    def __init__(self, folder: Path, engine: Engine, registry: Registry) -> None:
        self.folder, self.registry = folder / "images", registry
        shutil.copytree(recipes.CONTEXTS, self.folder, ignore=shutil.ignore_patterns("vendor", "node_modules"))
        tools = folder / "bin"
        tools.mkdir()
        npm = tools / "npm"
        npm.write_text(f'#!/bin/sh\nexec {" ".join(node.npm())} "$@"\n')
        npm.chmod(0o755)
        path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environment = {**node.environment(), "PATH": path}
        bases: tuple[recipes.Base, ...] = ("python", "node")
        self._meant = {images.PULLED[base]: images.base_image(engine, base) for base in bases}
        self._meant["registry.example.com"] = registry.address

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """What a person gets who types these lines."""
        for word, meant in self._meant.items():
            script = script.replace(word, meant)
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=500,
            check=False,
        )


@pytest.fixture
def workshop(tmp_path: Path, docker_engine: Engine, registry: Registry) -> Workshop:
    """A place to work in."""
    return Workshop(tmp_path, docker_engine, registry)


def blocks(page: str, language: str) -> list[str]:
    """The blocks of a page in a language."""
    text = (REPOSITORY / "docs" / "servers" / f"{page}.md").read_text()
    # All of them in turn, since the end of one looks like the beginning of another without a language.
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for tag, block in found if tag == language]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_leads_from_nothing_to_an_image_in_the_registry(page: str, workshop: Workshop) -> None:
    (script,), (answer,) = blocks(page, "sh"), blocks(page, "")
    before = workshop.registry.tags(PAGES[page])
    done = workshop.run(script)
    assert done.returncode == 0, done.stdout
    assert answer in done.stdout
    tags = set(re.findall(rf"registry\.example\.com/{PAGES[page]}:(\S+)", script))
    assert set(workshop.registry.tags(PAGES[page])).difference(before) == tags


@pytest.mark.parametrize(("page", "program"), [("pypi", "mcp-server-time"), ("npm", "mcp-server-memory")])
def test_a_build_that_is_told_another_version_or_program_than_the_lock_has_says_so(
    page: str, program: str, workshop: Workshop
) -> None:
    (script,) = blocks(page, "sh")
    (folder,) = re.findall(r"&& (cd \w+)$", script, re.MULTILINE)
    (version,) = re.findall(r"VERSION=(\S+)", script)
    context, build = (script[: script.index("# 3.")], script[script.index("# 3.") : script.index("# 4.")])
    assert workshop.run(context).returncode == 0

    other = workshop.run(f"{folder}\n{build}".replace(f"VERSION={version}", "VERSION=1.0"))
    assert other.returncode != 0
    assert re.search(rf"VERSION is 1\.0, but \S+ locks {re.escape(version)}", other.stdout), other.stdout
    unknown = workshop.run(f"{folder}\n{build}".replace("--tag", "--build-arg COMMAND=no --tag"))
    assert unknown.returncode != 0
    assert re.search(rf"no program no in \S+; COMMAND may be one of:.* {program}", unknown.stdout), unknown.stdout
