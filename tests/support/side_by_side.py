"""Which tests stay together when `pytest -n` runs them in several processes.

Each process starts the servers its own tests ask for; so the tests that share expensive ones form a group, and the
groups that take longest come first, to leave the short ones for the end.
"""

from __future__ import annotations

from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

TESTS = Path(__file__).parents[1]
LONG = (
    "faults/crashes/test_operator_crashes.py",
    "faults/kubernetes",
    "faults/crashes/test_dtma_enumeration.py",
    "faults/stdio",
    "faults/processes",
    "faults/hosts",
    "faults/bad_input",
    "faults/crashes",
    "component/gateway",
    "integration/engine",
    "component/dtma",
    "e2e/gateway",
    "e2e",
    "integration/api",
    "integration/stdio",
    "component/broker",
    "integration",
    "component",
)
"""Folders (or files) under `tests/`, longest first; what is not below any of them comes last.

A process that has no more than two tests left is given the next group at once. The first group here and the third are
so small: the fourth and the fifth, which come with them, are short ones.
"""
SHARED = {
    "faults/bad_input": "objects",
    "faults/lifecycle": "objects",
    "faults/bulkhead": "processes",
    "faults/processes": "processes",
    "faults/record": "processes",
    "faults/test_harness.py": "processes",
    "integration/api": "kubernetes",
    "integration/localstack": "kubernetes",
    "integration/operator_infra": "kubernetes",
    "unit": "",
}
"""Folders (or files) that share servers with others, by the name of the group; "" for none to share."""


def rank_of(nodeid: str) -> int:
    """0 for what takes longest."""
    place = _place(nodeid)
    return next((rank for rank, long in enumerate(LONG) if place.startswith(long)), len(LONG))


def group_of(nodeid: str) -> str:
    """The tests that have to run in the same process."""
    place = _place(nodeid)
    for part, name in SHARED.items():
        if place.startswith(part):
            return name or place
    if place in LONG:
        return place
    return place.rsplit("/", 1)[0]


def _place(nodeid: str) -> str:
    return nodeid.partition("::")[0].removeprefix("tests/")


class Scheduler(LoadScopeScheduling):
    """Gives each process a group at a time, in the order of the tests.

    xdist's own groups, by a mark, do nothing with pytest 9.2: they change an attribute that it no longer reads.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
