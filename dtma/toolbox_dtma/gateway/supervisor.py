"""The gateway's supervisor: keeps N workers running on one port, and stops them gracefully."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from toolbox_dtma.gateway.backlog import make_memory
from toolbox_dtma.gateway.counts import SharedMemory, forget_running
from toolbox_dtma.gateway.process import configure_logging
from toolbox_dtma.gateway.settings import GatewaySettings, SettingsInvalid, load_settings

FIRST_BACK_OFF = 0.05
LONGEST_BACK_OFF = 10.0
HEALTHY_SECONDS = 30.0
"""A worker that ran this long starts again without delay."""
KILL_AFTER_SECONDS = 5.0
"""How long after the drain a worker may still take to end."""
EXIT_USAGE = 2


@dataclass(slots=True)
class _Slot:
    """One worker's place: its listening socket outlives the process, so that no connection is lost with it."""

    number: int
    listening: socket.socket
    process: subprocess.Popen[bytes] | None = None
    calls: int = -1
    """Descriptor of the process's memory with call records; meaningful while there is a process."""
    started_at: float = 0.0
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
    """Starts, watches and stops workers. Single-threaded; sleeps in `sigtimedwait`."""

    def __init__(self, settings: GatewaySettings, config_path: Path, counts: SharedMemory, log: FilteringBoundLogger):
        self._counts = counts
        self._words = counts.map()
        self._settings = settings
        self._config = config_path
        self._log = log
        sockets = listen(settings.listen_host, settings.listen_port, settings.workers)
        self._left: list[int] = []
        """Memory of processes that ended: whoever starts next takes up what they left."""
        self._slots = [_Slot(number, each) for number, each in enumerate(sockets)]

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._slots[0].listening.getsockname()[1])

    def run(self) -> None:
        """Keep the workers running until SIGTERM or SIGINT, then drain them."""
        watched = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
        # Blocked, they wait for `sigtimedwait`: no handler, no race between a check and a sleep.
        signal.pthread_sigmask(signal.SIG_BLOCK, watched)
        self._log.info("supervising", workers=len(self._slots), port=self.port)
        while True:
            self._reap()
            self._start_due()
            received = signal.sigtimedwait(watched, self._seconds_to_next_start())
            if received is not None and received.si_signo != signal.SIGCHLD:
                break
        self._stop(watched)

    def _reap(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if slot.process is None or slot.process.poll() is None:
                continue
            if now - slot.started_at >= HEALTHY_SECONDS:
                slot.back_off = FIRST_BACK_OFF
            self._log.warning("worker-ended", worker=slot.number, code=slot.process.returncode, again_in=slot.back_off)
            slot.process = None
            # It is proven dead: whatever it had running at servers ended with its connections to them.
            forget_running(self._words, slot.number)
            self._left.append(slot.calls)
            slot.start_at = now + slot.back_off
            slot.back_off = min(slot.back_off * 2, LONGEST_BACK_OFF)

    def _start_due(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if slot.process is None and now >= slot.start_at:
                slot.process = self._start(slot)
                slot.started_at = now

    def _start(self, slot: _Slot) -> subprocess.Popen[bytes]:
        slot.calls = self._left.pop(0) if self._left else make_memory()
        descriptors = (slot.listening.fileno(), slot.calls, *self._counts.descriptors)
        command = [sys.executable, "-m", "toolbox_dtma.gateway.worker", "--config", str(self._config)]
        for option, value in (
            ("name", f"worker-{slot.number}"),
            ("fd", descriptors[0]),
            ("calls-fd", slot.calls),
            ("memory-fd", self._counts.memory),
            ("fence-fd", self._counts.fence),
            ("column", slot.number),
            ("columns", self._counts.columns),
            ("parent", os.getpid()),
        ):
            command += [f"--{option}", str(value)]
        # The signal mask is inherited and would keep the worker from ever seeing SIGTERM.
        previous = signal.pthread_sigmask(signal.SIG_SETMASK, set())
        try:
            return subprocess.Popen(command, pass_fds=descriptors, stdin=subprocess.DEVNULL)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)

    def _seconds_to_next_start(self) -> float:
        now = time.monotonic()
        waiting = [slot.start_at - now for slot in self._slots if slot.process is None]
        return max(0.0, min(waiting, default=3600.0))

    def _stop(self, watched: set[signal.Signals]) -> None:
        running = [slot.process for slot in self._slots if slot.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + self._settings.drain_seconds + KILL_AFTER_SECONDS
        while any(process.poll() is None for process in running):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            signal.sigtimedwait(watched, left)
        for process in running:
            if process.poll() is None:
                self._log.warning("worker-killed", pid=process.pid)
                process.kill()
                process.wait()
        for slot in self._slots:
            slot.listening.close()
        self._log.info("stopped")


def main(config_path: Path) -> int:
    """Run the gateway until it is told to stop. Returns the exit code: 0, or 2 with a line that says what to do."""
    if os.geteuid() == 0:
        print(
            "The gateway handles strangers' traffic and does not run as root. Start it as its own user, for example:\n"
            f"  setpriv --reuid=toolbox-gateway --regid=toolbox-gateway --clear-groups "
            f"toolbox-dtma gateway --config {config_path}",
            file=sys.stderr,
        )
        return EXIT_USAGE
    log = configure_logging("supervisor")
    try:
        settings = load_settings(config_path)
    except SettingsInvalid as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    try:
        counts = SharedMemory.make(settings.workers)
    except OSError as error:
        print(f"Cannot make the memory in which the workers count calls: {error.strerror}", file=sys.stderr)
        return EXIT_USAGE
    try:
        supervisor = Supervisor(settings, config_path, counts, log)
    except OSError as error:
        print(f"Cannot listen on {settings.listen_host}:{settings.listen_port}: {error.strerror}", file=sys.stderr)
        return EXIT_USAGE
    pid_file = settings.pid_dir / "gateway.pid" if settings.pid_dir is not None else None
    if pid_file is not None:
        pid_file.write_text(f"{os.getpid()}\n")
    try:
        supervisor.run()
    finally:
        if pid_file is not None:
            pid_file.unlink(missing_ok=True)
    return 0
