"""DTMA's end of the gateway's socket, which does what a test says."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.gateway.threads import LoopThread, eventually
from support.gateway.tls import HOST
from toolbox_dtma.link.calls import CallEntry
from toolbox_dtma.link.framing import encode_frame, read_frame
from toolbox_dtma.link.messages import (
    TO_DTMA,
    Ack,
    Calls,
    CallsTaken,
    Change,
    Delta,
    Hello,
    KeyRing,
    Message,
    Pong,
    ProbeRequest,
    ProbeResult,
    SigningKey,
    Snapshot,
    Vitals,
)


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

        return self._threads.call(ask(), seconds=deadline + more.get("start", 0.0) + 10)
