"""How much is tried: few examples in every run, any number of times more by MAGIC_TOOLBOX_FUZZ."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

FACTOR = max(1, int(os.environ.get("MAGIC_TOOLBOX_FUZZ", "1")))
"""Multiplies the examples of every fuzz test."""


def examples(number: int) -> settings:
    """As many examples, times the factor. Without a deadline for each: the machine may be busy."""
    # A world is shared by all examples on purpose: it is what they attack.
    return settings(
        max_examples=number * FACTOR,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
