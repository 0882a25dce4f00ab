"""A broker inside of the test's own process, whose deadlines and memory are small."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from support.broker.world import FakeDtma
from toolbox_dtma.broker.budget import Budget
from toolbox_dtma.broker.face import Face
from toolbox_dtma.broker.session import Patience
from toolbox_dtma.broker.sessions import Sessions
from toolbox_dtma.broker.sse import Deadlines


@dataclass(frozen=True)
class Inside:
    """The parts of it."""

    path: Path
    dtma: FakeDtma
    sessions: Sessions


@asynccontextmanager
async def inside(
    patience: Patience | None = None, budget: Budget | None = None, deadlines: Deadlines | None = None
) -> AsyncGenerator[Inside]:
    """A broker that serves until the end of the block."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    log = structlog.get_logger()
    with tempfile.TemporaryDirectory(prefix="mtb-broker-", dir="/tmp") as folder:
        path = Path(folder) / "broker.sock"
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        dtma = FakeDtma(ours)
        sessions = Sessions(theirs, log, patience=patience, budget=budget, deadlines=deadlines)
        face = Face(sessions, log)
        server = await face.listen(listening)
        try:
            yield Inside(path, dtma, sessions)
        finally:
            server.close()
            await sessions.close()
            await face.close(1)
            dtma.close()
