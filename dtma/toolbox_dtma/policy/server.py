"""The unix socket on which gateway workers get the policy, acknowledge it and run probes.

Order matters here: a change is in the contents and queued for every worker before any await, so each worker sees
snapshot and deltas in the order of their revisions.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import structlog
from pydantic import ValidationError

from toolbox_dtma.link.framing import FrameError, encode_frame, read_frame
from toolbox_dtma.link.messages import (
    TO_DTMA,
    Ack,
    Calls,
    CallsTaken,
    Change,
    Cut,
    Delta,
    Hello,
    KeyRing,
    Ping,
    Pong,
    ProbeRequest,
    ProbeResult,
    Vitals,
)
from toolbox_dtma.link.sockets import bound
from toolbox_dtma.policy.contents import Contents, split
from toolbox_dtma.policy.members import Members
from toolbox_dtma.policy.process import Processes, ProcessId, peer_of
from toolbox_dtma.policy.worker import NoWorker, Worker
from toolbox_dtma.settings import Bounds, Timings

log = structlog.get_logger("toolbox_dtma.policy")

TICK = 0.05
"""Seconds between looks at the workers while an acknowledgement is due."""

PINGS = 3
"""Unanswered pings, spread over `Timings.silence`, after which a worker is silent."""


TakeCalls = Callable[[Calls, Callable[[], None]], None]
"""Takes what a worker tells of calls, and calls back once it need not be kept there."""


class AckPending(Exception):
    """Not every worker has acknowledged yet. The change is in force as soon as they do, without further word."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a probe talks to: a server at its address, or the session broker on its socket."""

    path: str
    address: str = ""
    port: int = 0
    bridge: str | None = None
    """Path of the broker's socket, in place of address and port."""
    ticket: str = field(default="", repr=False)
    """What the broker shows DTMA for sessions of this probe."""
    start: float = 0.0
    """Seconds that processes made for it may take until they answer, beyond the conversation."""


class PolicyServer:
    """Holds the policy and the workers. `start()` once the contents are what workers may be given."""

    def __init__(
        self,
        *,
        keyring: KeyRing,
        first_revision: int,
        socket_path: Path,
        gateway_uid: int,
        gateway_gid: int,
        previous: tuple[ProcessId, ...],
        save_workers: Callable[[tuple[ProcessId, ...]], Awaitable[None]],
        processes: Processes,
        timings: Timings,
        bounds: Bounds,
        clock: Callable[[], float],
        observe_ack: Callable[[float], None],
        observe_cuts: Callable[[Cut, int], None],
        take_calls: TakeCalls,
    ):
        """`first_revision` is above every revision of earlier runs; `clock` gives monotonic seconds."""
        self.contents = Contents(keyring)
        self.revision = first_revision
        self._withdrawn = first_revision
        self._socket_path = socket_path
        self._gateway = (gateway_uid, gateway_gid)
        self._save_workers = save_workers
        self._processes = processes
        self._timings = timings
        self._bounds = bounds
        self._clock = clock
        self._observe_ack = observe_ack
        self._observe_cuts = observe_cuts
        self._take_calls = take_calls
        self._members = Members(previous, now=clock(), lost_seconds=timings.worker_lost)
        self._workers: set[Worker] = set()
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._probe_ids = itertools.count(1)
        self._nonces = itertools.count(1)
        self._saving = asyncio.Lock()
        self._saved = frozenset(previous)
        self._joining: set[ProcessId] = set()
        self._pinged_at = 0.0
        self._unsettled: dict[int, float] = {}
        self._changed = asyncio.Condition()
        self._due = asyncio.Event()
        self._due.set()
        self._listeners: list[Callable[[], None]] = []

    # ------------------------------------------------------------------ state
    @property
    def workers(self) -> int:
        """Connected workers."""
        return len(self._members.connected)

    @property
    def workers_current(self) -> int:
        """Connected workers that acknowledged the present revision."""
        return sum(member.acked >= self.revision for member in self._members.connected)

    @property
    def vitals(self) -> tuple[Vitals, ...]:
        """What each connected worker said last about itself, where one has."""
        return tuple(worker.vitals for worker in self._workers if worker.vitals is not None)

    def in_force(self, revision: int, *, somewhere: bool) -> bool:
        """Whether no worker acts on anything older; with `somewhere`, also whether one acts on it at all."""
        return self._members.in_force(revision, somewhere=somewhere)

    def on_progress(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever an acknowledgement or a worker's end may have put a revision in force."""
        self._listeners.append(listener)

    async def staffed(self, wanted: bool) -> None:
        """Return once there is a worker, or none any more."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._members.connected) is wanted)

    # ----------------------------------------------------------------- change
    def publish(self, change: Change) -> int:
        """Make a change part of the policy and send it to every worker; the revision to wait for."""
        for part in split(change):
            self.revision += 1
            if self.contents.withdraws(part):
                self._withdrawn = self.revision
            self.contents.apply(part)
            frame = encode_frame(Delta(revision=self.revision, change=part))
            for worker in tuple(self._workers):
                worker.send(frame)
        if self._workers:
            self._unsettled[self.revision] = self._clock()
        else:
            self._unsettled.clear()
        self._due.set()
        return self.revision

    async def settled(self, revision: int, *, somewhere: bool) -> None:
        """Return once `revision` is in force. Raises `AckPending` after the deadline."""
        try:
            async with asyncio.timeout(self._timings.ack_deadline), self._changed:
                await self._changed.wait_for(lambda: self.in_force(revision, somewhere=somewhere))
        except TimeoutError:
            raise AckPending(self._members.why_pending(revision)) from None

    async def apply(self, change: Change, *, somewhere: bool = True) -> int:
        """`publish` and wait. Raises `AckPending` after the deadline; the change stays."""
        revision = self.publish(change)
        await self.settled(revision, somewhere=somewhere)
        return revision

    # ---------------------------------------------------------------- serving
    async def run(self, *, started: asyncio.Event) -> None:
        """Serve until cancelled. `started` is set once workers can connect."""
        server = await asyncio.start_unix_server(self._accepted, sock=bound(self._socket_path, self._gateway[1]))
        try:
            started.set()
            await self._tend()
        finally:
            server.close()
            for writer in self._connections.values():
                # Their reading side then ends by itself.
                writer.transport.abort()
            await asyncio.gather(*self._connections, return_exceptions=True)
            await server.wait_closed()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            await self._serve(reader, writer)
        except (FrameError, ValidationError) as error:
            # The message of a ValidationError would quote what the peer sent.
            log.warning("gateway worker broke the protocol", error=type(error).__name__)
        except (OSError, TimeoutError) as error:
            log.info("gateway worker went away", error=type(error).__name__)
        finally:
            del self._connections[task]
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = peer_of(writer.get_extra_info("socket"))
        process = self._processes.identify(peer.pid) if peer.pid > 0 else None
        if peer.uid != self._gateway[0] or process is None:
            log.warning("refused on the gateway socket", uid=peer.uid, expected_uid=self._gateway[0], pid=peer.pid)
            return
        async with asyncio.timeout(self._timings.hello_deadline):
            payload = await read_frame(reader)
        if payload is None:
            return
        hello = TO_DTMA.validate_json(payload)
        if not isinstance(hello, Hello):
            raise FrameError(f"expected hello, got {hello.kind}")
        # On disk before it gets policy: after a crash the next run must know of this process.
        self._joining.add(process)
        try:
            await self._save()
            worker = self._join(process, writer)
        finally:
            self._joining.discard(process)
        log.info("gateway worker connected", worker=hello.worker, pid=peer.pid, revision=self.revision)
        try:
            while (payload := await read_frame(reader)) is not None:
                self._heard(worker, TO_DTMA.validate_json(payload))
        finally:
            self._leave(worker)
            log.info("gateway worker disconnected", worker=hello.worker, pid=peer.pid)

    def _join(self, process: ProcessId, writer: asyncio.StreamWriter) -> Worker:
        for other in tuple(self._workers):
            if other.member.process == process:
                other.writer.close()
                self._leave(other)
        now = self._clock()
        member = self._members.joined(process, self.revision, now)
        worker = Worker(member, writer, self._bounds.worker_backlog_bytes, now)
        self._workers.add(worker)
        for part in self.contents.snapshot(self.revision):
            worker.send(encode_frame(part))
        self._due.set()
        return worker

    def _leave(self, worker: Worker) -> None:
        if worker in self._workers:
            self._workers.discard(worker)
            self._members.lost(worker.member, self._clock())
            worker.fail_probes()
            self._due.set()

    def _heard(self, worker: Worker, message: Hello | Ack | Pong | ProbeResult | Calls | Vitals) -> None:
        worker.unanswered = 0
        match message:
            case Ack():
                if message.revision > self.revision:
                    raise FrameError("acknowledged a revision that does not exist")
                self._members.heard(worker.member, acked=message.revision)
                self._due.set()
            case Pong():
                self._members.heard(worker.member)
            case ProbeResult():
                self._members.heard(worker.member)
                worker.probed(message)
            case Vitals():
                self._members.heard(worker.member)
                worker.vitals = message
                for reason, number in message.cuts.items():
                    self._observe_cuts(reason, number)
            case Calls():
                self._members.heard(worker.member)
                if worker.telling:
                    raise FrameError("calls were told before the last ones were acknowledged")
                worker.telling = True
                self._take_calls(message, lambda: self._taken(worker, message))
            case Hello():
                raise FrameError("a second hello")

    @staticmethod
    def _taken(worker: Worker, message: Calls) -> None:
        worker.telling = False
        worker.send(encode_frame(CallsTaken(stream=message.stream, batch=message.batch)))

    # ----------------------------------------------------------------- probes
    async def probe(self, conversation: Conversation) -> ProbeResult:
        """Have a worker hold an MCP conversation.

        Raises `NoWorker` when none is connected, it goes away, or does not answer in time.
        """
        ready = [worker for worker in self._workers if not worker.writer.transport.is_closing()]
        if not ready:
            raise NoWorker("no gateway worker is connected")
        worker = min(ready, key=lambda candidate: len(candidate.probes))
        deadline = self._timings.probe_timeout
        request = ProbeRequest(probe=next(self._probe_ids), deadline=deadline, **asdict(conversation))
        return await worker.probe(request)

    # ---------------------------------------------------------------- tending
    async def _tend(self) -> None:
        """Watch the members: drop the dead and the expired, ping who owes, kill the silent, wake who waits."""
        while True:
            self._due.clear()
            await self._review()
            owing = self._members.owing(self.revision)
            idle = min(self._timings.hung / PINGS, 1.0) if self._workers or self._members.lost_ones else None
            pause = TICK if owing else idle
            try:
                async with asyncio.timeout(pause):
                    await self._due.wait()
            except TimeoutError:
                continue

    async def _review(self) -> None:
        now = self._clock()
        for member in self._members.lost_ones:
            if self._processes.is_dead(member.process):
                self._members.drop(member)
        for member in self._members.drop_expired(now):
            # Its own 30 s begin when it notices the loss: one that was frozen meanwhile would serve on.
            self._processes.kill(member.process)
            log.warning("gateway worker without a connection no longer counts; killed", pid=member.process.pid)
        if now - self._pinged_at >= self._timings.silence / PINGS:
            self._pinged_at = now
            self._ping_overdue()
        self._ask_for_life(now)
        for revision, published in tuple(self._unsettled.items()):
            if self.in_force(revision, somewhere=True):
                del self._unsettled[revision]
                self._observe_ack(now - published)
        async with self._changed:
            self._changed.notify_all()
        for listener in self._listeners:
            listener()
        await self._save_members()

    def _ping_overdue(self) -> None:
        """Counting pings, not seconds: a stall of this process must not look like silence of a worker.

        Only a withdrawal is worth a worker's life after so short a silence: killing it breaks every stream it
        relays, and on a busy machine 300 ms of silence are nothing unusual.
        """
        for worker in tuple(self._workers):
            member = worker.member
            if member.acked >= self.revision:
                continue
            urgent = 0 < member.acked < self._withdrawn
            allowed = PINGS if urgent else PINGS * self._timings.patient_silence / self._timings.silence
            if member.pings < allowed:
                member.pings += 1
                worker.send(encode_frame(Ping(nonce=next(self._nonces))))
            else:
                log.warning("gateway worker is silent while an acknowledgement is due; killed", pid=member.process.pid)
                self._end(worker)

    def _ask_for_life(self, now: float) -> None:
        """Nothing else would tell that a worker hangs while its policy stands: the agents it serves just wait."""
        for worker in tuple(self._workers):
            if now - worker.asked_at < self._timings.hung / PINGS:
                continue
            worker.asked_at = now
            if worker.unanswered < PINGS:
                worker.unanswered += 1
                worker.send(encode_frame(Ping(nonce=next(self._nonces))))
            else:
                log.warning("gateway worker hangs; killed", pid=worker.member.process.pid)
                self._end(worker)

    def _end(self, worker: Worker) -> None:
        self._processes.kill(worker.member.process)
        worker.writer.transport.abort()
        self._leave(worker)

    async def _save_members(self) -> None:
        try:
            await self._save()
        except OSError as error:
            # The list on disk then names too many, which only makes the next start more careful.
            log.warning("list of gateway workers could not be written", error=error.strerror)

    async def _save(self) -> None:
        async with self._saving:
            wanted = frozenset(self._members.processes) | self._joining
            if wanted != self._saved:
                await self._save_workers(tuple(wanted))
                self._saved = wanted
