"""Bases of every model that crosses the network between operator and DTMA.

Requests forbid unknown members, so that nothing a caller asks for is silently ignored. Answers ignore
them, so that an operator keeps working with a newer host.

A member that a request gains later is left out of its JSON, and so of its hash, while it has its default
(`exclude_if`): a host that does not know it is told nothing new, and both sides compute the same hash.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

PROTOCOL_VERSION = 2
"""The management API generation, the `/v2` of its paths."""

OWNER_HEADER = "Toolbox-Owner"
"""Header naming the cluster on whose behalf a call is made: the UID of its `kube-system` namespace."""

EPOCH_HEADER = "Toolbox-Epoch"
"""Header with the caller's leadership epoch (leaseTransitions of its Lease); required on mutating calls."""

Uid = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9-]+$")]
"""A Kubernetes object UID or another UUID in text form."""

DnsLabel = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
"""An RFC 1123 label."""

Epoch = Annotated[int, Field(ge=0)]


class Request(BaseModel):
    """A model sent to a host: frozen, camelCase on the wire, unknown members refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, hide_input_in_errors=True
    )


class Answer(BaseModel):
    """A model sent by a host: frozen, camelCase on the wire, unknown members ignored."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True, hide_input_in_errors=True
    )


def absent(value: object) -> bool:
    """For `exclude_if`: whether an optional member has its default."""
    return value is None


def canonical_hash(model: BaseModel) -> str:
    """SHA-256 (hex) over a model's sorted, compact JSON: equal models have equal hashes on both sides."""
    payload = json.dumps(
        model.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    return hashlib.sha256(payload.encode()).hexdigest()
