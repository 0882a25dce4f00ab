"""A network namespace that stands for the world beyond the host: private, metadata and public addresses in one."""

from __future__ import annotations

import secrets
import subprocess
import sys
import textwrap
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

_DEADLINE = 20
_SERVER = textwrap.dedent(
    """
    import socket, sys, threading
    tcp = [socket.create_server(("", int(port))) for port in sys.argv[1:]]
    udp = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in tcp]
    for port, sock in zip(sys.argv[1:], udp):
        sock.bind(("", int(port)))
    def answer(sock):
        while True:
            connection, _ = sock.accept()
            connection.sendall(b"far\\n")
            connection.close()
    def echo(sock):
        while True:
            data, peer = sock.recvfrom(2048)
            sock.sendto(b"far:" + data, peer)
    for work, sock in [*((answer, s) for s in tcp), *((echo, s) for s in udp)]:
        threading.Thread(target=work, args=(sock,), daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()
    """
)


@dataclass(frozen=True, slots=True)
class FarNetwork:
    """Addresses of the namespace, each answering on ports 53 and 80."""

    private: str
    other_private: str
    metadata: str
    public: str


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=_DEADLINE)


@contextmanager
def far_network() -> Generator[FarNetwork]:
    """Make the namespace, joined by a veth pair; both are gone afterwards."""
    tag = secrets.token_hex(3)
    number = secrets.randbelow(250) + 1
    name, near, far = f"far{tag}", f"fn{tag}", f"ff{tag}"
    # Documentation and link-local addresses: nothing on the machine lives there.
    there = FarNetwork(f"172.30.{number}.2", f"192.168.{number}.9", f"169.254.77.{number}", f"203.0.113.{number}")
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        _run("ip", "addr", "add", f"172.30.{number}.1/30", "dev", near)
        _run("ip", "link", "set", near, "up")
        inside = ("ip", "-n", name)
        for address in (f"{there.private}/30", there.other_private, there.metadata, there.public):
            _run(*inside, "addr", "add", address, "dev", far)
        for device in (far, "lo"):
            _run(*inside, "link", "set", device, "up")
        _run(*inside, "route", "add", "default", "via", f"172.30.{number}.1")
        for address in (there.other_private, there.metadata, there.public):
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
