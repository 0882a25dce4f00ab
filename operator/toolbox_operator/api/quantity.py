"""Kubernetes quantities and Go durations as the specs write them, in plain integers."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

MEMORY_PATTERN = r"^[0-9]{1,16}(\.[0-9]{1,9})?(Ki|Mi|Gi|Ti|k|M|G|T)?$"
CPU_PATTERN = r"^([0-9]{1,9}m|[0-9]{1,6}(\.[0-9]{1,9})?)$"
DURATION_PATTERN = r"^([0-9]{1,4}h)?([0-9]{1,5}m)?([0-9]{1,6}s)?$"

_BYTES: dict[str, int] = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}
_SECONDS: dict[str, int] = {"h": 3600, "m": 60, "s": 1}


def parse_memory(text: str) -> int:
    """Bytes of a memory quantity; a fraction of a byte counts as one, as in Kubernetes. ValueError if malformed.

    >>> parse_memory("256Mi"), parse_memory("1.5G")
    (268435456, 1500000000)
    """
    if re.fullmatch(MEMORY_PATTERN, text) is None:
        raise ValueError(f"not a memory quantity: {text!r}; write it like 256Mi or 1Gi")
    number = text.rstrip("kKMGTi")
    return _round_up(Decimal(number) * _BYTES[text[len(number) :]])


def parse_cpu(text: str) -> int:
    """Thousandths of a CPU; a fraction of a thousandth counts as one. ValueError if malformed.

    >>> parse_cpu("500m"), parse_cpu("1.5")
    (500, 1500)
    """
    if re.fullmatch(CPU_PATTERN, text) is None:
        raise ValueError(f"not a CPU quantity: {text!r}; write it like 500m or 1.5")
    if text.endswith("m"):
        return int(text[:-1])
    return _round_up(Decimal(text) * 1000)


def parse_duration(text: str) -> int:
    """Seconds of a duration in hours, minutes and seconds. ValueError if malformed.

    >>> parse_duration("40s"), parse_duration("1h30m")
    (40, 5400)
    """
    if not text or re.fullmatch(DURATION_PATTERN, text) is None:
        raise ValueError(f"not a duration: {text!r}; write it like 40s or 1m30s")
    return sum(int(number) * _SECONDS[unit] for number, unit in re.findall(r"([0-9]+)([hms])", text))


def _round_up(value: Decimal) -> int:
    return int(value.to_integral_value(rounding=ROUND_CEILING))
