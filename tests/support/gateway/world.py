"""A whole gateway under test: its processes, a scripted DTMA end, and servers behind it, driven from sync code.

Everything that needs an event loop runs in threads of its own, so that fixtures of any scope can hold it.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import hashlib
import ipaddress
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from localstack import runtime
from localstack.processes import Command, User, launcher
from toolbox_dtma.link.calls import CallEntry
from toolbox_dtma.link.framing import encode_frame, read_frame
from toolbox_dtma.link.messages import (
    TO_DTMA,
    Ack,
    Calls,
    CallsTaken,
    Change,
    Delta,
    GrantPolicy,
    Hello,
    InstanceRoute,
    KeyRing,
    Message,
    Pong,
    ProbeRequest,
    ProbeResult,
    SigningKey,
    Snapshot,
    Surface,
    Vitals,
)
from toolbox_dtma.wire import Credential, Expose, HostConfig, NameFilter

T = TypeVar("T")
UNPRIVILEGED = 65534
HOST = "127.0.0.1"


def eventually(check: Callable[[], T | None], what: str, *, seconds: float = 10.0) -> T:
    """Poll until `check` returns something true. Fails with `what` and the last value."""
    deadline = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s, last seen {value!r}")
        time.sleep(0.01)


class LoopThread:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T], *, seconds: float = 10.0) -> T:
        """Run a coroutine there and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(seconds)

    def close(self) -> None:
        """Cancel what runs, and end the thread."""

        async def cancel_all() -> None:
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self.call(cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


def new_key_ring(kid: str = "k1") -> KeyRing:
    """A ring with one fresh key."""
    secret = base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()
    return KeyRing(signing=kid, keys=(SigningKey(kid=kid, secret=secret),))


@dataclass
class _Peer:
    writer: asyncio.StreamWriter
    hello: Hello
    acked: list[int] = field(default_factory=list[int])


class ScriptedDtma:
    """DTMA's end of the socket, without any of its proofs: sends what a test says and records what comes."""

    def __init__(self, path: Path):
        self._threads = LoopThread()
        self.path = path
        self.revision = 1
        self.hold_snapshot = False
        self._contents = Change(keyring=new_key_ring())
        self._peers: list[_Peer] = []
        self.hellos: list[Hello] = []
        self.pongs: list[int] = []
        self.cuts: Counter[str] = Counter()
        """Clients that the workers say they refused or cut off, by reason."""
        self.told: list[Calls] = []
        self.take_calls = True
        """Whether messages about calls are acknowledged."""
        self._probes: dict[int, asyncio.Future[ProbeResult]] = {}
        self._server: asyncio.Server | None = None

    def start(self) -> None:
        """Listen."""
        self._threads.call(self._start())

    async def _start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        self.path.chmod(0o666)

    def stop(self) -> None:
        """Close the socket and every connection, as a DTMA that died would."""
        self._threads.call(self._stop())

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for peer in self._peers:
            peer.writer.close()
        self._peers.clear()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop and end the thread."""
        self.stop()
        self._threads.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer: _Peer | None = None
        try:
            while (payload := await read_frame(reader)) is not None:
                message = TO_DTMA.validate_json(payload)
                if isinstance(message, Hello):
                    peer = _Peer(writer, message)
                    self._peers.append(peer)
                    self.hellos.append(message)
                    if not self.hold_snapshot:
                        for part in self._snapshot():
                            writer.write(encode_frame(part))
                elif isinstance(message, Ack) and peer is not None:
                    peer.acked.append(message.revision)
                elif isinstance(message, Calls):
                    self._told(message, writer)
                elif isinstance(message, Pong):
                    self.pongs.append(message.nonce)
                elif isinstance(message, Vitals):
                    self.cuts.update({why.value: number for why, number in message.cuts.items()})
                elif isinstance(message, ProbeResult):
                    self._probes.pop(message.probe).set_result(message)
        finally:
            if peer in self._peers:
                self._peers.remove(peer)
            writer.close()

    def _told(self, message: Calls, writer: asyncio.StreamWriter) -> None:
        self.told.append(message)
        if self.take_calls:
            writer.write(encode_frame(CallsTaken(stream=message.stream, batch=message.batch)))

    @property
    def calls(self) -> list[CallEntry]:
        """Every call that was told, each batch once."""
        batches = {(told.stream, told.batch): told for told in self.told}
        return [call for told in batches.values() for call in told.calls]

    def calls_of(self, connection: str) -> list[CallEntry]:
        """The calls of one connection."""
        return [call for call in self.calls if call.connection == connection]

    def _snapshot(self) -> list[Snapshot]:
        whole = self._contents
        changes = [
            Change(keyring=whole.keyring, config=whole.config, instances=whole.instances),
            Change(grants=whole.grants),
        ]
        return [Snapshot(revision=self.revision, part=n, parts=2, change=c) for n, c in enumerate(changes)]

    @property
    def keyring(self) -> KeyRing:
        """The ring that is in force."""
        assert self._contents.keyring is not None
        return self._contents.keyring

    @property
    def workers(self) -> list[Hello]:
        """Workers connected now."""
        return [peer.hello for peer in self._peers]

    def push(self, change: Change) -> int:
        """Make a change the policy, tell every worker, and return its revision without waiting."""
        return self._threads.call(self._push(change))

    async def _push(self, change: Change) -> int:
        old = self._contents
        instances = {i.id: i for i in (*old.instances, *change.instances)}
        grants = {g.uid: g for g in (*old.grants, *change.grants)}
        self._contents = Change(
            keyring=change.keyring or old.keyring,
            config=change.config or old.config,
            instances=tuple(i for i in instances.values() if i.id not in change.instances_gone),
            grants=tuple(g for g in grants.values() if g.uid not in change.grants_gone),
        )
        self.revision += 1
        self._broadcast(Delta(revision=self.revision, change=change))
        return self.revision

    def send(self, message: Message) -> None:
        """Send one message to every worker."""
        self._threads.loop.call_soon_threadsafe(self._broadcast, message)

    def _broadcast(self, message: Message) -> None:
        for peer in self._peers:
            peer.writer.write(encode_frame(message))

    def is_acked(self, revision: int) -> bool:
        """Whether every connected worker acknowledged a revision."""
        return bool(self._peers) and all(revision in peer.acked for peer in self._peers)

    def apply(self, change: Change) -> int:
        """Push a change and wait until every worker acknowledged it."""
        revision = self.push(change)
        eventually(lambda: self.is_acked(revision), f"ack of revision {revision}")
        return revision

    def probe(self, url_port: int, path: str, *, deadline: float = 10.0, **more: Any) -> ProbeResult:
        """Ask the first worker for a probe of a port on loopback, or of what `more` says."""
        number = secrets.randbelow(1 << 31)

        async def ask() -> ProbeResult:
            self._probes[number] = asyncio.get_running_loop().create_future()
            where: dict[str, Any] = {"address": HOST, **more}
            request = ProbeRequest(probe=number, port=url_port, path=path, deadline=deadline, **where)
            self._peers[0].writer.write(encode_frame(request))
            return await self._probes[number]

        return self._threads.call(ask(), seconds=deadline + 10)


@dataclass(frozen=True)
class Tls:
    """A throw-away CA and a server certificate of it."""

    ca: Path
    certificate: Path
    key: Path

    def client_context(self) -> ssl.SSLContext:
        """Trusts this CA only."""
        return ssl.create_default_context(cafile=str(self.ca))


def make_tls(folder: Path) -> Tls:
    """Make certificates for 127.0.0.1 and localhost, good for a day."""
    now = datetime.datetime.now(datetime.UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "throw-away CA")])

    def builder(name: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(ca_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    ca = (
        builder(ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .sign(ca_key, hashes.SHA256())
    )
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST)), x509.DNSName("localhost")])
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gateway")])
    certificate = builder(subject, key.public_key()).add_extension(names, critical=False).sign(ca_key, hashes.SHA256())
    tls = Tls(folder / "ca.crt", folder / "tls.crt", folder / "tls.key")
    tls.ca.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    tls.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    tls.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return tls


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as trial:
        trial.bind((HOST, 0))
        return int(trial.getsockname()[1])


def restricted(*allow: str, deny: tuple[str, ...] = ()) -> Expose:
    """Tools that match these globs only."""
    return Expose(tools=NameFilter(allow=allow, deny=deny))


@dataclass(frozen=True)
class Connection:
    """What an agent has: a URL and a token."""

    uid: str
    instance: str
    url: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        """Credential and media types of an ordinary client."""
        return {
            "Authorization": f"Bearer {self.token}",
            "Accept": "application/json, text/event-stream",
            "Content-Type": "application/json",
        }


def credential(token: str, not_after: datetime.datetime | None = None) -> Credential:
    """A token as the host knows it."""
    return Credential(value=hashlib.sha256(token.encode()).hexdigest(), not_after=not_after)


class World:
    """A running gateway with its scripted DTMA."""

    def __init__(
        self,
        *,
        workers: int = 2,
        tls: bool = True,
        settings: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
    ):
        # Not pytest's folder: an unprivileged process cannot get into that one.
        self.folder = Path(tempfile.mkdtemp(prefix="mtb-gateway-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.tls = make_tls(self.folder)
        self.port = free_port()
        self.scheme = "https" if tls else "http"
        self.base = f"{self.scheme}://{HOST}:{self.port}"
        self.workers = workers
        self._env = env or {}
        self._run_folder = self.folder / "run"
        self._run_folder.mkdir()
        self.config = self.folder / "gateway.json"
        files = {"tlsCertificate": str(self.tls.certificate), "tlsKey": str(self.tls.key)} if tls else {}
        self.config.write_text(
            json.dumps(
                {
                    "listenHost": HOST,
                    "listenPort": self.port,
                    "socket": str(self.folder / "gateway.sock"),
                    "workers": workers,
                    "pidDir": str(self._run_folder),
                    **files,
                    **(settings or {}),
                }
            )
        )
        if os.geteuid() == 0:
            os.chown(self.tls.key, UNPRIVILEGED, UNPRIVILEGED)
            os.chown(self._run_folder, UNPRIVILEGED, UNPRIVILEGED)
        self.log = self.folder / "gateway.log"
        self.dtma = ScriptedDtma(self.folder / "gateway.sock")
        self.process: subprocess.Popen[bytes] | None = None
        self._runtime: runtime.Runtime | None = None
        self._instances: dict[str, InstanceRoute] = {}
        self._grants: dict[str, GrantPolicy] = {}

    def start(self) -> None:
        """Start DTMA's end and the gateway, and wait until every worker holds the policy."""
        self.dtma.start()
        self.start_gateway()
        config = HostConfig(gateway_url=self.base, allowed_origins=("https://console.example.com",))
        eventually(lambda: len(self.dtma.workers) == self.workers, "workers say hello", seconds=90)
        self.dtma.apply(Change(config=config))

    def start_gateway(self) -> None:
        """Start the supervisor as an unprivileged user."""
        user = User(UNPRIVILEGED, UNPRIVILEGED)
        if self._runtime is None:
            self._runtime = runtime.for_user(user, self.folder)
        argv = [self._runtime.python, "-m", "toolbox_dtma.gateway", "--config", str(self.config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                launcher(Command("gateway", argv, user=user)),
                env={"PATH": os.environ["PATH"], **self._runtime.env, **self._env},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def close(self) -> None:
        """Stop everything by its own handle and remove the files."""
        try:
            if self.process is not None and self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                try:
                    self.process.wait(20)
                except subprocess.TimeoutExpired:
                    self.process.kill()
                    self.process.wait(5)
        finally:
            self.dtma.close()
            shutil.rmtree(self.folder)

    def instance(
        self, port: int, *, path: str = "/mcp", surface: tuple[str, ...] | Surface | None = None, **more: Any
    ) -> str:
        """A new instance that listens on a port of loopback."""
        values: dict[str, Any] = {"incarnation": uuid.uuid4().hex, "address": HOST, "state": "running", **more}
        listed = Surface(tools=surface) if isinstance(surface, tuple) else surface
        route = InstanceRoute(id=str(uuid.uuid4()), port=port, path=path, surface=listed, **values)
        self.put_instance(route)
        return route.id

    def bridged(self, id: str, bridge: Path, **more: Any) -> str:
        """A new instance behind a session broker."""
        values: dict[str, Any] = {"incarnation": uuid.uuid4().hex, "state": "running", **more}
        path = f"/instances/{id}/mcp"
        self.put_instance(InstanceRoute(id=id, address=None, port=0, path=path, bridge=str(bridge), **values))
        return id

    def put_instance(self, route: InstanceRoute) -> None:
        """Put a route and wait for the acks."""
        self._instances[route.id] = route
        self.dtma.apply(Change(instances=(route,)))

    def change_instance(self, id: str, **update: Any) -> None:
        """Put a route again with some values changed."""
        self.put_instance(self._instances[id].model_copy(update=update))

    def connect(self, instance: str, *, expose: Expose | None = None, **more: Any) -> Connection:
        """A new connection to an instance."""
        token = "mtb_" + secrets.token_urlsafe(32)
        values: dict[str, Any] = {"credentials": (credential(token),), "server_expose": Expose(), **more}
        grant = GrantPolicy(uid=str(uuid.uuid4()), instance=instance, expose=expose or Expose(), **values)
        self.put_grant(grant)
        return Connection(grant.uid, instance, f"{self.base}/servers/{instance}/mcp", token)

    def put_grant(self, grant: GrantPolicy) -> None:
        """Put a grant and wait for the acks."""
        self._grants[grant.uid] = grant
        self.dtma.apply(Change(grants=(grant,)))

    def change_grant(self, connection: Connection, **update: Any) -> None:
        """Put a grant again with some values changed."""
        self.put_grant(self._grants[connection.uid].model_copy(update=update))

    def revoke(self, connection: Connection) -> None:
        """Delete a grant and wait for the acks."""
        self.dtma.apply(Change(grants_gone=(connection.uid,)))

    def log_lines(self) -> list[dict[str, Any]]:
        """What the gateway logged, as far as it is JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def log_text(self) -> str:
        """What the gateway logged."""
        return self.log.read_text()


@contextmanager
def running_world(**options: Any) -> Generator[World]:
    """A started world that is stopped and removed at the end."""
    world = World(**options)
    try:
        world.start()
        yield world
    except BaseException:
        print(world.log_text() if world.log.exists() else "no log")
        raise
    finally:
        world.close()


def by_outcome(values: list[int]) -> dict[int, int]:
    """How often each status occurred."""
    counts: defaultdict[int, int] = defaultdict(int)
    for value in values:
        counts[value] += 1
    return dict(counts)
