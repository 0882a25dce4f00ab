"""References and small value types shared by the kinds."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, StringConstraints

from toolbox_operator.api.meta import ApiModel

DnsLabel = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
DnsSubdomain = Annotated[
    str,
    StringConstraints(
        min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
    ),
]
DataKey = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]


class KeyRef(ApiModel):
    """A key of a Secret or ConfigMap in the object's own namespace."""

    name: DnsSubdomain
    """Name of the Secret or ConfigMap."""
    key: DataKey
    """Key in its data."""


class LocalRef(ApiModel):
    """An object in the same namespace."""

    name: DnsSubdomain
    """Its name."""


class NamespacedRef(ApiModel):
    """An object of this group."""

    name: DnsLabel
    """Its name."""
    namespace: DnsLabel | None = None
    """Its namespace; the referring object's own when absent."""


class From(StrEnum):
    """Which namespaces are meant."""

    SAME = "Same"
    ALL = "All"


class Namespaces(ApiModel):
    """A choice of namespaces."""

    from_: Annotated[From, Field(alias="from")] = From.SAME
    """Same: only the object's own namespace. All: every namespace of the cluster."""

    def permits(self, own: str, other: str) -> bool:
        """Whether an object in namespace `other` may use one that lives in `own`."""
        return self.from_ is From.ALL or own == other


class Sharing(ApiModel):
    """Whose references are accepted. Default: the own namespace only."""

    namespaces: Namespaces = Namespaces()
    """The namespaces whose objects may refer to this one."""

    @classmethod
    def same(cls) -> Self:
        """The default."""
        return cls()
