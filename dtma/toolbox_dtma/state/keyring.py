"""The ring of keys that sign session and event ids, and when which of them does what. Pure but for randomness.

A new key is first only known to every worker, so that none meets an id it cannot verify, and signs from then on
(design §6). The one before it verifies for as long as ids of it may be in use.
"""

from __future__ import annotations

import base64
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from toolbox_dtma.link.messages import KeyRing, SigningKey
from toolbox_dtma.state.records import KeyRingRecord

LOOK_AT_LEAST = timedelta(hours=1)
"""The wall clock may jump, so what is due is looked up again this often."""


@dataclass(frozen=True, slots=True)
class Announce:
    """A key that has yet to be known everywhere joins the ring."""


@dataclass(frozen=True, slots=True)
class Promote:
    """The key that every worker knows by now signs."""

    kid: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Ids of these keys are no longer taken."""

    kids: frozenset[str]


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing to do before this long."""

    duration: timedelta


def decide(
    record: KeyRingRecord, now: datetime, *, lifetime: timedelta, kept: timedelta
) -> Announce | Promote | Drop | Rest:
    """The next step for a key ring: keys sign for `lifetime`, and verify for `kept` after that."""
    waiting = [
        key.kid for key in record.keyring.keys if key.kid != record.keyring.signing and key.kid not in record.retired
    ]
    if waiting:
        return Promote(waiting[-1])
    gone = frozenset(kid for kid, since in record.retired.items() if now - since >= kept)
    if gone:
        return Drop(gone)
    age = now - record.signing_since
    if age >= lifetime:
        return Announce()
    ends = [lifetime - age, *(kept - (now - since) for since in record.retired.values())]
    return Rest(min(*ends, LOOK_AT_LEAST))


def new_key(kid: str) -> SigningKey:
    """32 random bytes under a name."""
    return SigningKey(kid=kid, secret=base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode())


def first_ring(now: datetime) -> KeyRingRecord:
    """What a new host begins with."""
    key = new_key("k1")
    return KeyRingRecord(keyring=KeyRing(signing=key.kid, keys=(key,)), signing_since=now)


def announced(record: KeyRingRecord) -> KeyRingRecord:
    """With one more key, which does not sign yet."""
    numbers = [int(match[1]) for key in record.keyring.keys if (match := re.fullmatch(r"k(\d{1,18})", key.kid))]
    key = new_key(f"k{max(numbers, default=0) + 1}")
    ring = record.keyring.model_copy(update={"keys": (*record.keyring.keys, key)})
    return record.model_copy(update={"keyring": ring})


def promoted(record: KeyRingRecord, kid: str, now: datetime) -> KeyRingRecord:
    """With another key that signs."""
    ring = record.keyring.model_copy(update={"signing": kid})
    retired = {**record.retired, record.keyring.signing: now}
    return record.model_copy(update={"keyring": ring, "signing_since": now, "retired": retired})


def without(record: KeyRingRecord, kids: frozenset[str]) -> KeyRingRecord:
    """Without some retired keys."""
    ring = record.keyring.model_copy(update={"keys": tuple(key for key in record.keyring.keys if key.kid not in kids)})
    retired = {kid: since for kid, since in record.retired.items() if kid not in kids}
    return record.model_copy(update={"keyring": ring, "retired": retired})
