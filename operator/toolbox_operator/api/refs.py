"""References and small value types shared by the kinds."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, StringConstraints

from toolbox_operator.api.meta import ApiModel
from toolbox_operator.api.selector import ATOMIC, Labels, LabelSelector

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
    SELECTOR = "Selector"


class Namespaces(ApiModel):
    """A choice of namespaces."""

    from_: Annotated[From, Field(alias="from")] = From.SAME
    """Same: only the object's own namespace. All: every namespace of the cluster. Selector: those of `selector`."""
    selector: Annotated[LabelSelector | None, Field(json_schema_extra=ATOMIC)] = None
    """With from: Selector, the labels of the namespaces meant; an empty selector means every namespace."""

    @property
    def by_labels(self) -> bool:
        """Whether it takes a namespace's labels to decide."""
        return self.from_ is From.SELECTOR

    def permits(self, own: str, other: str, labels: Labels | None) -> bool:
        """Whether an object in namespace `other`, which has these labels, may use one that lives in `own`.

        `labels` None: they are not known, and nothing that depends on them is permitted.
        """
        match self.from_:
            case From.ALL:
                return True
            case From.SAME:
                return own == other
            case From.SELECTOR:
                return self.selector is not None and labels is not None and self.selector.matches(labels)


class Sharing(ApiModel):
    """Whose references are accepted. Default: the own namespace only."""

    namespaces: Namespaces = Namespaces()
    """The namespaces whose objects may refer to this one."""

    @classmethod
    def same(cls) -> Self:
        """The default."""
        return cls()
