"""Certificate and key in two files that somebody renews: read, checked as a pair, and looked at again and again."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from toolbox_dtma.tls import server_context

POLL_SECONDS = 5.0
"""Between two looks at the files. A renewal is in use after at most two of them."""
MAX_FILE_BYTES = 64 * 1024
"""Far above any chain; keeps a wrong path from being read into memory."""

_PUBLIC = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
_Identity = tuple[tuple[int, ...] | None, ...]


class PairRefused(Exception):
    """The files cannot serve; the message names the file and what is wrong with it, never its content."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A chain and its key that fit together."""

    pem: bytes
    """Both, in one PEM text."""
    starts: datetime
    expires: datetime


class Notice(Enum):
    """What a look at the files found that is worth a word."""

    RENEWED = "certificate-renewed"
    REFUSED = "certificate-refused"
    ACCEPTED = "certificate-accepted"
    """The files hold again what is in use."""


def read_pair(certificate: Path, key: Path) -> Pair:
    """What the two files hold, whatever its dates. Raises `PairRefused`."""
    return make_pair(_read(certificate), _read(key), certificate, key)


def make_pair(chain_text: bytes, key_text: bytes, certificate: Path, key: Path) -> Pair:
    """A pair of what these files held. Raises `PairRefused`."""
    try:
        leaf = x509.load_pem_x509_certificates(chain_text)[0]
    except ValueError:
        raise PairRefused(f"{certificate} holds no PEM certificate") from None
    try:
        private = serialization.load_pem_private_key(key_text, password=None)
    except TypeError:
        raise PairRefused(f"{key} is encrypted; store it without a passphrase") from None
    except (ValueError, UnsupportedAlgorithm):
        raise PairRefused(f"{key} holds no PEM private key") from None
    if leaf.public_key().public_bytes(*_PUBLIC) != private.public_key().public_bytes(*_PUBLIC):
        raise PairRefused(f"{key} is not the key of the first certificate in {certificate}")
    pem = chain_text.rstrip() + b"\n" + key_text.rstrip() + b"\n"
    try:
        server_context(pem)
    except ssl.SSLError as error:
        raise PairRefused(f"{certificate} cannot be used for TLS ({error.reason or 'refused by OpenSSL'})") from None
    return Pair(pem, leaf.not_valid_before_utc, leaf.not_valid_after_utc)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise PairRefused(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise PairRefused(f"{path} has more than {MAX_FILE_BYTES} bytes")
    return content


class PairFiles:
    """The pair in use, and whether the files hold a newer one. A pair that cannot serve never replaces one that does.

    Certificate and key are replaced one after the other, so the files may not fit for a moment: what is wrong with
    them counts only if it is still so, in unchanged files, at the next look.
    """

    def __init__(self, certificate: Path, key: Path, *, now: Callable[[], datetime], held: Pair | None = None):
        """`held`: a pair in use already, for when the files cannot serve. Raises `PairRefused` without any."""
        self._paths = (certificate, key)
        self._now = now
        self._suspect: tuple[_Identity, str] | None = None
        self.refused: str | None = None
        """Why the files' present content is not in use; None if it is."""
        self._seen = self._identity()
        try:
            # Dates are not looked at: with an expired certificate some clients still come, without one nobody does.
            self.pair = read_pair(certificate, key)
        except PairRefused as error:
            if held is None:
                raise
            self.pair, self.refused = held, str(error)

    def poll(self) -> Notice | None:
        """Look at the files; what is to be said about them, each thing once."""
        identity = self._identity()
        # A refused pair is read again each time: the dates of one may come to fit.
        if identity == self._seen and self.refused is None:
            return None
        try:
            pair = self._acceptable()
        except PairRefused as error:
            return self._refuse(identity, str(error))
        self._seen, self._suspect = identity, None
        was_refused, self.refused = self.refused, None
        if pair != self.pair:
            self.pair = pair
            return Notice.RENEWED
        return Notice.ACCEPTED if was_refused else None

    def _acceptable(self) -> Pair:
        pair = read_pair(*self._paths)
        if pair.pem != self.pair.pem:
            if pair.expires <= self._now():
                raise PairRefused(f"{self._paths[0]} expired on {pair.expires:%Y-%m-%d %H:%M} UTC")
            if pair.starts > self._now():
                raise PairRefused(f"{self._paths[0]} is not valid before {pair.starts:%Y-%m-%d %H:%M} UTC")
        return pair

    def _refuse(self, identity: _Identity, why: str) -> Notice | None:
        if self._suspect != (identity, why):
            self._suspect = (identity, why)
            return None
        if self.refused == why:
            return None
        self._seen, self.refused = identity, why
        return Notice.REFUSED

    def _identity(self) -> _Identity:
        """Changes when a file is written, renamed over, or reached by another symbolic link."""
        return tuple(_stat(path) for path in self._paths)


def _stat(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
