"""Parts that production has on other machines: what is measured of a host must not depend on them.

They go on, since the host's gateway is not alone in the world either, but get no core that the host wants.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from localstack.processes import Supervisor

PARTS = frozenset({"operator", "postgres", "kube-apiserver", "kube-controller-manager", "etcd"})
"""Names of the children that are not of the host."""
ELSEWHERE = """
Operator, API server and PostgreSQL, which in production are on other machines, go on with their work (call records
above all) at the lowest priority.
"""
"""For a description of what was measured."""
_LOWEST, _ORDINARY = 19, 0


@contextmanager
def others_last(supervisor: Supervisor) -> Generator[None]:
    """Their processes, as they are at the beginning, have the lowest priority meanwhile."""
    _all(supervisor, _LOWEST)
    try:
        yield
    finally:
        _all(supervisor, _ORDINARY)


def _all(supervisor: Supervisor, nice: int) -> None:
    for child in supervisor.children():
        if child.command.name in PARTS and child.running():
            for pid in _family(child.pid):
                # A process that ends meanwhile wants no core.
                with suppress(FileNotFoundError, ProcessLookupError):
                    _set(pid, nice)


def _set(pid: int, nice: int) -> None:
    group = Path(f"/proc/{pid}/autogroup")
    if group.exists():
        # Kernels that group processes by session share the cores among the groups.
        group.write_text(str(nice))
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(thread.name), nice)


def _family(pid: int) -> Iterator[int]:
    """It and what it started."""
    yield pid
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in (thread / "children").read_text().split():
            yield from _family(int(child))
