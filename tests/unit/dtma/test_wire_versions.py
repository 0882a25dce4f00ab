"""Operators and hosts of different versions: what neither uses, neither sees, and both compute the same hash."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from pydantic import ValidationError

from support.dtma.host import grant_body, instance_body
from toolbox_dtma.wire import DesiredInstance, Expose, Grant, GrantLimits, NameFilter, canonical_hash
from toolbox_dtma.wire.base import DnsLabel, Request, Uid
from toolbox_dtma.wire.grants import Credential

PIN = f"sha256:{'0' * 64}"


class FirstExpose(Request):
    """`Expose` before prompts and resources were in it."""

    tools: NameFilter = NameFilter()


class FirstGrant(Request):
    """`Grant` before limits were in it."""

    namespace: DnsLabel
    name: DnsLabel
    generation: int
    instance: Uid
    agent: str
    credentials: tuple[Credential, ...]
    subject: None = None
    server_expose: FirstExpose = FirstExpose()
    expose: FirstExpose = FirstExpose()
    expires_at: datetime | None = None


def both(**changes: Any) -> tuple[FirstGrant, Grant]:
    """The same grant in an old host's eyes and in ours."""
    body = grant_body(**changes)
    return FirstGrant.model_validate(body), Grant.model_validate(body)


@pytest.mark.parametrize(
    "changes", [{}, {"expose": {"tools": {"allow": ["get_*"], "deny": ["get_secret"]}}}, {"credentials": []}], ids=str
)
def test_a_host_of_before_limits_takes_a_grant_without_and_has_the_same_hash(changes: dict[str, Any]) -> None:
    old, new = both(**changes)
    assert FirstGrant.model_validate_json(new.model_dump_json(by_alias=True)) == old
    assert canonical_hash(new) == canonical_hash(old)


def test_a_host_of_before_limits_refuses_them_rather_than_not_see_them() -> None:
    new = Grant.model_validate(grant_body(limits={"concurrentCalls": 1}))
    with pytest.raises(ValidationError, match=r"limits\n +Extra inputs are not permitted"):
        FirstGrant.model_validate_json(new.model_dump_json(by_alias=True))


def test_a_host_of_before_approved_tools_refuses_a_pin_rather_than_show_all() -> None:
    new = Grant.model_validate(grant_body(serverExpose={"approvedHash": PIN}))
    with pytest.raises(ValidationError, match=r"serverExpose.approvedHash\n +Extra inputs are not permitted"):
        FirstGrant.model_validate_json(new.model_dump_json(by_alias=True))


def test_limits_and_each_filter_change_the_hash() -> None:
    _, plain = both()
    one = NameFilter(allow=("x",))
    changed = [
        plain.model_copy(update=update)
        for update in (
            {"limits": GrantLimits(concurrent_calls=1)},
            {"limits": GrantLimits(concurrent_calls=2)},
            {"limits": GrantLimits(requests_per_minute=1)},
            {"expose": Expose(prompts=one)},
            {"expose": Expose(resources=one)},
            {"server_expose": Expose(resources=one)},
            {"server_expose": Expose(approved_hash=PIN)},
        )
    ]
    assert len({canonical_hash(grant) for grant in (plain, *changed)}) == 1 + len(changed)
    for grant in changed:
        assert Grant.model_validate_json(grant.model_dump_json(by_alias=True)) == grant


def test_a_host_of_before_volumes_is_not_told_of_them_where_there_are_none() -> None:
    plain = DesiredInstance.model_validate(instance_body())
    told = plain.model_dump(mode="json", by_alias=True)
    assert not {"volumes", "volumePolicy"} & told.keys()
    for changes in ({"volumes": [{"name": "data", "mountPath": "/data"}]}, {"volumePolicy": "Retain"}):
        changed = DesiredInstance.model_validate(instance_body(**changes))
        (member,) = changes
        assert changed.model_dump(mode="json", by_alias=True).keys() - told.keys() == {member}
        assert DesiredInstance.model_validate_json(changed.model_dump_json(by_alias=True)) == changed
