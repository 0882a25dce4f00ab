"""Server certificates of a throw-away authority, and files in which they are renewed the ways people do it."""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from toolbox_dtma import pki

EXPIRED = timedelta(days=-900)
"""Issued so long ago."""
FUTURE = timedelta(days=30)


@dataclass
class Authority:
    """Signs for loopback."""

    pair: pki.KeyPair = field(default_factory=lambda: pki.make_ca("test", datetime.now(UTC)))

    def issue(self, when: timedelta = timedelta()) -> pki.KeyPair:
        """A certificate issued now, or at another time."""
        return pki.issue_server(self.pair, ["localhost"], datetime.now(UTC) + when)

    def client_context(self) -> ssl.SSLContext:
        """Trusts nothing else."""
        return ssl.create_default_context(cadata=self.pair.certificate.decode())


def replace(path: Path, content: bytes) -> None:
    """Rename over the old file, which keeps its owner and mode."""
    before = path.stat() if path.exists() else None
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(content)
    if before is not None:
        fresh.chmod(before.st_mode & 0o777)
        if os.geteuid() == 0:
            os.chown(fresh, before.st_uid, before.st_gid)
    fresh.rename(path)


def serial(pem: bytes) -> int:
    """What tells one certificate from another."""
    return x509.load_pem_x509_certificate(pem).serial_number


def served_serial(port: int, *, server_name: str | None = None) -> int:
    """The certificate that a new connection to loopback is served with, whoever signed it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=server_name) as tls,
    ):
        found = tls.getpeercert(binary_form=True)
    assert found is not None
    return x509.load_der_x509_certificate(found).serial_number
