"""A network namespace that stands for the world beyond the host: private, metadata and public addresses in one."""

from __future__ import annotations

import secrets
import subprocess
import sys
import textwrap
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

RESOLVED = "192.0.2.77"
"""What every name resolves to there."""

_DEADLINE = 20
_SERVER = textwrap.dedent(
    r"""
    import socket, sys, threading
    tcp = [socket.create_server(("", int(port))) for port in sys.argv[1:]]
    udp = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in tcp]
    for port, sock in zip(sys.argv[1:], udp):
        sock.bind(("", int(port)))
    def answer(sock):
        while True:
            connection, _ = sock.accept()
            connection.sendall(b"far\n")
            connection.close()
    def resolve(sock):
        while True:
            query, peer = sock.recvfrom(2048)
            end = query.index(0, 12) + 5
            kind, found = query[end - 4 : end - 2], socket.inet_aton("192.0.2.77")
            records = b"\xc0\x0c" + kind + b"\x00\x01" + bytes(4) + b"\x00\x04" + found if kind == b"\x00\x01" else b""
            counts = b"\x00\x01" + (b"\x00\x01" if records else b"\x00\x00") + bytes(4)
            sock.sendto(query[:2] + b"\x81\x80" + counts + query[12:end] + records, peer)
    for work, sock in [*((answer, s) for s in tcp), *((resolve, s) for s in udp)]:
        threading.Thread(target=work, args=(sock,), daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()
    """
)


@dataclass(frozen=True, slots=True)
class FarNetwork:
    """Addresses of the namespace, each answering on ports 53 and 80; by UDP, `RESOLVED` for every name."""

    private: str
    other_private: str
    shared: str
    """Of RFC 6598."""
    metadata: str
    assigned: str
    """Of 192.0.0.0/24, where one cloud has its metadata."""
    public: str
    near: str
    """The host's own address on the way there."""

    @property
    def routed(self) -> tuple[str, ...]:
        """All but the one that the host is a neighbour of."""
        return (self.other_private, self.shared, self.metadata, self.assigned, self.public)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=_DEADLINE)


@contextmanager
def far_network() -> Generator[FarNetwork]:
    """Make the namespace, joined by a veth pair; both are gone afterwards."""
    tag = secrets.token_hex(3)
    number = secrets.randbelow(250) + 1
    name, near, far = f"far{tag}", f"fn{tag}", f"ff{tag}"
    # Documentation and link-local addresses: nothing on the machine lives there.
    there = FarNetwork(
        private=f"172.30.{number}.2",
        other_private=f"192.168.{number}.9",
        shared=f"100.64.{number}.9",
        metadata=f"169.254.77.{number}",
        assigned=f"192.0.0.{number}",
        public=f"203.0.113.{number}",
        near=f"172.30.{number}.1",
    )
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        _run("ip", "addr", "add", f"{there.near}/30", "dev", near)
        _run("ip", "link", "set", near, "up")
        inside = ("ip", "-n", name)
        for address in (f"{there.private}/30", *there.routed):
            _run(*inside, "addr", "add", address, "dev", far)
        for device in (far, "lo"):
            _run(*inside, "link", "set", device, "up")
        _run(*inside, "route", "add", "default", "via", there.near)
        for address in there.routed:
            _run("ip", "route", "add", f"{address}/32", "via", there.private, "dev", near)
        server = subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-c", _SERVER, "53", "80"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield there
        finally:
            server.communicate(timeout=_DEADLINE)
    finally:
        # Takes the pair and its routes along.
        _run("ip", "netns", "del", name)
