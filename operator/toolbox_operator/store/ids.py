"""UUIDv7: ids that carry their time and sort by it."""

from __future__ import annotations

import random
import uuid
from datetime import datetime


def uuid7(at: datetime, rng: random.Random) -> str:
    """A UUID of version 7 (RFC 9562) for the given time; unique by its 74 random bits, not secret."""
    milliseconds = int(at.timestamp() * 1000) & ((1 << 48) - 1)
    value = milliseconds << 80 | 0x7 << 76 | rng.getrandbits(12) << 64 | 0b10 << 62 | rng.getrandbits(62)
    return str(uuid.UUID(int=value))


def first_id(at: datetime) -> str:
    """Where ids (UUIDv7) of this moment begin."""
    milliseconds = int(at.timestamp() * 1000)
    return str(uuid.UUID(int=milliseconds << 80))
