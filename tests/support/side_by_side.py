"""Which tests stay together when `pytest -n` runs them in several processes.

Each process starts the servers its own tests ask for; so the tests that share expensive ones form a group, and the
groups that take longest come first, to leave the short ones for the end.
"""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
LONG = (
    "faults/crashes/test_operator_crashes.py",
    "faults/kubernetes",
    "faults/bad_input",
    "faults/crashes",
    "faults/processes",
    "faults/hosts",
    "integration/api",
    "e2e",
    "component/gateway",
    "integration",
    "component",
)
"""Folders (or files) under `tests/`, longest first; what is not below any of them comes last."""
SHARED = {
    "faults/bad_input": "objects",
    "faults/lifecycle": "objects",
    "faults/bulkhead": "processes",
    "faults/processes": "processes",
    "faults/record": "processes",
    "faults/test_harness.py": "processes",
    "unit": "",
}
"""Folders (or files) that share servers with others, by the name of the group; "" for none to share."""


def arrange(items: list[pytest.Item], *, in_groups: bool) -> None:
    """Names the group of each test; and, where there are several processes, brings the groups into order."""
    ranks = {item: rank_of(item) for item in items}
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item)))
    if in_groups:
        items.sort(key=lambda item: ranks[item])


def _place(item: pytest.Item) -> str:
    return item.path.relative_to(TESTS).as_posix()


def rank_of(item: pytest.Item) -> int:
    """0 for the longest."""
    place = _place(item)
    return next((rank for rank, long in enumerate(LONG) if place.startswith(long)), len(LONG))


def group_of(item: pytest.Item) -> str:
    """The tests that have to run in the same process."""
    place = _place(item)
    for part, name in SHARED.items():
        if place.startswith(part):
            return name or place
    if place in LONG:
        return place
    return place.rsplit("/", 1)[0]
