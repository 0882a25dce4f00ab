"""Which peers count as this machine."""

from __future__ import annotations

import pytest

from toolbox_dtma.management.gate import is_loopback, unexpected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("localhost", False),
        ("", False),
        (None, False),
    ],
)
def test_only_loopback_addresses_are_this_machine(host: str | None, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_an_unforeseen_error_tells_its_kind_but_not_its_text() -> None:
    assert "s3cr3t" not in unexpected(RuntimeError("s3cr3t")).detail
