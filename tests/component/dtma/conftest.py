"""One DTMA per test."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio

from support.dtma_host import DtmaHost
from support.dtma_worker import ScriptedWorker, connected

pytestmark = pytest.mark.component


@pytest_asyncio.fixture
async def host() -> AsyncGenerator[DtmaHost]:
    """A running DTMA with a fake engine, claimed by one owner."""
    # Not below pytest's folder: its path may be longer than a unix socket's may be.
    with tempfile.TemporaryDirectory(prefix="dtma-") as folder:
        # The gateway's user has to enter it; os, not pathlib, since this is no place for a thread.
        os.chmod(folder, 0o755)
        host = DtmaHost(Path(folder))
        await host.start()
        await host.claimed()
        try:
            yield host
        finally:
            host.engine.removable.set()
            await host.stop()


@pytest_asyncio.fixture
async def worker(host: DtmaHost) -> AsyncGenerator[ScriptedWorker]:
    """One obedient gateway worker, connected."""
    async with connected(ScriptedWorker(), host.socket_path) as worker:
        yield worker
