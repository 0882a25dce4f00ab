"""Label selectors, with the meaning that Kubernetes gives them (metav1.LabelSelector)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints
from pydantic.config import JsonDict

from toolbox_operator.api.meta import ApiModel

Labels = Mapping[str, str]
"""Labels of an object."""

ATOMIC: JsonDict = {"x-kubernetes-map-type": "atomic"}
"""Server-side apply takes the whole selector from one writer: half of two selectors would select something else."""

MAX_LABEL_KEY = 317
"""A prefix of 253 characters, a slash, and a name of 63."""
_NAME = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_KEY = rf"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?{_NAME}$"
_IS_KEY = re.compile(_KEY)

LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=MAX_LABEL_KEY, pattern=_KEY)]
LabelValue = Annotated[str, StringConstraints(max_length=63, pattern=f"^({_NAME})?$")]


def _keys_are_label_keys(labels: dict[str, str]) -> dict[str, str]:
    # A schema says nothing about the keys of a map, and matching each of them in CEL would cost too much.
    for key in labels:
        if _IS_KEY.fullmatch(key) is None:
            raise ValueError(f"{key[:80]} is no label key; write one like team or example.com/team")
    return labels


class Operator(StrEnum):
    """How the key of a requirement has to be."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class LabelRequirement(ApiModel):
    """One requirement on one label."""

    key: LabelKey
    """Key of the label."""
    operator: Operator
    """In, NotIn (also met without the label), Exists or DoesNotExist."""
    values: Annotated[tuple[LabelValue, ...], Field(max_length=32)] = ()
    """Values for In and NotIn, at least one; none for Exists and DoesNotExist."""

    def met_by(self, labels: Labels) -> bool:
        """Whether an object with these labels meets it."""
        match self.operator:
            case Operator.IN:
                return labels.get(self.key) in self.values
            case Operator.NOT_IN:
                return labels.get(self.key) not in self.values
            case Operator.EXISTS:
                return self.key in labels
            case Operator.DOES_NOT_EXIST:
                return self.key not in labels


class LabelSelector(ApiModel):
    """Objects, chosen by their labels: all requirements must be met. An empty selector chooses every object."""

    match_labels: Annotated[dict[str, LabelValue], AfterValidator(_keys_are_label_keys)] = Field(
        default_factory=dict[str, str], max_length=16
    )
    """Labels that must be there with exactly these values."""
    match_expressions: Annotated[tuple[LabelRequirement, ...], Field(max_length=16)] = ()
    """Further requirements."""

    def matches(self, labels: Labels) -> bool:
        """Whether an object with these labels is chosen."""
        exact = all(labels.get(key) == value for key, value in self.match_labels.items())
        return exact and all(requirement.met_by(labels) for requirement in self.match_expressions)
