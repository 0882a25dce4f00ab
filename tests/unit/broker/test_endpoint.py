"""What an endpoint event may name: a URL of the server's own, however it writes it."""

from __future__ import annotations

import pytest

from toolbox_dtma.broker.endpoint import MAX_REFERENCE_BYTES, BadEndpoint, message_path

ADDRESS, PORT = "10.1.2.3", 3001


def resolved(reference: bytes, *, address: str = ADDRESS, port: int = PORT, path: str = "/a/sse") -> str:
    return message_path(reference, address, port, path)


@pytest.mark.parametrize(
    ("reference", "path"),
    [
        (b"/messages?sessionId=1f", "/messages?sessionId=1f"),
        (b"/messages/?session_id=a&b=c%20d", "/messages/?session_id=a&b=c%20d"),
        (b"messages?s=1", "/a/messages?s=1"),
        (b"./messages", "/a/messages"),
        (b"../messages", "/messages"),
        (b"../../../messages", "/messages"),
        (b"?s=1", "/a/sse?s=1"),
        (b"#here", "/a/sse"),
        (b"/messages?s=1#here", "/messages?s=1"),
        (b" /messages\t", "/messages"),
        (b"//localhost:3001/messages", "/messages"),
        (b"http://localhost:3001/messages?s=1", "/messages?s=1"),
        (b"HTTP://LocalHost:3001/messages", "/messages"),
        (b"http://10.1.2.3:3001/messages", "/messages"),
        (b"http://10.1.2.3:3001", "/"),
        (b"http://10.1.2.3:3001//messages", "//messages"),
        (b"/messages;v=1/@x:y?q=[1]", "/messages;v=1/@x:y?q=[1]"),
    ],
)
def test_a_reference_is_resolved_against_the_url_of_the_stream(reference: bytes, path: str) -> None:
    assert resolved(reference) == path


@pytest.mark.parametrize(
    "reference",
    [
        b"http://evil.example/messages",
        b"http://evil.example:3001/messages",
        b"//evil.example:3001/messages",
        b"//messages",
        b"https://localhost:3001/messages",
        b"http://localhost/messages",
        b"http://localhost:3002/messages",
        b"http://localhost:0/messages",
        b"http://127.0.0.1:3001/messages",
        b"http://localhost.evil.example:3001/messages",
        b"http://10.1.2.3.evil.example:3001/messages",
        b"http://user@localhost:3001/messages",
        b"http://@localhost:3001/messages",
        b"http://localhost:3001@evil.example/messages",
        b"ftp://localhost:3001/messages",
        b"file:///etc/passwd",
        b"javascript:1",
    ],
)
def test_another_origin_than_its_own_is_refused(reference: bytes) -> None:
    with pytest.raises(BadEndpoint, match="another origin than its own: "):
        resolved(reference)


@pytest.mark.parametrize(
    "reference",
    [
        b"/messages page",
        b"/messages\nHost: evil",
        b"/messages\0",
        b"/m\xc3\xa9ssages",
        b"/\xff",
        b"\\\\evil.example\\messages",
        b'{"endpoint":"/messages"}',
        b"http://[::1/messages",
        b"http://localhost:port/messages",
        b"http://localhost:99999/messages",
    ],
)
def test_what_is_no_url_is_refused(reference: bytes) -> None:
    with pytest.raises(BadEndpoint, match="holds no URL: ") as refused:
        resolved(reference)
    assert str(refused.value).isprintable()


def test_what_is_longer_than_any_url_has_to_be_is_refused() -> None:
    longest = b"/" + b"x" * (MAX_REFERENCE_BYTES - 1)
    assert resolved(longest) == longest.decode()
    with pytest.raises(BadEndpoint, match="longer than 2048 bytes"):
        resolved(longest + b"x")


def test_the_port_of_http_need_not_be_named() -> None:
    for reference in (b"http://localhost/messages", b"http://10.1.2.3:80/messages", b"http://localhost:/messages"):
        assert resolved(reference, port=80) == "/messages"
    with pytest.raises(BadEndpoint):
        resolved(b"http://localhost:3001/messages", port=80)


def test_an_address_of_ipv6_counts_too() -> None:
    assert resolved(b"http://[fd00::2]:3001/messages", address="fd00::2") == "/messages"
    with pytest.raises(BadEndpoint):
        resolved(b"http://[fd00::3]:3001/messages", address="fd00::2")
