"""Grants: which credentials may talk to which instance, and what they may call.

>>> grant = Grant(
...     namespace="team-a", name="bot-time", generation=1, instance="5b6f", agent="research-bot",
...     credentials=(Credential(value="0" * 64),),
... )
>>> grant.expose.tools.unrestricted
True
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from toolbox_dtma.wire.base import Answer, DnsLabel, Request, Uid, absent
from toolbox_dtma.wire.expose import Expose
from toolbox_dtma.wire.limits import GrantLimits


class Credential(Request):
    """A bearer token known by its SHA-256 only. `not_after` ends it without further word from the operator."""

    type: Literal["sha256"] = "sha256"
    value: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    not_after: datetime | None = None


class Grant(Request):
    """Body of `PUT /v2/grants/{connection UID}`: one connection's whole policy.

    The path carries the connection's UID. `generation` orders grants of that UID; a rotation, which changes
    credentials only, keeps it.
    """

    namespace: DnsLabel
    name: DnsLabel
    generation: Annotated[int, Field(ge=1)]
    instance: Uid
    agent: Annotated[str, StringConstraints(min_length=1, max_length=63)]
    credentials: Annotated[tuple[Credential, ...], Field(max_length=4)]
    subject: None = None
    server_expose: Expose = Expose()
    expose: Expose = Expose()
    expires_at: datetime | None = None
    limits: Annotated[GrantLimits | None, Field(exclude_if=absent)] = None
    """None for no limits: a host of before limits is not told of them."""


class GrantReport(Answer):
    """A grant as the host holds it. `programmed`: every gateway worker acknowledged exactly this content."""

    uid: Uid
    namespace: str
    name: str
    instance: Uid
    generation: int
    content_hash: str
    """`canonical_hash` of the `Grant` it was put with."""
    programmed: bool


class GrantList(Answer):
    """The complete list of the owner's grants."""

    boot_id: int
    complete: Literal[True]
    items: tuple[GrantReport, ...]


class GrantProgrammed(Answer):
    """Data of a `grant` event."""

    uid: Uid
    generation: int
    content_hash: str
    programmed: bool
