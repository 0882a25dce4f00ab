"""Session ids that only the connection they were given to can use (design §6). Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from toolbox_dtma.link.messages import KeyRing

PREFIX = "mt1"
KIND = "streamable-http"
TAG_BYTES = 16
MAX_UPSTREAM_CHARACTERS = 1024
MAX_SIGNED_CHARACTERS = 4096
REMEMBERED = 1024
"""Ids that are known to be good, so that a session's every request need not prove it anew."""

_UPSTREAM_ID = re.compile(r"[\x21-\x7e]{1,1024}")
_PARTS = re.compile(r"mt1\.([A-Za-z0-9_-]{1,64})\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")


class UpstreamIdUnusable(Exception):
    """A server sent a session id that no header may carry, or one of more than 1 KiB."""


class Binding(NamedTuple):
    """Whom a session id belongs to. The token is not part of it, so that rotation keeps sessions."""

    connection: str
    instance: str
    incarnation: str
    subject: str = ""
    kind: str = KIND


class SessionIds:
    """Signs and verifies with one key ring."""

    def __init__(self, ring: KeyRing):
        self.keys: Mapping[str, bytes] = {key.kid: decode(key.secret) for key in ring.keys}
        self.signing = ring.signing
        self._verified: dict[tuple[str, Binding], str] = {}
        self._signed: dict[tuple[str, Binding], str] = {}
        if self.signing not in self.keys:
            raise ValueError("the signing key is not in the key ring")

    def sign(self, upstream_id: str, binding: Binding, issued_at: int) -> str:
        """The id for the client. `issued_at` is in Unix seconds; a session keeps the id it was first given.

        Raises `UpstreamIdUnusable`.
        """
        known = self._signed.get((upstream_id, binding))
        if known is None:
            known = self._sign(upstream_id, binding, issued_at)
            if len(self._signed) >= REMEMBERED:
                self._signed.clear()
            self._signed[upstream_id, binding] = known
        return known

    def _sign(self, upstream_id: str, binding: Binding, issued_at: int) -> str:
        if not _UPSTREAM_ID.fullmatch(upstream_id):
            raise UpstreamIdUnusable("the server's session id is not 1 to 1024 visible ASCII characters")
        fields = [*bound(binding), upstream_id, issued_at]
        head = f"{PREFIX}.{self.signing}.{encode(json.dumps(fields, separators=(',', ':')).encode())}"
        return f"{head}.{self._tag(self.signing, head)}"

    def verify(self, signed: str, binding: Binding) -> str | None:
        """The server's id, or None: unsigned, altered, signed for another binding, or by a key that is gone."""
        known = self._verified.get((signed, binding))
        if known is None and (known := self._proven(signed, binding)) is not None:
            if len(self._verified) >= REMEMBERED:
                self._verified.clear()
            self._verified[signed, binding] = known
        return known

    def _proven(self, signed: str, binding: Binding) -> str | None:
        parts = _PARTS.fullmatch(signed) if len(signed) <= MAX_SIGNED_CHARACTERS else None
        if parts is None or parts[1] not in self.keys:
            return None
        head, _, tag = signed.rpartition(".")
        # The tag is compared as text: other spellings of the same bytes are not ours.
        if not hmac.compare_digest(self._tag(parts[1], head), tag):
            return None
        fields = cast("list[Any]", json.loads(decode(parts[2])))
        if fields[:-2] != bound(binding):
            return None
        return cast("str", fields[-2])

    def _tag(self, kid: str, head: str) -> str:
        return encode(hmac.digest(self.keys[kid], head.encode(), hashlib.sha256)[:TAG_BYTES])


def bound(binding: Binding) -> list[str]:
    """The binding as what is signed has it."""
    return [binding.connection, binding.instance, binding.incarnation, binding.subject, binding.kind]


def encode(raw: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """The inverse of `encode`. Raises `ValueError`."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("not base64url") from error
