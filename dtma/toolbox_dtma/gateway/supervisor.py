"""The gateway's supervisor: N workers on one port, their certificate, a graceful end, a newer version of itself."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from toolbox_dtma.certificates import POLL_SECONDS, Notice, Pair, PairFiles, PairRefused, make_pair
from toolbox_dtma.gateway import handover
from toolbox_dtma.gateway.children import Child, start
from toolbox_dtma.gateway.control import Certificate
from toolbox_dtma.gateway.descriptors import TooFewDescriptors, provide
from toolbox_dtma.gateway.handover import Handover, HeldChild, HeldSlot, ReloadRefused
from toolbox_dtma.gateway.memory import WorkersMemory
from toolbox_dtma.gateway.process import configure_logging
from toolbox_dtma.gateway.settings import GatewaySettings, SettingsInvalid, load_settings

FIRST_BACK_OFF = 0.05
LONGEST_BACK_OFF = 10.0
HEALTHY_SECONDS = 30.0
"""A worker that ran this long starts again without delay."""
KILL_AFTER_SECONDS = 8.0
"""How long after the drain a worker may still take to end."""
KILL_REPLACED_AFTER_SECONDS = 60.0
"""The same for one that was replaced: there is time to hand over its call records to a DTMA that is starting, too."""
PLACES = 2
"""For each slot: one for a worker that serves, one for one that drains. A reload waits until nothing drains."""
SERVING_SECONDS = 60.0
"""How long a worker may take from its start to its first accept when it replaces another: DTMA may be starting, too."""
BUSY_SECONDS = 0.05
"""Between looks while workers are being replaced."""
EXIT_USAGE = 2

_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP})


@dataclass(slots=True)
class _Slot:
    """One worker's place: its listening socket outlives the process, so that no connection is lost with it."""

    number: int
    listening: socket.socket
    child: Child | None = None
    stale: bool = False
    """Whether the worker is of the version or the settings before, and to be replaced."""
    successor: Child | None = None
    """Started to replace it, and not serving yet."""
    start_at: float = 0.0
    back_off: float = field(default=FIRST_BACK_OFF)


def listen(host: str, port: int, count: int) -> list[socket.socket]:
    """`count` sockets on one port, among which the kernel spreads connections. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        # Without this trial two gateways could share the port unnoticed, each with half of the agents.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        trial.bind((host, port))
    sockets: list[socket.socket] = []
    for _ in range(count):
        each = socket.socket(family, socket.SOCK_STREAM)
        sockets.append(each)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        each.bind((host, port))
        port = each.getsockname()[1]
        each.listen(1024)
        each.setblocking(False)
    return sockets


class Supervisor:
    """Starts, watches, replaces and stops workers. Single-threaded; sleeps in `sigtimedwait`."""

    def __init__(
        self,
        settings: GatewaySettings,
        files: PairFiles | None,
        log: FilteringBoundLogger,
        *,
        before: Handover | None = None,
    ):
        """`before`: what the version before left running. Raises `OSError` and `TooFewDescriptors`."""
        self._settings = settings
        self._files = files
        self._log = log
        self._draining: list[tuple[Child, float]] = []
        self._reload_wanted = False
        self._replacing = before is not None
        self._successor_due = 0.0
        self._look_at = time.monotonic() + POLL_SECONDS
        if before is None:
            sockets = listen(settings.listen_host, settings.listen_port, settings.workers)
            self._slots = [_Slot(number, each) for number, each in enumerate(sockets)]
            self._memory = WorkersMemory.make(PLACES * len(self._slots))
        else:
            self._slots = [_taken_slot(number, held) for number, held in enumerate(before.slots)]
            left, places = list(before.left), PLACES * len(self._slots)
            self._memory = WorkersMemory.taken(before.counts, before.fence, left, places)
        self._plan = provide(settings.clients, len(self._slots))

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._slots[0].listening.getsockname()[1])

    def run(self) -> None:
        """Keep the workers running until SIGTERM or SIGINT, then drain them. SIGHUP: `handover`."""
        self._tell_start()
        while True:
            self._reap()
            self._replace()
            self._start_due()
            self._certify()
            self._kill_overdue()
            if self._reload_wanted and not self._replacing and not self._draining:
                self._reload_wanted = False
                self._reload()
            received = signal.sigtimedwait(_SIGNALS, self._pause())
            if received is None or received.si_signo == signal.SIGCHLD:
                continue
            if received.si_signo != signal.SIGHUP:
                break
            self._reload_wanted = True
        self._stop()

    def _tell_start(self) -> None:
        share = self._plan.share
        self._log.info(
            "supervising",
            workers=len(self._slots),
            port=self.port,
            connections_per_worker=share.connections,
            per_source_and_worker=share.per_source,
        )
        if self._plan.wanted > self._plan.descriptors >= 0:
            self._log.warning("few-descriptors", have=self._plan.descriptors, wanted=self._plan.wanted)
        if self._replacing and (len(self._slots), self.port) != (self._settings.workers, self._settings.listen_port):
            self._log.warning("restart-needed", why="workers and listenPort are taken up by a restart only")
        if self._files is not None and self._files.pair.expires <= datetime.now(UTC):
            self._log.warning("certificate-expired", expired=self._files.pair.expires.isoformat())

    # ---------------------------------------------------------------- workers
    def _start(self, slot: _Slot, *, replaces: bool) -> Child:
        name = f"worker-{slot.number}"
        taken = {child.place for child in self._children()}
        place = next(place for place in range(PLACES * len(self._slots)) if place not in taken)
        return start(
            name,
            place,
            self._settings,
            self._plan.share,
            slot.listening,
            self._memory,
            time.monotonic(),
            replaces=replaces,
        )

    def _reap(self) -> None:
        for slot in self._slots:
            for child in (slot.child, slot.successor):
                if child is not None and (code := child.ended()) is not None:
                    self._forget(child)
                    self._ended(slot, child, code)
        for drained in tuple(self._draining):
            if (code := drained[0].ended()) is not None:
                self._forget(drained[0])
                self._draining.remove(drained)
                self._log.info("worker-drained", pid=drained[0].pid, code=code)

    def _forget(self, child: Child) -> None:
        child.control.close()
        self._memory.ended(child.place, child.records)

    def _ended(self, slot: _Slot, child: Child, code: int) -> None:
        now = time.monotonic()
        if child is slot.successor:
            slot.successor = None
            self._give_up(f"the new worker ended with {code}")
            return
        if now - child.started_at >= HEALTHY_SECONDS:
            slot.back_off = FIRST_BACK_OFF
        self._log.warning("worker-ended", worker=slot.number, pid=child.pid, code=code, again_in=slot.back_off)
        # Whatever comes now is of this version.
        slot.child, slot.successor, slot.stale = slot.successor, None, False
        slot.start_at = now + slot.back_off
        slot.back_off = min(slot.back_off * 2, LONGEST_BACK_OFF)

    def _start_due(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if slot.child is None and now >= slot.start_at:
                slot.child = self._start(slot, replaces=False)

    def _certify(self) -> None:
        """Look at the files when it is time, and see to it that every worker has what is in use."""
        if self._files is None:
            return
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + POLL_SECONDS
            notice = self._files.poll()
            if notice is Notice.REFUSED:
                self._log.warning(notice.value, why=self._files.refused, in_use_until=_when(self._files.pair))
            elif notice is not None:
                self._log.info(notice.value, in_use_until=_when(self._files.pair))
        pair = self._files.pair
        message = Certificate(pem=pair.pem, expires=pair.expires.timestamp(), refused=self._files.refused is not None)
        for child in self._children():
            child.certify(message)

    def _children(self) -> list[Child]:
        placed = [child for slot in self._slots for child in (slot.child, slot.successor) if child is not None]
        return placed + [child for child, _ in self._draining]

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for child, kill_at in self._draining:
            if now >= kill_at:
                self._log.warning("worker-killed", pid=child.pid)
                child.signal(signal.SIGKILL)

    def _pause(self) -> float:
        if self._replacing or self._draining or self._reload_wanted:
            return BUSY_SECONDS
        now = time.monotonic()
        waiting = [slot.start_at - now for slot in self._slots if slot.child is None]
        return max(0.0, min([*waiting, self._look_at - now if self._files is not None else 3600.0]))

    # ------------------------------------------------------------ replacement
    def _replace(self) -> None:
        """One step of replacing the workers, one by one: starting them all at once would slow those that serve."""
        if not self._replacing:
            return
        now = time.monotonic()
        for slot in self._slots:
            if slot.successor is not None:
                slot.successor.hear()
                if slot.successor.serving:
                    self._hand_over(slot, slot.successor)
                elif now >= self._successor_due:
                    slot.successor.signal(signal.SIGKILL)
                return
            if slot.stale:
                slot.successor = self._start(slot, replaces=True)
                self._successor_due = now + SERVING_SECONDS
                return
        self._replacing = False
        self._log.info("reloaded", workers=len(self._slots))

    def _hand_over(self, slot: _Slot, successor: Child) -> None:
        if slot.child is not None:
            slot.child.drain()
            kill_at = time.monotonic() + self._settings.drain_seconds + KILL_REPLACED_AFTER_SECONDS
            self._draining.append((slot.child, kill_at))
        slot.child, slot.successor, slot.stale = successor, None, False
        slot.back_off = FIRST_BACK_OFF

    def _give_up(self, why: str) -> None:
        self._log.error("reload-failed", why=why, replaced=sum(not slot.stale for slot in self._slots))
        self._replacing = False
        for slot in self._slots:
            slot.stale = False

    def _reload(self) -> None:
        """Become the version that is installed now, with the settings as they are now; or say why not, and go on."""
        command = handover.own_command()
        self._log.info("reloading", command=command[0])
        try:
            handover.check(command)
            held = self._held()
            try:
                handover.become(command, held)
            finally:
                if held.certificate is not None:
                    os.close(held.certificate)
        except ReloadRefused as error:
            self._log.error("reload-refused", why=str(error))

    def _held(self) -> Handover:
        slots = tuple(
            HeldSlot(listening=slot.listening.fileno(), child=_held_child(slot.child) if slot.child else None)
            for slot in self._slots
        )
        certificate = None if self._files is None else handover.memory_file(self._files.pair.pem)
        counts = self._memory.counts
        left = tuple(self._memory.left)
        return Handover(slots=slots, counts=counts.memory, fence=counts.fence, left=left, certificate=certificate)

    # -------------------------------------------------------------------- end
    def _stop(self) -> None:
        running = self._children()
        for child in running:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + self._settings.drain_seconds + KILL_AFTER_SECONDS
        while running := [child for child in running if child.ended() is None]:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            signal.sigtimedwait(_SIGNALS, left)
        for child in running:
            self._log.warning("worker-killed", pid=child.pid)
            child.signal(signal.SIGKILL)
            os.waitpid(child.pid, 0)
        for slot in self._slots:
            slot.listening.close()
        self._log.info("stopped")


def _when(pair: Pair) -> str:
    return pair.expires.isoformat()


def _held_child(child: Child) -> HeldChild:
    return HeldChild(
        place=child.place,
        pid=child.pid,
        control=child.control.fileno(),
        records=child.records,
        started_at=child.started_at,
    )


def _taken_child(held: HeldChild) -> Child:
    return Child(held.place, held.pid, held.records, handover.adopt(held.control), held.started_at, serving=True)


def _taken_slot(number: int, held: HeldSlot) -> _Slot:
    child = _taken_child(held.child) if held.child is not None else None
    return _Slot(number, handover.adopt(held.listening), child, stale=child is not None)


def _pair_files(settings: GatewaySettings, before: Handover | None) -> PairFiles | None:
    """The certificate of the settings, or what is in use if its files cannot serve now. Raises `PairRefused`."""
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None or key is None:
        return None
    held = None
    if before is not None and before.certificate is not None:
        pem = handover.read_memory_file(before.certificate)
        held = make_pair(pem, pem, certificate, key)
    return PairFiles(certificate, key, now=lambda: datetime.now(UTC), held=held)


def main(config_path: Path, *, check_only: bool = False) -> int:
    """Run the gateway until it is told to stop. Returns the exit code: 0, or 2 with a line that says what to do."""
    # First of all: blocked, signals wait for `sigtimedwait`. No handler, no race between a check and a sleep, and no
    # signal that ends the process because it came while it was starting.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    if os.geteuid() == 0:
        return _fail(
            "The gateway handles strangers' traffic and does not run as root. Start it as its own user, for example:\n"
            f"  setpriv --reuid=toolbox-gateway --regid=toolbox-gateway --clear-groups "
            f"toolbox-dtma gateway --config {config_path}"
        )
    log = configure_logging("supervisor")
    try:
        settings = load_settings(config_path)
        before = None if check_only else handover.taken_over()
        files = _pair_files(settings, before)
        if check_only:
            return 0
    except (SettingsInvalid, PairRefused, ReloadRefused) as error:
        return _fail(str(error))
    try:
        supervisor = Supervisor(settings, files, log, before=before)
    except TooFewDescriptors as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"Cannot listen on {settings.listen_host}:{settings.listen_port}: {error.strerror}")
    pid_file = settings.pid_dir / "gateway.pid" if settings.pid_dir is not None else None
    if pid_file is not None:
        pid_file.write_text(f"{os.getpid()}\n")
    try:
        supervisor.run()
    finally:
        if pid_file is not None:
            pid_file.unlink(missing_ok=True)
    return 0


def _fail(message: str) -> int:
    print(message, file=sys.stderr)
    return EXIT_USAGE
