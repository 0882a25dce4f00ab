"""Event ids of streams that only the session they were sent in can resume by (design §6).

Servers were seen to replay the events of other sessions to whoever names one of their ids.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable

from toolbox_dtma.gateway.sessions import TAG_BYTES, Binding, SessionIds, bound, decode, encode

PREFIX = "me1"
MAX_SIGNED_CHARACTERS = 4096

_EVENT_ID = re.compile(r"[\x20-\x7e]{1,1024}")
_PARTS = re.compile(r"me1\.([A-Za-z0-9_-]{1,64})\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")


class EventIds:
    """Wraps the event ids that a server sends within one of its sessions, and unwraps what a client resumes by."""

    def __init__(self, keys: Callable[[], SessionIds | None], binding: Binding, session: str):
        """`keys` gives the key ring in force, which may change while a stream runs; `session` is the server's id."""
        self._keys = keys
        self._bound = [*bound(binding), session]
        self._ring: SessionIds | None = None
        self._head = b""
        self._mac: hmac.HMAC | None = None

    def wrap(self, event_id: bytes) -> bytes:
        """The id for the client; empty, which forbids to resume here, for one that no header could carry back."""
        ring = self._keys()
        try:
            text = event_id.decode()
        except UnicodeDecodeError:
            return b""
        if ring is None or not _EVENT_ID.fullmatch(text):
            return b""
        if ring is not self._ring or self._mac is None:
            self._ring = ring
            self._head = f"{PREFIX}.{ring.signing}.".encode()
            self._mac = self._begun(ring, ring.signing)
        mac = self._mac.copy()
        mac.update(event_id)
        return self._head + f"{encode(event_id)}.{encode(mac.digest()[:TAG_BYTES])}".encode()

    def unwrap(self, wrapped: str) -> str | None:
        """The server's id, or None: unsigned, altered, sent in another session, or by a key that is gone."""
        parts = _PARTS.fullmatch(wrapped) if len(wrapped) <= MAX_SIGNED_CHARACTERS else None
        ring = self._keys()
        if parts is None or ring is None or parts[1] not in ring.keys:
            return None
        try:
            event_id = decode(parts[2])
        except ValueError:
            return None
        mac = self._begun(ring, parts[1])
        mac.update(event_id)
        # The texts are compared: other spellings of the same bytes are not ours.
        same = hmac.compare_digest(encode(mac.digest()[:TAG_BYTES]), parts[3]) and encode(event_id) == parts[2]
        return event_id.decode() if same else None

    def _begun(self, ring: SessionIds, kid: str) -> hmac.HMAC:
        # A JSON array ends where it ends: no event id can be read as part of it.
        text = json.dumps([PREFIX, kid, *self._bound], separators=(",", ":"))
        return hmac.new(ring.keys[kid], text.encode(), hashlib.sha256)
