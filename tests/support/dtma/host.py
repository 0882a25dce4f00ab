"""A DTMA under test: the real management API over TLS and the real gateway socket, a fake engine behind it."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx

from localstack.ports import free_port
from support.dtma.sessions import Brokers, FakeSessions
from toolbox_dtma.engine.api import NOTHING_SPENT, EngineUnavailable, Holder, Seen, SeenListener, Spent, Wanted
from toolbox_dtma.init import InitOptions, init
from toolbox_dtma.policy.process import Processes, ProcessId
from toolbox_dtma.serve import serve
from toolbox_dtma.sessions.process import Spawn
from toolbox_dtma.settings import Bounds, Timings
from toolbox_dtma.state.files import read_record, write_record
from toolbox_dtma.state.records import HostRecord
from toolbox_dtma.wire import (
    EPOCH_HEADER,
    HTTP_STATUS,
    OWNER_HEADER,
    ContainerReport,
    EngineFacts,
    InstancePhase,
    InstanceReason,
    InstanceState,
    Problem,
)

T = TypeVar("T")

OWNER = "cluster-a"
FAST = Timings(
    probe_first_retry=0.02,
    probe_start_interval=0.1,
    probe_error_interval=0.1,
    probe_interval=0.2,
    probe_session_interval=60.0,
    probe_session_retry=0.1,
    probe_session_retry_max=0.4,
    broker_end=0.05,
    broker_retry_first=0.05,
    broker_patience=0.5,
    session_last_words=0.1,
    sessions_told=0.2,
    spare_after=0.01,
    gateway_away=60.0,
    heartbeat=0.1,
    first_sight=0.3,
    removal_retry=0.05,
    graceful_stop=1,
)
"""Short where every test waits. Deadlines that a busy machine could miss are long: see `DtmaHost.timed`."""


class FakeEngine(FakeSessions):
    """`Engine` without Docker: what is wanted runs at once, unless `runs` is off. Survives restarts of DTMA."""

    def __init__(self) -> None:
        super().__init__()
        self.listener: SeenListener | None = None
        self.wanted: dict[str, Wanted] = {}
        self.containers: dict[str, str] = {}
        """Incarnation by instance id: what Docker would hold."""
        self.removed: list[str] = []
        self.volumes_removed: list[Holder] = []
        """Whose volumes went with the removals."""
        self.spent: Spent | None = None
        """What the last sweep was told."""
        self.runs = True
        self.available = True
        self.removable = asyncio.Event()
        self.removable.set()
        self.log_lines: dict[str, Sequence[bytes]] = {}
        self._starts = 0

    async def run(self, listener: SeenListener) -> None:
        """Show what runs, then wait to be cancelled."""
        self.listener = listener
        for instance_id in tuple(self.wanted):
            self._converge(instance_id)
        await asyncio.Event().wait()

    def want(self, wanted: Wanted) -> None:
        """Converge at once."""
        self.wanted[wanted.id] = wanted
        self._converge(wanted.id)

    def _converge(self, instance_id: str) -> None:
        if not self.available or not self.runs or self.listener is None:
            return
        desired = self.wanted[instance_id].desired
        if desired.state is InstanceState.STOPPED:
            self.containers.pop(instance_id, None)
            self.deployed.pop(instance_id, None)
            self.show(instance_id, phase=InstancePhase.STOPPED, reason=InstanceReason.STOPPED)
            return
        if instance_id not in self.containers:
            self.restart(instance_id)
        else:
            self.show(instance_id)

    def restart(self, instance_id: str) -> str:
        """A new start of the container; its incarnation."""
        self._starts += 1
        self.containers[instance_id] = self.deployed[instance_id] = f"start-{self._starts}"
        self.show(instance_id)
        return self.containers[instance_id]

    def show(
        self,
        instance_id: str,
        *,
        phase: InstancePhase = InstancePhase.STARTING,
        reason: InstanceReason = InstanceReason.STARTING,
        message: str = "",
    ) -> None:
        """Report the instance as it is now."""
        desired = self.wanted[instance_id].desired
        incarnation = self.containers.get(instance_id)
        assert self.listener is not None
        self.listener(
            instance_id,
            Seen(
                generation=desired.generation,
                inputs_hash=desired.inputs_hash,
                phase=phase,
                reason=reason,
                message=message,
                container=self.report(instance_id),
                address="127.0.0.1" if incarnation and desired.port is not None else None,
                incarnation=incarnation,
            ),
        )

    def report(self, instance_id: str) -> ContainerReport | None:
        """The container as the engine would describe it; None: not at all."""
        return None

    async def remove(self, instance_id: str, *, volumes_of: Holder | None = None) -> None:
        """Remove once `removable`, and only while available."""
        if not self.available:
            raise EngineUnavailable("the engine is away")
        await self.removable.wait()
        self.volumes_removed += [volumes_of] if volumes_of is not None else []
        self.wanted.pop(instance_id, None)
        self.containers.pop(instance_id, None)
        self.deployed.pop(instance_id, None)
        self.removed.append(instance_id)

    async def sweep(self, known: frozenset[str], spent: Spent = NOTHING_SPENT) -> tuple[str, ...]:
        """Remove what is neither known nor wanted."""
        if not self.available:
            raise EngineUnavailable("the engine is away")
        self.spent = dict(spent)
        orphans = tuple(sorted(self.containers.keys() - known - self.wanted.keys()))
        for instance_id in orphans:
            await self.remove(instance_id)
        return orphans

    async def logs(self, instance_id: str, *, tail: int, since: float | None, follow: bool) -> AsyncGenerator[bytes]:
        """Lines set by the test; following never ends."""
        if not self.available:
            raise EngineUnavailable("the engine is away")
        del since
        for line in self.log_lines[instance_id][-tail:]:
            yield line
        if follow:
            await asyncio.Event().wait()

    async def facts(self) -> EngineFacts:
        """A fixed version."""
        return EngineFacts(available=self.available, version="20.10.24", api_version="1.41")


class FakeProcesses:
    """`Processes` for workers that live inside the test: each connection is a process of its own, unless pinned."""

    def __init__(self) -> None:
        self.dead: set[ProcessId] = set()
        self.killed: list[ProcessId] = []
        self.pinned: ProcessId | None = None
        self._next = 1000

    def identify(self, pid: int) -> ProcessId | None:
        """A new process, or the pinned one."""
        del pid
        self._next += 1
        return self.pinned or ProcessId(self._next, self._next, "this-boot")

    def is_dead(self, process: ProcessId) -> bool:
        """As the test says."""
        return process in self.dead

    def kill(self, process: ProcessId) -> None:
        """Recorded; the process is dead from now on."""
        self.killed.append(process)
        self.dead.add(process)


@dataclass
class DtmaHost:
    """One host folder, and the DTMA that may be running on it."""

    folder: Path
    engine: FakeEngine = field(default_factory=FakeEngine)
    processes: Processes = field(default_factory=FakeProcesses)
    brokers: Brokers = field(default_factory=Brokers)
    spawn: Spawn | None = None
    """Starts other brokers than the scripted ones."""
    timings: Timings = FAST
    bounds: Bounds = field(default_factory=Bounds)
    port: int = field(default_factory=free_port)
    _running: Timings = FAST
    _stop: asyncio.Event | None = None
    _task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        # init refuses a gateway that is root; the workers here run as whoever runs the tests.
        options = InitOptions(
            state_dir=self.state_dir,
            gateway_dir=self.folder / "gateway",
            runtime_dir=self.folder / "run",
            addresses=("127.0.0.1",),
            management_port=self.port,
            gateway_port=free_port(),
            gateway_user="65534" if os.getuid() == 0 else str(os.getuid()),
            name="tbx-1",
            namespace="mcp-system",
            bind="127.0.0.1",
        )
        init(options, now=lambda: datetime.now(UTC))
        path = self.state_dir / "host.json"
        record = read_record(path, HostRecord)
        mine = {"gateway_uid": os.getuid(), "gateway_gid": os.getgid()}
        write_record(path, record.model_copy(update=mine))

    @property
    def state_dir(self) -> Path:
        """DTMA's private folder."""
        return self.folder / "state"

    @property
    def socket_path(self) -> Path:
        """The gateway socket."""
        return self.folder / "run" / "gateway.sock"

    async def start(self) -> None:
        """Start DTMA and wait until it serves."""
        self._stop = asyncio.Event()
        self._running = self.timings.model_copy()
        self._task = asyncio.create_task(
            serve(
                self.state_dir,
                stop=self._stop,
                make_engine=lambda host, spec_key: self.engine,
                processes=self.processes,
                make_spawn=lambda host: self.spawn or self.brokers,
                timings=self._running,
                bounds=self.bounds,
            )
        )
        async with asyncio.timeout(10):
            while not await self._serves():
                if self._task.done():
                    self._task.result()
                await asyncio.sleep(0.01)

    async def _serves(self) -> bool:
        try:
            async with self.client() as client:
                return (await client.get("/readyz")).status_code == 200
        except httpx.TransportError:
            return False

    async def stop(self) -> None:
        """Stop DTMA as SIGTERM would."""
        if self._task is not None and self._stop is not None:
            self._stop.set()
            async with asyncio.timeout(10):
                await self._task
            self._task = None
            self.engine.listener = None
            self.brokers.close()

    @contextmanager
    def timed(self, **seconds: float) -> Generator[None]:
        """Meanwhile other timings for a DTMA that runs on, as far as it reads them at every use."""
        members = vars(self._running)
        before = {name: members[name] for name in seconds}
        members.update(seconds)
        try:
            yield
        finally:
            members.update(before)

    async def restart(self) -> None:
        """Stop and start."""
        await self.stop()
        await self.start()

    @asynccontextmanager
    async def client(
        self, owner: str | None = OWNER, epoch: int | None = 1, *, token: str | None = None
    ) -> AsyncGenerator[httpx.AsyncClient]:
        """A client that trusts the host's authority and names this owner and epoch."""
        given = token if token is not None else (self.state_dir / "token").read_text()
        headers = {"Authorization": f"Bearer {given}"}
        headers |= {OWNER_HEADER: owner} if owner is not None else {}
        headers |= {EPOCH_HEADER: str(epoch)} if epoch is not None else {}
        trust = ssl.create_default_context(cafile=str(self.state_dir / "ca.crt"))
        async with httpx.AsyncClient(
            base_url=f"https://127.0.0.1:{self.port}", headers=headers, verify=trust, timeout=10
        ) as client:
            yield client

    async def claimed(self, owner: str = OWNER, epoch: int = 1) -> None:
        """Claim the host."""
        async with self.client(owner, epoch) as client:
            (await client.put(f"/v2/owners/{owner}", json={"epoch": epoch})).raise_for_status()


async def eventually(look: Callable[[], Awaitable[T]], good: Callable[[T], bool], what: str, seconds: float = 20) -> T:
    """The first value of `look` that is `good`; fails with the last one seen."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        seen = await look()
        if good(seen):
            return seen
        if asyncio.get_running_loop().time() >= deadline:
            raise AssertionError(f"not {what} after {seconds} s; last seen: {seen!r}")
        await asyncio.sleep(0.01)


async def observed(api: httpx.AsyncClient, instance: str = "i-1") -> dict[str, Any]:
    """What DTMA says of an instance now."""
    return (await api.get(f"/v2/instances/{instance}")).raise_for_status().json()["observed"]


async def ready(api: httpx.AsyncClient, instance: str = "i-1", seconds: float = 20) -> dict[str, Any]:
    """The same once it is ready."""
    return await eventually(lambda: observed(api, instance), lambda o: o["phase"] == "Ready", "ready", seconds)


def code_of(response: httpx.Response) -> str:
    """The problem code of a refusal, which must be a well-formed problem."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem = Problem.model_validate_json(response.content)
    assert problem.status == response.status_code == HTTP_STATUS[problem.code]
    return problem.code.value


def instance_body(**changes: Any) -> dict[str, Any]:
    """A desired instance, as JSON."""
    return {
        "uid": "uid-1",
        "namespace": "team-a",
        "name": "time",
        "generation": 1,
        "inputsHash": "0" * 64,
        "image": "registry.example.com/mcp-time:1.4",
        "port": 3001,
        "path": "/mcp",
    } | changes


def stdio_body(**changes: Any) -> dict[str, Any]:
    """A desired stdio instance, as JSON."""
    body = instance_body(transport="stdio", sessions={"maxSessions": 3, "idleSeconds": 60.0})
    del body["port"], body["path"]
    return body | changes


def sse_body(**changes: Any) -> dict[str, Any]:
    """A desired instance of the SSE transport, as JSON."""
    return instance_body(transport="sse", path="/sse") | changes


def grant_body(**changes: Any) -> dict[str, Any]:
    """A grant, as JSON."""
    return {
        "namespace": "team-a",
        "name": "bot-time",
        "generation": 1,
        "instance": "i-1",
        "agent": "research-bot",
        "credentials": [{"type": "sha256", "value": "a" * 64}],
    } | changes
