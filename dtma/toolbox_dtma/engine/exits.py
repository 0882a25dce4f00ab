"""Exits that mean something else: what the init process complains of before it ends in the server's place."""

from __future__ import annotations

import re

from toolbox_dtma.engine.client import DockerClient
from toolbox_dtma.engine.failures import cannot_execute
from toolbox_dtma.engine.logs import read_tail
from toolbox_dtma.engine.models import Container
from toolbox_dtma.engine.plan import Step

_EXEC_FAILED = frozenset({126, 127})
_INIT_COMPLAINT = re.compile(rb"\[FATAL tini \(\d+\)\] exec (?P<what>.+) failed: (?P<why>.+)")


async def explained(client: DockerClient, step: Step, container: Container) -> Step:
    """The step, with a failed start as its reason where the init process found no program to start."""
    if container.state.exit_code not in _EXEC_FAILED:
        return step
    tail = await read_tail(client, container.id, lines=5)
    found = _INIT_COMPLAINT.search(tail)
    if found is None:
        return step
    failure = cannot_execute(found["what"].decode(errors="replace"), found["why"].decode(errors="replace"))
    return Step(step.do, step.phase, failure.reason, container, failure.message)
