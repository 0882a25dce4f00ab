"""Labels of namespaces: whoever decides by them is told of every change, and of nothing else."""

from __future__ import annotations

import json

import pytest

from support.memory import reachable_bytes
from toolbox_operator.api.meta import Body
from toolbox_operator.kube.labels import NamespaceLabels


def namespace(name: str, **labels: str) -> Body:
    return {"metadata": {"name": name, "labels": labels}}


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def labels(told: list[str]) -> NamespaceLabels:
    labels = NamespaceLabels()
    labels.listen(told.append)
    labels.begun([namespace("a", team="x"), {"metadata": {"name": "bare"}}])
    assert sorted(told) == ["a", "bare"]
    told.clear()
    return labels


def test_before_anything_was_seen_no_labels_are_known() -> None:
    assert NamespaceLabels().of("a") is None


def test_a_namespace_without_labels_is_known_to_have_none(labels: NamespaceLabels) -> None:
    assert labels.of("bare") == {}
    assert labels.of("elsewhere") is None


def test_a_changed_label_is_told(labels: NamespaceLabels, told: list[str]) -> None:
    labels.changed("MODIFIED", namespace("a", team="y"))
    assert labels.of("a") == {"team": "y"}
    labels.changed("MODIFIED", namespace("a"))
    assert labels.of("a") == {}
    assert told == ["a", "a"]


def test_other_changes_of_a_namespace_are_no_news(labels: NamespaceLabels, told: list[str]) -> None:
    labels.changed("MODIFIED", namespace("a", team="x"))
    assert told == []


def test_a_namespace_that_comes_and_one_that_goes_are_told(labels: NamespaceLabels, told: list[str]) -> None:
    labels.changed("ADDED", namespace("new", team="z"))
    labels.changed("DELETED", namespace("a", team="x"))
    assert told == ["new", "a"]
    assert labels.of("a") is None


def test_after_a_gap_what_changed_meanwhile_is_told_once(labels: NamespaceLabels, told: list[str]) -> None:
    labels.begun([namespace("a", team="y"), namespace("new")])
    assert sorted(told) == ["a", "bare", "new"]
    assert labels.of("bare") is None
    told.clear()
    labels.begun([namespace("a", team="y"), namespace("new")])
    assert told == []


def test_labels_of_ten_thousand_namespaces_take_few_mebibytes() -> None:
    def body(number: int) -> Body:
        name = f"team-{number:05}"
        labels = {"kubernetes.io/metadata.name": name, "team": f"t{number % 100}", "environment": "production"}
        annotations = {"kubectl.kubernetes.io/last-applied-configuration": "x" * 500}
        # Through JSON, so that no text is shared that would not be in reality.
        return json.loads(json.dumps({"metadata": {"name": name, "labels": labels, "annotations": annotations}}))

    kept = NamespaceLabels()
    for number in range(10_000):
        kept.changed("ADDED", body(number))
    assert kept.of("team-09999") is not None
    assert reachable_bytes(kept) < 3 * 2**20
