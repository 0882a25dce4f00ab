"""The CRDs on the CRD server of Kubernetes 1.36: CEL rules and strict field validation for real."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.crd.accepted_cases import ACCEPTED, AcceptedCase
from support.crd.api import Api, collection
from support.crd.checks import check_schema_case, check_status_survives, submit
from support.crd.examples import EXAMPLES, load
from support.crd.rule_cases import RULES, RuleCase
from support.crd.schema_cases import SCHEMA, SchemaCase
from toolbox_operator.api.meta import Kind

# The first test may have to build the server.
pytestmark = [pytest.mark.integration, pytest.mark.crds, pytest.mark.timeout(1800)]

NAMESPACE = "default"


@pytest.mark.parametrize("case", SCHEMA, ids=lambda case: case.name)
def test_the_crd_server_refuses(modern_api: Api, case: SchemaCase) -> None:
    check_schema_case(modern_api, NAMESPACE, case)


@pytest.mark.parametrize("case", RULES, ids=lambda case: case.name)
def test_cel_refuses_with_the_operators_message(modern_api: Api, case: RuleCase) -> None:
    answer = submit(modern_api, NAMESPACE, case)
    assert not answer.accepted, f"accepted: {answer.body}"
    assert case.message in answer.message
    # CEL cannot point into metadata.
    assert case.path in answer.message or case.path.startswith("metadata.")


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.name)
def test_the_crd_server_accepts(modern_api: Api, case: AcceptedCase) -> None:
    answer = submit(modern_api, NAMESPACE, case)
    assert answer.accepted, answer.message


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_accepted(modern_api: Api, path: Path) -> None:
    for kind, example in load(path):
        answer = modern_api.create(collection(kind, example["metadata"]["namespace"]), example, dry_run=True)
        assert answer.accepted, answer.message


@pytest.mark.parametrize("kind", Kind)
def test_a_status_with_every_field_is_stored_whole(modern_api: Api, kind: Kind) -> None:
    check_status_survives(modern_api, NAMESPACE, kind)
