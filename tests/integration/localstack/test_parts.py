"""The parts of the local stack, for real."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psycopg
import pytest

from localstack.docker import Engine
from localstack.kubernetes import CLUSTER_VARIABLE, Cluster, start
from localstack.postgres import Postgres
from localstack.processes import Supervisor
from localstack.registry import Registry

pytestmark = pytest.mark.integration


def test_the_api_server_serves_our_kinds(kubernetes: Cluster, namespace: str) -> None:
    assert kubernetes.get("toolboxes.magictoolbox.dev", "-n", namespace)["items"] == []


def test_a_namespace_finishes_deleting(kubernetes: Cluster, namespace: str) -> None:
    kubernetes.kubectl("create", "configmap", "inside", "-n", namespace)
    kubernetes.kubectl("delete", "namespace", namespace, "--timeout=40s", seconds=50)
    assert kubernetes.kubectl("get", "namespace", namespace, "--ignore-not-found") == ""


def test_an_owned_object_is_collected_with_its_owner(kubernetes: Cluster, namespace: str) -> None:
    kubernetes.kubectl("create", "configmap", "owner", "-n", namespace)
    uid = kubernetes.get("configmap", "owner", "-n", namespace)["metadata"]["uid"]
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}
    metadata = {"name": "owned", "namespace": namespace, "ownerReferences": [reference]}
    kubernetes.apply([{"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}])
    kubernetes.kubectl("delete", "configmap", "owner", "-n", namespace)
    kubernetes.kubectl("wait", "--for=delete", "configmap/owned", "-n", namespace, "--timeout=60s", seconds=70)


def test_a_fresh_database_is_empty_and_belongs_to_the_role(postgres: str) -> None:
    with psycopg.connect(postgres, connect_timeout=5) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
        connection.execute("CREATE SCHEMA mine")


def test_the_application_role_is_no_superuser(postgres_server: Postgres) -> None:
    with psycopg.connect(postgres_server.dsn(), connect_timeout=5) as connection:
        assert connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone() == (False,)


def test_postgres_does_not_run_as_root(postgres_server: Postgres) -> None:
    with open(f"/proc/{postgres_server.child.pid}/status") as file:
        uids = next(line.split()[1:] for line in file if line.startswith("Uid:"))
    assert "0" not in uids


def test_an_image_goes_through_the_registry_and_back(docker_engine: Engine, registry: Registry) -> None:
    name = f"{registry.address}/probe:{time.time_ns()}"
    docker_engine.docker("build", "--quiet", "--tag", name, "-", stdin="FROM scratch\nLABEL probe=yes\n")
    try:
        docker_engine.docker("push", "--quiet", name)
        assert registry.tags("probe") == [name.rsplit(":", 1)[1]]
        docker_engine.docker("rmi", name)
        docker_engine.docker("pull", "--quiet", name)
        (image,) = json.loads(docker_engine.docker("image", "inspect", name))
        assert image["Config"]["Labels"] == {"probe": "yes"}
    finally:
        docker_engine.docker("rmi", "--force", name)


def test_an_opted_in_cluster_is_used_as_it_is(
    kubernetes: Cluster, supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(supervisor.children())
    monkeypatch.setenv(CLUSTER_VARIABLE, str(kubernetes.admin_kubeconfig))
    found = start(supervisor, tmp_path / "cluster")
    assert (found.version, len(supervisor.children())) == (kubernetes.version, before)
    account = found.install_operator_account()
    whoami = Cluster(account, found.version, tmp_path / "as-operator", found.kubectl_path)
    assert whoami.get("toolboxes.magictoolbox.dev", "--all-namespaces")["kind"] == "List"
