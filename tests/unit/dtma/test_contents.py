"""The policy and its cutting into frames."""

from __future__ import annotations

import pytest

from toolbox_dtma.link.framing import encode_frame
from toolbox_dtma.link.messages import Change, Delta, GrantPolicy, InstanceRoute, KeyRing, SigningKey, Surface
from toolbox_dtma.policy.contents import Contents, PolicyItemTooLarge, check_size, split
from toolbox_dtma.wire import Credential, Expose, HostConfig, NameFilter

RING = KeyRing(signing="k1", keys=(SigningKey(kid="k1", secret="c2VjcmV0"),))


def grant(uid: str, *, allow: tuple[str, ...] = ("*",)) -> GrantPolicy:
    return GrantPolicy(
        uid=uid,
        instance="i-1",
        credentials=(Credential(value="a" * 64),),
        server_expose=Expose(),
        expose=Expose(tools=NameFilter(allow=allow)),
    )


def route(instance_id: str, *, surface: Surface | None = None) -> InstanceRoute:
    return InstanceRoute(
        id=instance_id, incarnation="one", address="10.0.0.2", port=1, path="/mcp", state="running", surface=surface
    )


def test_a_large_policy_is_cut_into_parts_that_fit_and_make_the_whole_again() -> None:
    contents = Contents(RING)
    wide = tuple(f"{'x' * 250}{number}" for number in range(200))
    contents.apply(Change(config=HostConfig(gateway_url="https://tbx-1.example.com")))
    contents.apply(Change(grants=tuple(grant(f"c-{number}", allow=wide) for number in range(60))))
    contents.apply(Change(instances=tuple(route(f"i-{number}", surface=Surface(tools=wide)) for number in range(60))))
    parts = contents.snapshot(9)
    assert len(parts) > 5
    rebuilt = Contents(KeyRing(signing="", keys=()))
    for number, part in enumerate(parts):
        assert (part.part, part.parts, part.revision) == (number, len(parts), 9)
        encode_frame(part)
        rebuilt.apply(part.change)
    assert rebuilt == contents


def test_an_empty_policy_is_still_one_part() -> None:
    assert len(Contents(RING).snapshot(1)) == 1
    assert split(Change()) == [Change()]


def test_thousands_of_revocations_fit_frames() -> None:
    gone = tuple(f"{number:0100}" for number in range(20_000))
    parts = split(Change(grants_gone=gone))
    for part in parts:
        encode_frame(Delta(revision=1 << 60, change=part))
    assert tuple(uid for part in parts for uid in part.grants_gone) == gone


def test_what_is_gone_is_gone_and_the_rest_stays() -> None:
    contents = Contents(RING)
    contents.apply(Change(grants=(grant("a"), grant("b")), instances=(route("i-1"), route("i-2"))))
    contents.apply(Change(grants_gone=("a", "unknown"), instances_gone=("i-2",)))
    assert set(contents.grants) == {"b"}
    assert set(contents.instances) == {"i-1"}
    assert contents.keyring == RING


def test_an_item_that_fits_no_frame_is_named_before_it_is_stored() -> None:
    wide = ("\U0001f512" * 256,) * 256
    filters = Expose(tools=NameFilter(allow=wide, deny=wide))
    check_size(grant("a", allow=wide))
    with pytest.raises(PolicyItemTooLarge):
        check_size(grant("a").model_copy(update={"expose": filters, "server_expose": filters}))
