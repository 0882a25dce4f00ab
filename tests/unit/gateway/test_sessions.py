"""Session ids work for the connection they were made for, and for no other."""

from __future__ import annotations

import base64
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolbox_dtma.gateway.sessions import REMEMBERED, Binding, SessionIds, UpstreamIdUnusable
from toolbox_dtma.link.messages import KeyRing, SigningKey


def key(kid: str) -> SigningKey:
    return SigningKey(kid=kid, secret=base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode())


OLD, NEW = key("a"), key("b")
IDS = SessionIds(KeyRing(signing="b", keys=(OLD, NEW)))
BINDING = Binding("connection", "instance", "incarnation")
SIGNED = IDS.sign("upstream", BINDING, 1_700_000_000)


def test_a_signed_id_gives_the_server_s_id_back() -> None:
    assert IDS.verify(SIGNED, BINDING) == "upstream"
    assert SIGNED.startswith("mt1.b.")
    assert len(SIGNED.rpartition(".")[2]) == 22


@pytest.mark.parametrize("field", ["connection", "instance", "incarnation", "subject", "kind"])
def test_an_id_of_anyone_else_is_refused(field: str) -> None:
    assert IDS.verify(SIGNED, BINDING._replace(**{field: "other"})) is None


def test_having_seen_an_id_before_changes_nothing_for_anyone() -> None:
    ids = SessionIds(KeyRing(signing="b", keys=(NEW,)))
    signed = [ids.sign(f"upstream-{number}", BINDING, 1) for number in range(REMEMBERED + 2)]
    for _ in range(2):
        for number, each in enumerate(signed):
            assert ids.verify(each, BINDING) == f"upstream-{number}"
            assert ids.verify(each, BINDING._replace(connection="other")) is None


def test_a_session_keeps_its_id_and_another_connection_gets_another() -> None:
    ids = SessionIds(KeyRing(signing="b", keys=(NEW,)))
    first = ids.sign("upstream", BINDING, 1)
    assert ids.sign("upstream", BINDING, 2) == first
    other = BINDING._replace(connection="other")
    assert ids.sign("upstream", other, 2) != first
    assert ids.verify(ids.sign("upstream", other, 3), BINDING) is None
    for number in range(REMEMBERED + 2):
        assert ids.verify(ids.sign(f"upstream-{number}", BINDING, 1), BINDING) == f"upstream-{number}"


def test_fields_cannot_be_shifted_into_each_other() -> None:
    signed = IDS.sign("u", Binding("a", "bc", "d"), 1)
    assert IDS.verify(signed, Binding("ab", "c", "d")) is None
    assert IDS.verify(signed, Binding('a","bc', "", "d")) is None


head, _, tag = SIGNED.rpartition(".")
_, _, payload = head.rpartition(".")
FORGED = {
    "the server's own id": "upstream",
    "empty": "",
    "no tag": head,
    "empty tag": head + ".",
    "tag cut short": SIGNED[:-1],
    "tag of zeros": f"{head}.{'A' * 22}",
    "padded tag": SIGNED + "==",
    "another spelling of the same tag": head + "." + tag[:-1] + chr(ord(tag[-1]) + 1),
    "another prefix": "mt2" + SIGNED[3:],
    "another key": SIGNED.replace("mt1.b.", "mt1.a."),
    "an unknown key": SIGNED.replace("mt1.b.", "mt1.z."),
    "a payload of one's own": f"mt1.b.{base64.urlsafe_b64encode(b'[]').decode().rstrip('=')}.{tag}",
    "a payload with one bit changed": f"mt1.b.{payload[:-1]}{'A' if payload[-1] != 'A' else 'B'}.{tag}",
    "a fifth part": SIGNED + ".x",
    "white space around": f" {SIGNED}",
    "a line break at the end": SIGNED + "\n",
    "very long": "mt1.b." + "A" * 100_000 + "." + tag,
    "not ASCII": SIGNED.replace("mt1", "mｔ1"),
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED.keys())
def test_a_forged_id_is_refused(forged: str) -> None:
    assert IDS.verify(forged, BINDING) is None


@given(st.text())
def test_no_text_is_taken_for_a_signed_id(text: str) -> None:
    assert IDS.verify(text, BINDING) is None
    assert IDS.verify("mt1.b." + text, BINDING) is None


def test_an_older_key_still_verifies_and_a_removed_one_does_not() -> None:
    old = SessionIds(KeyRing(signing="a", keys=(OLD,))).sign("u", BINDING, 1)
    assert IDS.verify(old, BINDING) == "u"
    assert SessionIds(KeyRing(signing="b", keys=(NEW,))).verify(old, BINDING) is None


@pytest.mark.parametrize("upstream", ["", "x" * 1025, "with space", "tab\t", "é", "nul\0", "line\n"])
def test_a_server_s_id_that_no_header_may_carry_is_not_signed(upstream: str) -> None:
    with pytest.raises(UpstreamIdUnusable):
        IDS.sign(upstream, BINDING, 1)


def test_the_longest_server_id_survives_the_way_there_and_back() -> None:
    upstream = "~" * 1024
    assert IDS.verify(IDS.sign(upstream, BINDING, 1), BINDING) == upstream


@pytest.mark.parametrize("ring", [KeyRing(signing="z", keys=(OLD,)), KeyRing(signing="a", keys=())])
def test_a_ring_without_its_signing_key_is_refused(ring: KeyRing) -> None:
    with pytest.raises(ValueError):
        SessionIds(ring)
