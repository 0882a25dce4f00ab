"""`make kind-up` with stand-ins for kind, docker and kubectl: what it asks of them, and what it says without one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from localstack.kubernetes import REPOSITORY

SCRIPT = REPOSITORY / "hack" / "kind-up.sh"
RECORD = '#!/bin/sh\necho "$(basename "$0") $*" >> "$RECORD"\n'


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Programs that write down how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, more in (("kind", ""), ("docker", "echo 172.18.0.1\n"), ("kubectl", "cat >/dev/null </dev/stdin\n")):
        (folder / name).write_text(RECORD + more)
        (folder / name).chmod(0o755)
    for name in ("dirname", "basename", "grep", "tr", "cat", "env", "bash", "sh"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return folder


def run(tools: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(tools), "RECORD": str(tools / "record"), "HOME": os.environ["HOME"]}
    return subprocess.run(
        [str(SCRIPT)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_it_makes_the_cluster_loads_the_image_and_applies_the_overlay_to_that_cluster_only(tools: Path) -> None:
    done = run(tools)
    assert done.returncode == 0, done.stderr
    called = (tools / "record").read_text().splitlines()
    assert "kind create cluster --config manifests/kind/cluster.yaml" in called
    assert "kind load docker-image --name magic-toolbox localhost/magic-toolbox/operator:dev" in called
    assert "kubectl --context kind-magic-toolbox apply -f -" in called
    talking = [line for line in called if line.startswith("kubectl") and " kustomize " not in f"{line} "]
    assert all("--context kind-magic-toolbox" in line for line in talking)
    assert "172.18.0.1" in done.stdout


def test_without_kind_it_says_so(tools: Path) -> None:
    (tools / "kind").unlink()
    done = run(tools)
    assert done.returncode == 1
    assert done.stderr == "kind-up: kind is not on the PATH\n"
