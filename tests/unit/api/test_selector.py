"""Selectors choose what Kubernetes' own would choose (k8s.io/apimachinery, labels.Requirement.Matches)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.crd.cases import as_read, edited, valid
from toolbox_operator.api.meta import Kind
from toolbox_operator.api.parse import parse_server
from toolbox_operator.api.refs import Namespaces
from toolbox_operator.api.selector import LabelRequirement, LabelSelector

WORD = st.sampled_from(["", "a", "b", "c"])
LABELS = st.dictionaries(st.sampled_from(["team", "tier", "zone"]), WORD)


def selector(**parts: Any) -> LabelSelector:
    return LabelSelector.model_validate(parts)


def one(key: str, operator: str, *values: str) -> LabelSelector:
    return selector(matchExpressions=[{"key": key, "operator": operator, "values": values}])


@pytest.mark.parametrize(
    ("chosen", "by"),
    [
        # matchLabels: there, and with exactly this value
        (True, selector(matchLabels={"team": "a"})),
        (False, selector(matchLabels={"team": "b"})),
        (False, selector(matchLabels={"team": "A"})),
        (False, selector(matchLabels={"zone": ""})),
        (True, selector(matchLabels={"empty": ""})),
        (False, selector(matchLabels={"team": "a", "tier": "back"})),
        # In: there, with one of the values
        (True, one("team", "In", "b", "a")),
        (False, one("team", "In", "b")),
        (False, one("zone", "In", "a")),
        (False, one("zone", "In", "")),
        (True, one("empty", "In", "")),
        # NotIn: not there, or with another value
        (True, one("team", "NotIn", "b")),
        (False, one("team", "NotIn", "b", "a")),
        (True, one("zone", "NotIn", "a")),
        (True, one("zone", "NotIn", "")),
        (False, one("empty", "NotIn", "")),
        # Exists and DoesNotExist: whatever the value
        (True, one("team", "Exists")),
        (True, one("empty", "Exists")),
        (False, one("zone", "Exists")),
        (True, one("zone", "DoesNotExist")),
        (False, one("empty", "DoesNotExist")),
        (False, one("Team", "Exists")),
        # all of them together
        (
            True,
            selector(matchLabels={"tier": "front"}, matchExpressions=[{"key": "zone", "operator": "DoesNotExist"}]),
        ),
        (
            False,
            selector(matchLabels={"tier": "front"}, matchExpressions=[{"key": "zone", "operator": "Exists"}]),
        ),
        (
            False,
            selector(
                matchExpressions=[
                    {"key": "team", "operator": "Exists"},
                    {"key": "team", "operator": "NotIn", "values": ["a"]},
                ]
            ),
        ),
    ],
)
def test_a_selector_chooses_as_kubernetes_does(chosen: bool, by: LabelSelector) -> None:
    assert by.matches({"team": "a", "tier": "front", "empty": ""}) is chosen


@given(LABELS)
def test_an_empty_selector_chooses_everything(labels: dict[str, str]) -> None:
    assert selector().matches(labels)
    assert selector(matchLabels={}, matchExpressions=[]).matches(labels)


@given(LABELS, st.lists(WORD, min_size=1, max_size=3))
def test_not_in_is_the_opposite_of_in_and_does_not_exist_of_exists(labels: dict[str, str], values: list[str]) -> None:
    assert one("team", "In", *values).matches(labels) is not one("team", "NotIn", *values).matches(labels)
    assert one("team", "Exists").matches(labels) is not one("team", "DoesNotExist").matches(labels)


@given(LABELS, LABELS)
def test_a_match_label_is_an_in_with_one_value(labels: dict[str, str], wanted: dict[str, str]) -> None:
    expressions = [{"key": key, "operator": "In", "values": [value]} for key, value in wanted.items()]
    assert selector(matchLabels=wanted).matches(labels) is selector(matchExpressions=expressions).matches(labels)


@given(LABELS, st.lists(st.builds(LabelRequirement, key=st.just("team"), operator=st.just("Exists")), max_size=3))
def test_a_further_requirement_never_chooses_more(labels: dict[str, str], more: list[LabelRequirement]) -> None:
    narrower = LabelSelector(match_labels={"tier": "a"}, match_expressions=tuple(more))
    assert not narrower.matches(labels) or selector(matchLabels={"tier": "a"}).matches(labels)


@pytest.mark.parametrize(
    ("choice", "own", "other", "labels", "permitted"),
    [
        ({}, "a", "a", None, True),
        ({}, "a", "b", {}, False),
        ({"from": "All"}, "a", "b", None, True),
        ({"from": "Selector", "selector": {}}, "a", "b", {}, True),
        ({"from": "Selector", "selector": {"matchLabels": {"x": "y"}}}, "a", "b", {"x": "y"}, True),
        # The own namespace is one like any other.
        ({"from": "Selector", "selector": {"matchLabels": {"x": "y"}}}, "a", "a", {}, False),
        # Labels that are not known, and a selector that is not there, permit nothing.
        ({"from": "Selector", "selector": {}}, "a", "b", None, False),
        ({"from": "Selector"}, "a", "b", {}, False),
        # A selector beside another choice (which a rule refuses) does not widen it.
        ({"from": "Same", "selector": {}}, "a", "b", {}, False),
    ],
)
def test_a_choice_of_namespaces_permits(
    choice: dict[str, Any], own: str, other: str, labels: dict[str, str] | None, permitted: bool
) -> None:
    assert Namespaces.model_validate(choice).permits(own, other, labels) is permitted


@pytest.mark.parametrize(
    "key", ["", "-team", "team-", "a/b/c", "Example.com/team", "/team", "team/", "t" * 64, "team\n"]
)
def test_what_is_no_label_key_is_explained(key: str) -> None:
    choice = {"from": "Selector", "selector": {"matchLabels": {key: "a"}}}
    server = parse_server(as_read(edited(valid(Kind.MCP_SERVER), {"spec.sharing.namespaces": choice})))
    assert server.problem is not None
    assert "is no label key; write one like team or example.com/team" in server.problem.message


@pytest.mark.parametrize("key", ["team", "example.com/team", "T", "a.b_c-d", f"{'a' * 63}.io/{'t' * 63}"])
def test_label_keys_are_accepted(key: str) -> None:
    choice = {"from": "Selector", "selector": {"matchLabels": {key: ""}}}
    server = parse_server(as_read(edited(valid(Kind.MCP_SERVER), {"spec.sharing.namespaces": choice})))
    assert server.problem is None
