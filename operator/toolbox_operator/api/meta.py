"""Names of the API group, and the base of its models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints
from pydantic.alias_generators import to_camel

from toolbox_operator.api.quantity import DURATION_PATTERN

GROUP = "magictoolbox.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

FINALIZER_CLEANUP = f"{GROUP}/cleanup"
FINALIZER_IN_USE = f"{GROUP}/in-use"

ANNOTATION_INSTANCE_ID = f"{GROUP}/instance-id"
ANNOTATION_ABANDON = f"{GROUP}/abandon"
ANNOTATION_ROTATE = f"{GROUP}/rotate"
ANNOTATION_ROTATED = f"{GROUP}/rotated"
"""On a connection's Secret: the last value of the rotate annotation that was carried out."""

LABEL_CONNECTION = f"{GROUP}/connection"
"""On a connection's Secret: the connection's UID. Only Secrets with this label are watched."""

Body = Mapping[str, Any]
"""A Kubernetes object as JSON."""


class Kind(StrEnum):
    """The kinds of this group."""

    TOOLBOX = "Toolbox"
    MCP_SERVER = "MCPServer"
    CONNECTION = "AgentMCPConnection"


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Namespace and name of an object: the one way to name an object inside the operator."""

    namespace: str
    name: str

    @classmethod
    def of(cls, body: Body) -> Self:
        """The key of a Kubernetes object."""
        return cls(body["metadata"]["namespace"], body["metadata"]["name"])

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class ApiModel(BaseModel):
    """Base of every model of the API: frozen, camelCase in JSON, unknown fields refused.

    Docstrings of fields become the descriptions that `kubectl explain` shows.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )


class StatusModel(BaseModel):
    """Base of status models: as `ApiModel`, but unknown fields (a newer operator's) are ignored."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        populate_by_name=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )


Duration = Annotated[str, StringConstraints(min_length=2, max_length=16, pattern=DURATION_PATTERN)]
"""Hours, minutes and seconds, like 40s or 1h30m."""


def clip(limit: int) -> BeforeValidator:
    """A validator that cuts longer text to `limit` characters and marks the cut."""

    def cut(value: object) -> object:
        return value[: limit - 1] + "…" if isinstance(value, str) and len(value) > limit else value

    return BeforeValidator(cut)


# What hosts and servers say is cut to fit: a long message must never cost the whole status.
Text64 = Annotated[str, clip(64), StringConstraints(max_length=64)]
Text256 = Annotated[str, clip(256), StringConstraints(max_length=256)]
Text1024 = Annotated[str, clip(1024), StringConstraints(max_length=1024)]
