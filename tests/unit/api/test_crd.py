"""The CRDs are what the models and rules say, and what Kubernetes can take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, cast

import pytest
import yaml
from pydantic import BaseModel, Field

from toolbox_operator.api.crd import DEFINITIONS, Definition, manifest, render, write
from toolbox_operator.api.meta import Kind
from toolbox_operator.api.rules import RULES
from toolbox_operator.api.schema import NotStructural, structural

CRDS = Path(__file__).resolve().parents[3] / "crds"
Node = dict[str, Any]


def schema_of(definition: Definition) -> Node:
    return manifest(definition)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def nodes(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    yield path, node
    for name, child in cast("dict[str, Node]", node.get("properties", {})).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in node:
        yield from nodes(node["items"], f"{path}[]")


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda d: d.plural)
def test_the_file_in_crds_is_what_the_generator_writes(definition: Definition) -> None:
    assert (CRDS / definition.file).read_text(encoding="utf-8") == render(definition), "run make crds"


def test_crds_holds_one_file_for_each_kind_and_no_other(tmp_path: Path) -> None:
    assert {path.name for path in write(tmp_path)} == {path.name for path in CRDS.iterdir()}
    assert {definition.kind for definition in DEFINITIONS} == set(Kind)


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda d: d.plural)
def test_every_field_is_described_and_every_size_bounded(definition: Definition) -> None:
    for path, node in nodes(schema_of(definition)):
        if not path.startswith((".spec", ".status")):
            continue
        assert node.get("description") or path.endswith("[]"), path
        assert "$ref" not in node, path
        if node.get("type") == "string" and "enum" not in node and node.get("format") != "date-time":
            assert "maxLength" in node, path
        if node.get("type") == "array":
            assert "maxItems" in node, path


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda d: d.plural)
def test_status_has_no_defaults(definition: Definition) -> None:
    status = schema_of(definition)["properties"]["status"]
    assert [path for path, node in nodes(status) if "default" in node] == []


def test_computed_defaults_are_not_schema_defaults() -> None:
    server = schema_of(next(d for d in DEFINITIONS if d.kind is Kind.MCP_SERVER))
    defaults = {path for path, node in nodes(server) if "default" in node}
    assert defaults == {
        ".spec.expose",
        ".spec.expose.tools",
        ".spec.expose.prompts",
        ".spec.expose.prompts.allow",
        ".spec.expose.resources",
        ".spec.expose.resources.allow",
        ".spec.expose.tools.allow",
        ".spec.security",
        ".spec.security.egress",
        ".spec.security.readOnlyRootFilesystem",
        ".spec.sharing",
        ".spec.sharing.namespaces",
        ".spec.sharing.namespaces.from",
        ".spec.state",
        ".spec.volumePolicy",
        ".spec.volumes[].readOnly",
    }


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda d: d.plural)
def test_every_rule_is_emitted_where_it_applies(definition: Definition) -> None:
    emitted = [
        (path, validation["rule"], validation["message"])
        for path, node in nodes(schema_of(definition))
        for validation in node.get("x-kubernetes-validations", ())
    ]
    declared = [(f".{rule.path}" if rule.path else "", rule.cel, rule.message) for rule in RULES[definition.kind]]
    assert sorted(emitted) == sorted(declared)


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda d: d.plural)
def test_rule_messages_fit_in_one_line(definition: Definition) -> None:
    for rule in RULES[definition.kind]:
        assert "\n" not in rule.message
        assert len(rule.message) <= 160


def test_columns_read_fields_that_exist() -> None:
    for definition in DEFINITIONS:
        known = {path for path, _ in nodes(schema_of(definition))}
        for column in definition.columns:
            path = column.path.split("[?")[0]
            assert path in known or path.startswith(".metadata."), column.path


def test_a_model_without_a_bound_is_refused() -> None:
    class Unbounded(BaseModel):
        text: str

    with pytest.raises(NotStructural, match=r"Unbounded\.text: maxLength is missing"):
        structural(Unbounded, defaults=True)


def test_a_choice_of_types_is_refused() -> None:
    class Choice(BaseModel):
        value: Annotated[str, Field(max_length=1)] | int

    with pytest.raises(NotStructural, match="a choice between 2 types"):
        structural(Choice, defaults=True)


def test_the_files_are_plain_yaml_without_aliases() -> None:
    for definition in DEFINITIONS:
        text = (CRDS / definition.file).read_text(encoding="utf-8")
        assert text.startswith("# Generated by `make crds`")
        assert not any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text))
