"""A session broker under test: the real process, and DTMA's end of its socket in a thread."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from localstack import runtime
from localstack.processes import Command, User, launcher
from support.async_poll import until
from support.broker.programs import Process, Program
from support.gateway.threads import eventually
from support.gateway.world import UNPRIVILEGED
from toolbox_dtma.link.broker import (
    FROM_BROKER,
    MAX_PACKET_BYTES,
    AnyToBroker,
    BrokerPing,
    BrokerPong,
    BrokerReady,
    CloseSession,
    Closing,
    Ended,
    OpenSession,
    Refused,
    SessionEnded,
    SessionOpened,
    SessionRefused,
    Upstream,
)


class FakeDtma:
    """Starts whatever a test has put behind an instance, for whoever asks."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._programs: dict[str, Program] = {}
        self._running: dict[str, Process] = {}
        self._names: list[str] = []
        self.idle_seconds: dict[str, float] = {}
        """By instance; an hour where nothing is said."""
        self.incarnations: dict[str, str] = {}
        """By instance, where it matters."""
        self.asked: list[OpenSession] = []
        self.closed: dict[str, Closing] = {}
        """Why the broker closed a session, by its name."""
        self.ready = threading.Event()
        self.pongs = 0
        """How often it answered `ping`."""
        self.without_stream = False
        """Whether descriptors get lost on their way."""
        self.hold = False
        """Whether sessions are not opened before `release`."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def instance(self, program: Program, *, idle_seconds: float = 3600.0) -> str:
        """A new instance."""
        id_ = str(uuid.uuid4())
        self._programs[id_] = program
        self.idle_seconds[id_] = idle_seconds
        return id_

    def sessions(self, instance: str) -> list[str]:
        """Names of the sessions of an instance that were ever opened, oldest first."""
        return [name for name in self._names if name.startswith(f"{instance}.")]

    async def why_closed(self, session: str) -> Closing | None:
        """Why the broker closes a session, once it says so."""
        return await until("closed by the broker", lambda: self.closed.get(session))

    def end(self, session: str, why: Ended, message: str) -> None:
        """Say that a session is over."""
        self._send(SessionEnded(session=session, why=why, message=message))

    def ping(self) -> None:
        """Ask whether it is there."""
        self._send(BrokerPing())

    def _run(self) -> None:
        while True:
            try:
                packet = self._connection.recv(MAX_PACKET_BYTES)
            except OSError:
                return
            if not packet:
                return
            match FROM_BROKER.validate_json(packet):
                case BrokerReady():
                    self.ready.set()
                case BrokerPong():
                    self.pongs += 1
                case OpenSession() as asked:
                    self.asked.append(asked)
                    if not self.hold:
                        self._open(asked)
                case CloseSession() as closed:
                    self.closed[closed.session] = closed.why
                    process = self._running.pop(closed.session, None)
                    if process is not None:
                        process.kill()

    def release(self) -> None:
        """Open what was held back."""
        self.hold = False
        for asked in self.asked:
            self._open(asked)

    def _open(self, asked: OpenSession) -> None:
        program = self._programs.get(asked.instance)
        if program is None:
            self._send(SessionRefused(request=asked.request, why=Refused.UNKNOWN, message="There is no such server"))
            return
        process = program(asked)
        if isinstance(process, SessionRefused):
            self._send(process.model_copy(update={"request": asked.request}))
            return
        name = f"{asked.instance}.{len(self._names)}"
        self._names.append(name)
        idle = self.idle_seconds[asked.instance]
        incarnation = self.incarnations.get(asked.instance, "")
        opened = SessionOpened(request=asked.request, session=name, idle_seconds=idle, incarnation=incarnation)
        if isinstance(process, Upstream):
            self._send(opened.model_copy(update={"upstream": process}))
            return
        self._running[name] = process
        self._send(opened, *(() if self.without_stream else (process.broker_end,)))
        process.broker_end.close()

    def _send(self, message: AnyToBroker, *descriptors: socket.socket) -> None:
        packet = [message.model_dump_json().encode()]
        if descriptors:
            socket.send_fds(self._connection, packet, [each.fileno() for each in descriptors])
        else:
            self._connection.sendmsg(packet)

    def send_raw(self, packet: bytes) -> None:
        """Send what is perhaps no message."""
        self._connection.send(packet)

    def hang_up(self) -> None:
        """End as a DTMA that died would."""
        self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)

    def close(self) -> None:
        """End everything."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._connection.close()
        for process in self._running.values():
            process.kill()


class Broker:
    """A broker process."""

    def __init__(self, *, unprivileged: bool = False):
        """`unprivileged`: it runs as the user that gateways under test run as, and serves that one alone."""
        # Not pytest's folder: an unprivileged process cannot get into that one.
        self.folder = Path(tempfile.mkdtemp(prefix="mtb-broker-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.path = self.folder / "broker.sock"
        self.log = self.folder / "broker.log"
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self.path))
            self.path.chmod(0o666)
            listening.listen(512)
            descriptors = (listening.fileno(), theirs.fileno())
            options = ["--listen-fd", str(descriptors[0]), "--control-fd", str(descriptors[1])]
            argv, env = [sys.executable, "-m", "toolbox_dtma.broker", *options], dict(os.environ)
            if unprivileged:
                user = User(UNPRIVILEGED, UNPRIVILEGED)
                python = runtime.for_user(user)
                command = Command("broker", [python.python, *argv[1:]], user=user)
                argv, env = launcher(command), {"PATH": os.environ["PATH"], **python.env}
            else:
                env["PYTHONPATH"] = os.pathsep.join(each for each in sys.path if each)
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(
                    argv, env=env, pass_fds=descriptors, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
        self.dtma = FakeDtma(ours)

    @property
    def memory(self) -> int:
        """Bytes that are resident."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmRSS:"))
        return int(kilobytes) * 1024

    def log_text(self) -> str:
        """What it logged."""
        return self.log.read_text()

    def close(self) -> None:
        """Stop it by its own handle, and everything behind it."""
        try:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                try:
                    self.process.wait(20)
                except subprocess.TimeoutExpired:
                    self.process.kill()
                    self.process.wait(5)
        finally:
            self.dtma.close()
            shutil.rmtree(self.folder)


@contextmanager
def running_broker(*, unprivileged: bool = False) -> Generator[Broker]:
    """A broker that answers, and is stopped at the end."""
    broker = Broker(unprivileged=unprivileged)
    try:
        eventually(broker.dtma.ready.is_set, "the broker is ready", seconds=60)
        yield broker
    except BaseException:
        print(broker.log_text())
        raise
    finally:
        broker.close()
