"""What a host holds of its machine: processes with their descriptors and threads, networks and containers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from support.hosts.stdio_host import StdioHost, descriptors
from toolbox_dtma.engine.names import LABEL_HOST


def children() -> dict[int, list[int]]:
    """Pids of this machine by their parent's."""
    found: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        try:
            pid, parent = int(entry.name), int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            # No process, or one that has just ended.
            continue
        found.setdefault(parent, []).append(pid)
    return found


def _tree(pid: int) -> list[int]:
    by_parent, found = children(), [pid]
    for each in found:
        found += by_parent.get(each, [])
    return found


@dataclass(frozen=True, slots=True)
class Held:
    """At one moment."""

    containers: tuple[str, ...]
    networks: tuple[str, ...]
    descriptors: int
    threads: int


def held(host: StdioHost) -> Held:
    """What a host with a session broker holds: its DTMA, broker and gateway together, its containers and networks."""
    assert host.host.dtma is not None and host.host.gateway is not None
    # The broker is DTMA's child.
    pids = [host.host.dtma.pid, host.broker, *_tree(host.host.gateway.pid)]
    label = f"--filter=label={LABEL_HOST}={host.host.host_id}"
    return Held(
        containers=tuple(host.docker("ps", "--all", "--quiet", "--no-trunc", label).split()),
        networks=tuple(sorted(host.docker("network", "ls", "--quiet", label).split())),
        descriptors=sum(descriptors(pid) for pid in pids),
        threads=sum(len(os.listdir(f"/proc/{pid}/task")) for pid in pids),
    )
