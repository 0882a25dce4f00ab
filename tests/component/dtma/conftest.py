"""One DTMA per test."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
import structlog

from support.dtma.host import DtmaHost
from support.dtma.worker import ScriptedWorker, connected

pytestmark = pytest.mark.component


@pytest.fixture(scope="package", autouse=True)
def plain_logs() -> Generator[None]:
    """Tracebacks as the process itself prints them: the default ones take seconds to render, with every local."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["level", "event"]),
        ]
    )
    yield
    structlog.reset_defaults()


@pytest.fixture
def open_folder() -> Generator[Path]:
    """A folder that the gateway's user can enter, with a path short enough for a unix socket."""
    with tempfile.TemporaryDirectory(prefix="dtma-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest_asyncio.fixture
async def host(open_folder: Path) -> AsyncGenerator[DtmaHost]:
    """A running DTMA with a fake engine, claimed by one owner."""
    host = DtmaHost(open_folder)
    await host.start()
    await host.claimed()
    try:
        yield host
    finally:
        host.engine.removable.set()
        await host.stop()


@pytest_asyncio.fixture
async def api(host: DtmaHost) -> AsyncGenerator[httpx.AsyncClient]:
    """A client of its owner."""
    async with host.client() as client:
        yield client


@pytest_asyncio.fixture
async def worker(host: DtmaHost) -> AsyncGenerator[ScriptedWorker]:
    """One obedient gateway worker, connected."""
    async with connected(ScriptedWorker(), host.socket_path) as worker:
        yield worker
