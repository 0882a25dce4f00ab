"""`toolbox-dtma serve`: the whole host process, wired and stopped in order."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from pathlib import Path

import structlog
import uvicorn

from toolbox_dtma.certificates import PairFiles
from toolbox_dtma.engine.api import Engine
from toolbox_dtma.management.app import make_app
from toolbox_dtma.management.connection import bounded_protocol
from toolbox_dtma.management.service import Service
from toolbox_dtma.policy.process import LinuxProcesses, Processes
from toolbox_dtma.sessions.process import Spawn, spawner
from toolbox_dtma.settings import Bounds, Timings
from toolbox_dtma.state.files import ensure_folder
from toolbox_dtma.state.records import HostRecord
from toolbox_dtma.state.store import State, alone_on
from toolbox_dtma.tls import following_context

log = structlog.get_logger("toolbox_dtma")

MakeEngine = Callable[[HostRecord, bytes], Engine]


def docker_engine(host: HostRecord, spec_key: bytes) -> Engine:
    """The real engine."""
    from toolbox_dtma.engine.docker import DockerEngine

    return DockerEngine(host.host_id, spec_key, Path(host.runtime_dir), host.docker_url)


MakeSpawn = Callable[[HostRecord], Spawn]


def real_broker(host: HostRecord) -> Spawn:
    """A process under the gateway's user."""
    return spawner(host.gateway_uid, host.gateway_gid)


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: this process has one stop order for all its parts."""

    def __init__(self, config: uvicorn.Config):
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


async def serve(
    state_dir: Path,
    *,
    stop: asyncio.Event,
    make_engine: MakeEngine = docker_engine,
    processes: Processes | None = None,
    make_spawn: MakeSpawn = real_broker,
    timings: Timings | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Run until `stop`.

    Raises `NotInitialised`, `StateInUse`, `StateCorrupt`, `PairRefused`, and what ends the service unexpectedly.
    """
    with alone_on(state_dir):
        await _serve(
            state_dir,
            stop,
            make_engine,
            processes or LinuxProcesses(),
            make_spawn,
            timings or Timings(),
            bounds or Bounds(),
        )


async def _serve(
    state_dir: Path,
    stop: asyncio.Event,
    make_engine: MakeEngine,
    processes: Processes,
    make_spawn: MakeSpawn,
    timings: Timings,
    bounds: Bounds,
) -> None:
    state = State(state_dir, now=lambda: datetime.now(UTC))
    host = state.host
    runtime_dir = Path(host.runtime_dir)
    ensure_folder(runtime_dir, mode=0o750)
    os.chown(runtime_dir, -1, host.gateway_gid)
    certificate = PairFiles(state_dir / "tls.crt", state_dir / "tls.key", now=lambda: datetime.now(UTC))
    service = Service(
        state=state,
        engine=make_engine(host, base64.b64decode((state_dir / "spec.key").read_bytes())),
        processes=processes,
        timings=timings,
        bounds=bounds,
        clock=time.monotonic,
        certificate=certificate,
        spawn_broker=make_spawn(host),
    )
    token = (state_dir / "token").read_text().strip()
    config = uvicorn.Config(
        make_app(service, token=token),
        host=host.bind,
        port=host.management_port,
        http=bounded_protocol(timings.request_head),
        log_config=None,
        access_log=False,
        server_header=False,
        # Else X-Forwarded-For could pretend to be loopback.
        proxy_headers=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=timings.graceful_stop,
    )
    config.load()
    # uvicorn itself would read the files once, and for good.
    config.ssl = following_context(lambda: certificate.pair.pem)
    server = _Server(config)
    running = asyncio.create_task(service.run(), name="service")
    listening: asyncio.Task[None] | None = None
    stopping = asyncio.create_task(stop.wait())
    ready = asyncio.create_task(service.ready.wait())
    try:
        await asyncio.wait({running, ready, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if service.ready.is_set() and not stop.is_set():
            listening = asyncio.create_task(_listen(server, state), name="management API")
            await asyncio.wait({running, listening, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        log.info("stopping", host_id=host.host_id)
        ready.cancel()
        stopping.cancel()
        await _stop(service, server, running, listening)


async def _listen(server: _Server, state: State) -> None:
    announcing = asyncio.create_task(_announce(server, state))
    try:
        await server.serve()
    except SystemExit as error:
        # uvicorn exits the process when it cannot bind; the other parts must stop first.
        raise RuntimeError("the management API could not listen on its address and port") from error
    finally:
        announcing.cancel()


async def _stop(
    service: Service, server: _Server, running: asyncio.Task[None], listening: asyncio.Task[None] | None
) -> None:
    """API first, so that nothing new is accepted; then workers' socket and engine. Raises what ended a part early."""
    service.events.close()
    server.should_exit = True
    if listening is not None:
        await asyncio.wait({listening})
    running.cancel()
    await asyncio.wait({running})
    for task in (running, listening):
        if task is not None and not task.cancelled():
            task.result()


async def _announce(server: _Server, state: State) -> None:
    await server.listening.wait()
    log.info(
        "ready",
        host_id=state.host.host_id,
        boot_id=state.boot_id,
        listen=f"{state.host.bind}:{state.host.management_port}",
        instances=len(state.instances),
        grants=len(state.grants),
    )


async def serve_until_signal(state_dir: Path) -> None:
    """`serve`, stopped by SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(state_dir, stop=stop)
