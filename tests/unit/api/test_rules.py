"""The rules as the operator enforces them; `tests/integration/api` runs the same cases through CEL."""

from __future__ import annotations

import pytest

from support.crd.accepted_cases import ACCEPTED, AcceptedCase
from support.crd.cases import RESOLVED, as_read, edited, valid
from support.crd.rule_cases import RULES as CASES
from support.crd.rule_cases import RuleCase
from toolbox_operator.api.conditions import Reason
from toolbox_operator.api.connection import ResolvedConnection
from toolbox_operator.api.meta import Kind
from toolbox_operator.api.rules import RULES, Immutable, violations


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_operator_refuses(case: RuleCase) -> None:
    body = as_read(edited(valid(case.kind), case.edits))
    resolved = (case.resolved or RESOLVED[case.kind]) if case.update else None
    found = [(violation.path, violation.message) for violation in violations(case.kind, body, resolved)]
    assert found == [(case.path, case.message)]


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.name)
def test_the_operator_accepts(case: AcceptedCase) -> None:
    body = as_read(edited(valid(case.kind), case.edits))
    assert violations(case.kind, body, RESOLVED[case.kind] if case.update else None) == []


def test_every_rule_has_a_case() -> None:
    declared = {(kind, rule.message) for kind, rules in RULES.items() for rule in rules}
    assert declared == {(case.kind, case.message) for case in CASES}


def test_nothing_is_immutable_before_it_was_first_accepted() -> None:
    body = as_read(edited(valid(Kind.MCP_SERVER), {"spec.toolboxRef.name": "another"}))
    assert violations(Kind.MCP_SERVER, body, None) == []


def test_a_reference_that_spells_out_its_own_namespace_is_no_change() -> None:
    body = as_read(edited(valid(Kind.MCP_SERVER), {"spec.toolboxRef.namespace": "default"}))
    assert violations(Kind.MCP_SERVER, body, RESOLVED[Kind.MCP_SERVER]) == []


def test_a_changed_immutable_field_has_its_own_reason() -> None:
    body = as_read(edited(valid(Kind.CONNECTION), {"spec.agent.name": "other-bot"}))
    (violation,) = violations(Kind.CONNECTION, body, RESOLVED[Kind.CONNECTION])
    assert violation.reason is Reason.IMMUTABLE_FIELD
    assert str(violation).startswith("spec.agent: the agent of a connection cannot change")


def test_all_broken_rules_are_told_at_once_in_a_fixed_order() -> None:
    resolved = ResolvedConnection(agent="a", server="b/c", secret_name="d")
    body = as_read(edited(valid(Kind.CONNECTION), {"metadata.name": "x.y"}))
    paths = [violation.path for violation in violations(Kind.CONNECTION, body, resolved)]
    assert paths == ["metadata.name", "spec.agent", "spec.serverRef", "spec.secretName"]


def test_immutable_fields_are_exactly_those_of_the_design() -> None:
    fixed = {
        f"{kind}:{rule.field or rule.path}"
        for kind, rules in RULES.items()
        for rule in rules
        if isinstance(rule, Immutable)
    }
    assert fixed == {
        "MCPServer:spec.toolboxRef",
        "MCPServer:spec.transport",
        "AgentMCPConnection:spec.agent",
        "AgentMCPConnection:spec.serverRef",
        "AgentMCPConnection:spec.secretName",
    }
