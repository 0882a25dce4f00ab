"""Both API servers that the CRDs are tried on."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from localstack.kubernetes import Cluster
from localstack.processes import Supervisor
from support.crd import server as crd_server
from support.crd.api import Api, ClusterApi


@pytest.fixture(scope="session")
def cluster_api(kubernetes: Cluster) -> Api:
    """The local stack's API server; the harness took CEL out of the CRDs if it is older than 1.25."""
    return ClusterApi(kubernetes)


@pytest.fixture(scope="session")
def modern_api(supervisor: Supervisor, state_folder: Path) -> Generator[Api]:
    """The CRD server of Kubernetes 1.36."""
    with crd_server.running(supervisor, state_folder / "crd-server") as api:
        yield api
