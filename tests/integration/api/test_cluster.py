"""The CRDs on the local stack's API server, which has no CEL: schemas, defaults, columns, status."""

from __future__ import annotations

from pathlib import Path

import pytest

from localstack.kubernetes import Cluster
from support.crd.accepted_cases import ACCEPTED, AcceptedCase
from support.crd.api import Api, collection
from support.crd.cases import edited, valid
from support.crd.checks import check_schema_case, check_status_survives, submit
from support.crd.examples import EXAMPLES, load
from support.crd.schema_cases import SCHEMA, SchemaCase
from toolbox_operator.api.meta import Kind

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("case", SCHEMA, ids=lambda case: case.name)
def test_the_api_server_refuses(cluster_api: Api, namespace: str, case: SchemaCase) -> None:
    check_schema_case(cluster_api, namespace, case)


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.name)
def test_the_api_server_accepts(cluster_api: Api, namespace: str, case: AcceptedCase) -> None:
    answer = submit(cluster_api, namespace, case)
    assert answer.accepted, answer.message


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_accepted(cluster_api: Api, namespace: str, path: Path) -> None:
    for kind, example in load(path):
        body = edited(example, {"metadata.namespace": namespace})
        answer = cluster_api.create(collection(kind, namespace), body, dry_run=True)
        assert answer.accepted, answer.message


@pytest.mark.parametrize("kind", Kind)
def test_a_status_with_every_field_is_stored_whole(cluster_api: Api, namespace: str, kind: Kind) -> None:
    check_status_survives(cluster_api, namespace, kind)


def test_static_defaults_are_filled_in_and_computed_ones_are_not(cluster_api: Api, namespace: str) -> None:
    answer = cluster_api.create(
        collection(Kind.MCP_SERVER, namespace), valid(Kind.MCP_SERVER, namespace=namespace), dry_run=True
    )
    added = {name: value for name, value in answer.body["spec"].items() if name not in valid(Kind.MCP_SERVER)["spec"]}
    assert added == {
        "expose": {kind: {"allow": ["*"]} for kind in ("tools", "resources", "prompts")},
        "security": {"egress": "Internet", "readOnlyRootFilesystem": True},
        "sharing": {"namespaces": {"from": "Same"}},
        "state": "Running",
        "volumePolicy": "Delete",
    }


def test_a_status_written_with_the_spec_is_dropped(cluster_api: Api, namespace: str) -> None:
    body = edited(valid(Kind.TOOLBOX, namespace=namespace), {"status.phase": "Ready"})
    answer = cluster_api.create(collection(Kind.TOOLBOX, namespace), body, dry_run=True)
    assert answer.accepted, answer.message
    assert "status" not in answer.body


def test_kubectl_shows_the_columns_that_a_person_wants(kubernetes: Cluster, namespace: str, cluster_api: Api) -> None:
    columns = {
        "tbx": "NAME PHASE READY REACHABLE ENDPOINT VERSION SERVERS AGE",
        "mcps": "NAME PHASE READY TOOLBOX IMAGE TOOLS CONNECTIONS AGE",
        "amc": "NAME PHASE READY AGENT SERVER TOOLS LAST USED AGE",
    }
    for kind, short in zip(Kind, columns, strict=True):
        created = cluster_api.create(collection(kind, namespace), valid(kind, "shown", namespace))
        assert created.accepted, created.message
        table = kubernetes.kubectl("get", short, "-n", namespace)
        assert table.splitlines()[0].split() == columns[short].split()
    everything = kubernetes.kubectl("get", "mcp", "-n", namespace, "-o", "name").split()
    assert sorted(everything) == [
        "agentmcpconnection.magictoolbox.dev/shown",
        "mcpserver.magictoolbox.dev/shown",
        "toolbox.magictoolbox.dev/shown",
    ]


def test_kubectl_explains_a_field(kubernetes: Cluster) -> None:
    text = kubernetes.kubectl("explain", "mcpserver.spec.port", "--api-version=magictoolbox.dev/v1alpha1")
    assert "The port the server listens on inside its container." in " ".join(text.split())
