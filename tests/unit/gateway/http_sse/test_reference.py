"""Where a client of HTTP+SSE is told to POST."""

from __future__ import annotations

from urllib.parse import urljoin

import pytest

from toolbox_dtma.gateway.http_sse.reference import Place, binding_of, locate, named, new_name, reference
from toolbox_dtma.gateway.sessions import Binding, SessionIds
from toolbox_dtma.link.messages import KeyRing, SigningKey

OLD, NEW = SigningKey(kid="old", secret="A" * 43), SigningKey(kid="new", secret="B" * 43)
IDS = SessionIds(KeyRing(signing="old", keys=(OLD,)))
OWN = binding_of("connection", "instance")
PLACE = Place(new_name(), new_name())


def signed(place: Place = PLACE, binding: Binding = OWN) -> str:
    found = named(reference(IDS, place, binding, 1))
    assert found is not None
    return found


def test_it_is_relative_to_the_stream_and_leads_back_to_it() -> None:
    told = reference(IDS, PLACE, OWN, 1)
    assert told.startswith("/servers/instance/messages?sessionId=mt1.old.")
    url = urljoin("https://gateway.example.com:30443/servers/instance/sse", told)
    assert url.startswith("https://gateway.example.com:30443/servers/instance/messages?sessionId=")
    assert locate(IDS, signed(), OWN) == PLACE


@pytest.mark.parametrize(
    "binding",
    [binding_of("another", "instance"), binding_of("connection", "another"), Binding("connection", "instance", "")],
    ids=["connection", "instance", "kind"],
)
def test_it_is_nothing_to_another(binding: Binding) -> None:
    assert locate(IDS, signed(), binding) is None


def test_a_session_id_of_streamable_http_is_none_of_ours_nor_ours_one_of_those() -> None:
    other = Binding("connection", "instance", "")
    assert locate(IDS, IDS.sign("up", other, 1), OWN) is None
    assert IDS.verify(signed(), other) is None


def test_what_the_key_ring_would_sign_for_this_binding_must_still_name_a_worker_and_a_stream() -> None:
    assert locate(IDS, IDS.sign("no-place", OWN, 1), OWN) is None


@pytest.mark.parametrize(
    "altered", ["", signed()[:-1], signed() + "A", signed().replace("mt1", "me1"), signed().replace("old", "new")]
)
def test_one_that_was_altered_is_none(altered: str) -> None:
    assert locate(IDS, altered, OWN) is None


def test_it_survives_a_new_signing_key_and_ends_with_its_own() -> None:
    both = SessionIds(KeyRing(signing="new", keys=(OLD, NEW)))
    assert locate(both, signed(), OWN) == PLACE
    assert locate(SessionIds(KeyRing(signing="new", keys=(NEW,))), signed(), OWN) is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("/servers/i/messages?sessionId=a.b", "a.b"),
        ("/servers/i/messages?x=1&sessionId=a.b", "a.b"),
        ("/servers/i/messages", None),
        ("/servers/i/messages?", None),
        ("/servers/i/messages?sessionId=a&sessionId=a", None),
        ("/servers/i/messages?sessionid=a", None),
        ("/servers/i/messages?session%49d=a", None),
    ],
)
def test_exactly_one_parameter_names_the_stream(path: str, value: str | None) -> None:
    assert named(path) == value
