"""Whose references an object accepts, in the words of the people concerned."""

from __future__ import annotations

from toolbox_operator.api.conditions import Reason
from toolbox_operator.api.refs import From, Namespaces
from toolbox_operator.api.selector import Labels
from toolbox_operator.domain.hold import Hold, waits_for


def labels_hold(choice: Namespaces, namespace: str, labels: Labels | None) -> Hold | None:
    """Why nothing can be decided by labels: neither is anything opened then, nor anything closed."""
    if not choice.by_labels or labels is not None:
        return None
    return waits_for(
        Reason.NAMESPACE_UNKNOWN,
        f"The labels of the namespace {namespace} are not known: what they decide stays as it is until they are.",
        quiet=True,
    )


def accepted(choice: Namespaces) -> str:
    """Of which namespaces objects are accepted, after "of"."""
    match choice.from_:
        case From.SAME:
            return "its own namespace only"
        case From.ALL:
            return "every namespace"
        case From.SELECTOR:
            return "namespaces that its selector chooses only"


def remedy(choice: Namespaces, field: str, namespace: str) -> str:
    """What lets objects of `namespace` be accepted; `field` is the choice's path in the spec."""
    if choice.by_labels:
        return f"label the namespace {namespace} so that {field}.selector chooses it, or change that selector"
    return f"set {field}.from to All, or to Selector with a selector that chooses the namespace {namespace}"
