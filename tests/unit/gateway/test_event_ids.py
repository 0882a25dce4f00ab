"""Event ids work in the session they were sent in, and in no other."""

from __future__ import annotations

import base64
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolbox_dtma.gateway.event_ids import EventIds
from toolbox_dtma.gateway.sessions import Binding, SessionIds
from toolbox_dtma.link.messages import KeyRing, SigningKey


def key(kid: str) -> SigningKey:
    return SigningKey(kid=kid, secret=base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode())


OLD, NEW = key("a"), key("b")
RING = SessionIds(KeyRing(signing="b", keys=(OLD, NEW)))
BINDING = Binding("connection", "instance", "incarnation")


def ids(binding: Binding = BINDING, session: str = "session", ring: SessionIds | None = RING) -> EventIds:
    return EventIds(lambda: ring, binding, session)


WRAPPED = ids().wrap(b"event-7").decode()


def test_a_wrapped_id_gives_the_server_s_id_back() -> None:
    assert ids().unwrap(WRAPPED) == "event-7"
    assert WRAPPED.startswith("me1.b.") and len(WRAPPED.rpartition(".")[2]) == 22


@pytest.mark.parametrize("field", ["connection", "instance", "incarnation", "subject", "kind"])
def test_an_id_of_anyone_else_is_refused(field: str) -> None:
    assert ids(BINDING._replace(**{field: "other"})).unwrap(WRAPPED) is None


@pytest.mark.parametrize("session", ["", "session-2", "Session"])
def test_an_id_of_another_session_of_the_same_connection_is_refused(session: str) -> None:
    assert ids(session=session).unwrap(WRAPPED) is None


def test_session_and_event_cannot_be_shifted_into_each_other() -> None:
    wrapped = ids(session='s"]x').wrap(b"1").decode()
    assert ids(session="s").unwrap(wrapped) is None
    assert ids(session="s").wrap(b'"]x1') != wrapped.encode()


head, _, tag = WRAPPED.rpartition(".")
FORGED = {
    "the server's own id": "event-7",
    "empty": "",
    "no tag": head,
    "tag cut short": WRAPPED[:-1],
    "tag of zeros": f"{head}.{'A' * 22}",
    "padded": WRAPPED + "==",
    "another spelling of the same tag": head + "." + tag[:-1] + chr(ord(tag[-1]) + 1),
    "a session id": RING.sign("event-7", BINDING, 1),
    "another key": WRAPPED.replace("me1.b.", "me1.a."),
    "an unknown key": WRAPPED.replace("me1.b.", "me1.z."),
    "another event under the same tag": f"me1.b.{base64.urlsafe_b64encode(b'event-8').decode().rstrip('=')}.{tag}",
    "not base64url": f"me1.b.x.{tag}",
    "a line break at the end": WRAPPED + "\n",
    "very long": "me1.b." + "A" * 100_000 + "." + tag,
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED.keys())
def test_a_forged_id_is_refused(forged: str) -> None:
    assert ids().unwrap(forged) is None


@given(st.text())
def test_no_text_is_taken_for_a_wrapped_id(text: str) -> None:
    assert ids().unwrap(text) is None
    assert ids().unwrap("me1.b." + text) is None


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=1024))
def test_every_id_that_a_header_may_carry_comes_back(event_id: str) -> None:
    assert ids().unwrap(ids().wrap(event_id.encode()).decode()) == event_id


@pytest.mark.parametrize("event_id", [b"", b"x" * 1025, b"tab\t", "é".encode(), b"\xff"])
def test_an_id_that_no_header_may_carry_is_not_wrapped(event_id: bytes) -> None:
    assert ids().wrap(event_id) == b""


def test_a_new_key_wraps_at_once_and_an_older_one_still_unwraps() -> None:
    ring = SessionIds(KeyRing(signing="a", keys=(OLD,)))
    running = EventIds(lambda: ring, BINDING, "session")
    before = running.wrap(b"1").decode()
    ring = RING
    assert running.wrap(b"2").startswith(b"me1.b.")
    assert ids().unwrap(before) == "1"
    assert ids(ring=SessionIds(KeyRing(signing="b", keys=(NEW,)))).unwrap(before) is None


def test_without_a_key_ring_nothing_is_wrapped_or_unwrapped() -> None:
    assert ids(ring=None).wrap(b"1") == b""
    assert ids(ring=None).unwrap(WRAPPED) is None
