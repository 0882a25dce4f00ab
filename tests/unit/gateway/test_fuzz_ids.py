"""Whatever is done to a session id or an event id, it is good for what it was made for or for nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from support.fuzz import examples
from support.gateway.scripted_dtma import new_key_ring
from toolbox_dtma.gateway.event_ids import EventIds
from toolbox_dtma.gateway.sessions import Binding, SessionIds
from toolbox_dtma.link.messages import KeyRing

KEYS = (*new_key_ring("a").keys, *new_key_ring("b").keys)
RING = SessionIds(KeyRing(signing="b", keys=KEYS))
MINE, THEIRS = Binding("mine", "instance", "incarnation"), Binding("theirs", "instance", "incarnation")
MY_EVENTS = EventIds(lambda: RING, MINE, "session")
SIGNED = [RING.sign(upstream, owner, 1) for upstream in ("u", "v" * 40) for owner in (MINE, THEIRS)]
WRAPPED = [
    EventIds(lambda: RING, owner, session).wrap(event).decode()
    for owner in (MINE, THEIRS)
    for session in ("session", "other")
    for event in (b"1", b"2")
]
PARTS = st.sampled_from([part for each in (*SIGNED, *WRAPPED) for part in each.split(".")])


@st.composite
def mutated(draw: st.DrawFn, originals: list[str]) -> str:
    """An id cut, spliced with another, put together from parts of several, or with characters changed."""
    text = draw(st.sampled_from(originals))
    match draw(st.integers(0, 4)):
        case 0:
            text = ".".join(draw(st.lists(PARTS, min_size=2, max_size=5)))
        case 1:
            other = draw(st.sampled_from(originals))
            text = text[: draw(st.integers(0, len(text)))] + other[draw(st.integers(0, len(other))) :]
        case 2:
            at = draw(st.integers(0, len(text) - 1))
            text = text[:at] + draw(st.characters()) + text[at + draw(st.integers(0, 1)) :]
        case 3:
            at = draw(st.integers(0, len(text) - 1))
            text = text[:at] + text[at].swapcase() + text[at + 1 :]
        case _:
            text = draw(st.sampled_from(["", " ", "mt1.", "me1."])) + text + draw(st.sampled_from(["", "=", ".", "\n"]))
    return text


@examples(400)
@given(mutated(SIGNED))
def test_a_mutated_session_id_is_one_of_mine_or_none(text: str) -> None:
    assert (RING.verify(text, MINE) is not None) == (text in SIGNED and text in (SIGNED[0], SIGNED[2]))


@examples(400)
@given(mutated(WRAPPED))
def test_a_mutated_event_id_is_one_of_this_session_or_none(text: str) -> None:
    assert (MY_EVENTS.unwrap(text) is not None) == (text in WRAPPED[:2])
