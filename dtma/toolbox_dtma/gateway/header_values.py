"""Values that mirror a body in headers (2026-07-28, streamable HTTP: value encoding). Pure."""

from __future__ import annotations

import base64
import binascii
import re

_BASE64_VALUE = re.compile(r"=\?base64\?(.*)\?=")


def decode_header(value: str) -> str | None:
    """A mirrored header's value, out of `=?base64?…?=` if it is wrapped; None if it is wrapped wrongly."""
    wrapped = _BASE64_VALUE.fullmatch(value)
    if wrapped is None:
        return value
    try:
        decoded = base64.b64decode(wrapped[1], validate=True)
        text = decoded.decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    return text if base64.b64encode(decoded).decode() == wrapped[1] else None
