from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from toolbox_operator.api.connection import AgentMCPConnectionSpec
from toolbox_operator.api.mcpserver import MCPServerSpec
from toolbox_operator.api.meta import API_VERSION, ApiModel, Kind
from toolbox_operator.api.refs import NamespacedRef
from toolbox_operator.api.toolbox import ToolboxSpec

QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart"
IMAGES = "registry.example.com/magic-toolbox/"
SPECS: Mapping[str, type[ApiModel]] = {
    Kind.TOOLBOX: ToolboxSpec,
    Kind.MCP_SERVER: MCPServerSpec,
    Kind.CONNECTION: AgentMCPConnectionSpec,
}


def documents() -> Iterator[dict[str, Any]]:
    for path in sorted(QUICKSTART.glob("*.yaml")):
        yield from (cast("dict[str, Any]", doc) for doc in yaml.safe_load_all(path.read_text()) if doc)


def objects(kind: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(d["metadata"]["namespace"], d["metadata"]["name"]): d["spec"] for d in documents() if d["kind"] == kind}


@pytest.mark.parametrize("doc", [d for d in documents() if d["kind"] in SPECS], ids=lambda d: d["metadata"]["name"])
def test_every_example_is_accepted_by_the_models(doc: dict[str, Any]) -> None:
    assert doc["apiVersion"] == API_VERSION
    SPECS[doc["kind"]].model_validate(doc["spec"])


def test_the_quickstart_has_a_toolbox_two_servers_and_a_connection() -> None:
    kinds = [d["kind"] for d in documents()]
    assert sorted(kinds) == ["AgentMCPConnection", "MCPServer", "MCPServer", "Namespace", "Namespace", "Toolbox"]


def test_every_namespace_used_is_created_first() -> None:
    created: set[str] = set()
    for doc in documents():
        if doc["kind"] == "Namespace":
            created.add(doc["metadata"]["name"])
        else:
            assert doc["metadata"]["namespace"] in created


def test_every_reference_meets_an_object_that_accepts_it() -> None:
    servers = {key: MCPServerSpec.model_validate(spec) for key, spec in objects(Kind.MCP_SERVER).items()}
    toolboxes = {key: ToolboxSpec.model_validate(spec) for key, spec in objects(Kind.TOOLBOX).items()}

    def target(ref: NamespacedRef, own: str) -> tuple[str, str]:
        return (ref.namespace or own, ref.name)

    for (namespace, _), server in servers.items():
        at = target(server.toolbox_ref, namespace)
        assert toolboxes[at].allowed_servers.namespaces.permits(at[0], namespace, {})
    for (namespace, _), spec in objects(Kind.CONNECTION).items():
        at = target(AgentMCPConnectionSpec.model_validate(spec).server_ref, namespace)
        assert servers[at].sharing.namespaces.permits(at[0], namespace, {})


def test_every_image_is_under_the_prefix_that_the_readme_says_to_replace() -> None:
    assert IMAGES in (QUICKSTART / "README.md").read_text()
    images = {spec["image"] for spec in objects(Kind.MCP_SERVER).values()}
    assert all(image.startswith(IMAGES) for image in images)
    described = (QUICKSTART.parent / "images" / "README.md").read_text()
    assert all(image in described for image in images)


def test_files_can_be_concatenated_into_one_manifest() -> None:
    together = "".join(path.read_text() for path in sorted(QUICKSTART.glob("*.yaml")))
    assert [d for d in yaml.safe_load_all(together) if d] == list(documents())


def test_the_toolbox_names_the_secrets_that_init_prints() -> None:
    (spec,) = (ToolboxSpec.model_validate(s) for s in objects(Kind.TOOLBOX).values())
    assert spec.ca_secret_ref is not None and spec.gateway_ca_secret_ref is not None
    assert (spec.auth_secret_ref.name, spec.auth_secret_ref.key) == ("tbx-1-dtma", "token")
    assert (spec.ca_secret_ref.name, spec.ca_secret_ref.key) == ("tbx-1-ca", "ca.crt")
    assert (spec.gateway_ca_secret_ref.name, spec.gateway_ca_secret_ref.key) == ("tbx-1-ca", "ca.crt")
