"""The life of a connection's tokens, as it is kept on its Secret."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from support.reconcilers.observed import UID, connection
from toolbox_operator.domain.credential import (
    TOKEN,
    Target,
    Tokens,
    advance,
    client_configuration,
    credentials,
    digest,
    new_token,
    owned,
    promote,
    read_tokens,
    secret_body,
    secret_patch,
)

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
TARGET = Target("time", "https://t.example.com/servers/x/mcp", "streamable-http", None)


def token(number: int) -> str:
    return new_token(number.to_bytes(32, "big"))


def made(tokens: Tokens, target: Target = TARGET) -> dict[str, Any]:
    return secret_body(connection(), "bot-time-mcp", tokens, target)


@given(st.binary(min_size=32, max_size=32))
def test_a_token_is_a_prefix_and_32_bytes_in_url_safe_base64(random_bytes: bytes) -> None:
    made_token = new_token(random_bytes)
    assert TOKEN.fullmatch(made_token)
    assert base64.urlsafe_b64decode(made_token[4:] + "=") == random_bytes


steps = st.lists(st.sampled_from(["rotate", "acked", "tick", "crash"]), max_size=12)


@given(steps)
def test_whatever_happens_the_agents_token_is_accepted_and_never_more_than_four_are(path: list[str]) -> None:
    now, asked, numbers = NOW, "", iter(range(1, 100))
    tokens = advance(None, None, now, token(0))
    accepted = {c.value for c in credentials(tokens)}
    for number, step in enumerate(path):
        if step == "rotate":
            asked = str(number)
        elif step == "tick":
            now += timedelta(minutes=4)
        elif step == "acked":
            tokens = promote(tokens, now, 600)
        else:
            read = read_tokens(made(tokens))
            assert read is not None
            tokens = read
        assert digest(tokens.token) in accepted, "the token in the Secret must have been accepted before it got there"
        tokens = advance(tokens, asked or None, now, token(next(numbers)))
        told = credentials(tokens)
        assert len(told) <= 4
        assert all(c.not_after is None or c.not_after > now for c in told)
        accepted = {c.value for c in told}


@given(steps)
def test_a_secret_says_everything_that_is_needed_to_go_on(path: list[str]) -> None:
    tokens, numbers = advance(None, None, NOW, token(0)), iter(range(1, 100))
    for number, step in enumerate(path):
        tokens = (
            promote(tokens, NOW, 600) if step == "acked" else advance(tokens, str(number), NOW, token(next(numbers)))
        )
        assert read_tokens(made(tokens)) == tokens
        assert secret_patch(made(tokens), connection(), tokens, TARGET) == {}


def test_a_replaced_token_ends_by_itself_at_its_time() -> None:
    tokens = promote(Tokens(token(1), next=token(2), rotating="r"), NOW, 600)
    assert tokens.token == token(2)
    assert tokens.rotated == "r"
    _, old = credentials(tokens)
    assert old.value == digest(token(1))
    assert old.not_after == NOW + timedelta(minutes=10)
    assert advance(tokens, "r", NOW + timedelta(minutes=10), token(3)) == Tokens(token(2), rotated="r")


def test_a_rotation_is_asked_for_by_a_new_value_only() -> None:
    tokens = Tokens(token(1), rotated="r")
    assert advance(tokens, "r", NOW, token(2)) == tokens
    assert advance(tokens, None, NOW, token(2)) == tokens
    assert advance(tokens, "s", NOW, token(2)).next == token(2)


def test_without_a_usable_token_everything_starts_over_and_old_tokens_are_dropped() -> None:
    damaged = made(promote(Tokens(token(1), next=token(2)), NOW, 600))
    damaged["data"]["token"] = base64.b64encode(b"weak").decode()
    assert read_tokens(damaged) is None
    fresh = advance(read_tokens(damaged), "r", NOW, token(3))
    assert fresh == Tokens(token(3), rotated="r")
    patch = secret_patch(damaged, connection(), fresh, TARGET)
    assert patch["metadata"]["annotations"]["magictoolbox.dev/previous"] is None


@given(st.text(max_size=60), st.dictionaries(st.sampled_from(["token", "token-next"]), st.text(max_size=20)))
def test_reading_a_secret_that_somebody_edited_never_fails(note: str, data: dict[str, str]) -> None:
    secret = made(Tokens(token(1)))
    secret["metadata"]["annotations"]["magictoolbox.dev/previous"] = note
    secret["data"] |= data
    read_tokens(secret)


def test_only_the_owner_reference_of_this_incarnation_makes_a_secret_ours() -> None:
    secret = made(Tokens(token(1)))
    assert owned(secret, connection())
    assert not owned(secret, connection(uid="another"))
    assert not owned({"metadata": {"labels": {"magictoolbox.dev/connection": UID}}}, connection())
    secret["metadata"]["ownerReferences"][0]["controller"] = False
    assert not owned(secret, connection())


def test_a_client_configuration_needs_nothing_else() -> None:
    server = json.loads(client_configuration(TARGET, token(1)))["mcpServers"]["time"]
    assert server == {"type": "http", "url": TARGET.url, "headers": {"Authorization": f"Bearer {token(1)}"}}


def test_a_ca_that_is_not_there_any_more_leaves_the_secret() -> None:
    with_ca = made(Tokens(token(1)), Target("time", TARGET.url, "streamable-http", "PEM"))
    patch = secret_patch(with_ca, connection(), Tokens(token(1)), TARGET)
    assert patch == {"data": {"ca.crt": None, "token-next": None}} or patch == {"data": {"ca.crt": None}}


def test_tokens_are_not_in_a_repr() -> None:
    assert "mtb_" not in repr(Tokens(token(1), next=token(2)))
