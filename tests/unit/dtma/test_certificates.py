"""A pair of files that somebody renews: what is taken up, what is refused, and what is said about it."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from support.pairs import EXPIRED, FUTURE, Authority, replace, serial
from toolbox_dtma.certificates import MAX_FILE_BYTES, Notice, PairFiles, PairRefused, read_pair
from toolbox_dtma.pki import KeyPair
from toolbox_dtma.tls import following_context

AUTHORITY = Authority()


class Files:
    """Two files and the clock by which they are judged."""

    def __init__(self, folder: Path):
        self.certificate, self.key = folder / "tls.crt", folder / "tls.key"
        self.now = datetime.now(UTC)
        self.first = AUTHORITY.issue()
        self.write(self.first)

    def write(self, pair: KeyPair) -> None:
        replace(self.key, pair.key)
        replace(self.certificate, pair.certificate)

    def watch(self) -> PairFiles:
        return PairFiles(self.certificate, self.key, now=lambda: self.now)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def said(watched: PairFiles, looks: int = 4) -> list[Notice]:
    return [notice for notice in (watched.poll() for _ in range(looks)) if notice is not None]


def test_a_renewed_pair_is_taken_up_at_the_next_look_and_said_once(files: Files) -> None:
    watched = files.watch()
    assert said(watched) == []
    renewed = AUTHORITY.issue()
    files.write(renewed)
    assert said(watched) == [Notice.RENEWED]
    assert serial(watched.pair.pem) == serial(renewed.certificate)


def test_key_and_certificate_may_come_one_after_the_other_without_a_word(files: Files) -> None:
    watched, renewed = files.watch(), AUTHORITY.issue()
    replace(files.key, renewed.key)
    assert watched.poll() is None
    assert (watched.refused, serial(watched.pair.pem)) == (None, serial(files.first.certificate))
    replace(files.certificate, renewed.certificate)
    assert watched.poll() is Notice.RENEWED


def test_a_symbolic_link_that_moves_on_is_a_renewal(files: Files, tmp_path: Path) -> None:
    """As kubelet mounts a Secret of cert-manager, and certbot its `live` folder."""
    for name, pair in (("one", files.first), ("two", AUTHORITY.issue())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tls.crt").write_bytes(pair.certificate)
        (tmp_path / name / "tls.key").write_bytes(pair.key)
    live = tmp_path / "live"
    live.symlink_to("one")
    watched = PairFiles(live / "tls.crt", live / "tls.key", now=lambda: files.now)
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(live)
    assert watched.poll() is Notice.RENEWED


def test_the_same_pair_written_again_is_nothing_new(files: Files) -> None:
    watched = files.watch()
    files.write(files.first)
    assert said(watched) == []


def mismatch(files: Files) -> None:
    replace(files.key, AUTHORITY.issue().key)


def garbage(files: Files) -> None:
    replace(files.certificate, b"no certificate")


def no_key(files: Files) -> None:
    replace(files.key, b"no key")


def gone(files: Files) -> None:
    files.certificate.unlink()


def expired(files: Files) -> None:
    files.write(AUTHORITY.issue(EXPIRED))


def not_yet(files: Files) -> None:
    files.write(AUTHORITY.issue(FUTURE))


def huge(files: Files) -> None:
    replace(files.certificate, files.first.certificate + b"\n" * MAX_FILE_BYTES)


def encrypted(files: Files) -> None:
    key = serialization.load_pem_private_key(files.first.key, None)
    locked = serialization.BestAvailableEncryption(b"passphrase")
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    replace(files.key, key.private_bytes(pem, pkcs8, locked))


REFUSED = [
    (mismatch, "tls.key is not the key of"),
    (garbage, "tls.crt holds no PEM certificate"),
    (no_key, "tls.key holds no PEM private key"),
    (gone, "tls.crt cannot be read: No such file"),
    (expired, "tls.crt expired on"),
    (not_yet, "tls.crt is not valid before"),
    (huge, "tls.crt has more than"),
    (encrypted, "tls.key is encrypted; store it without a passphrase"),
]


@pytest.mark.parametrize(("spoil", "why"), REFUSED, ids=[spoil.__name__ for spoil, _ in REFUSED])
def test_what_cannot_serve_is_refused_once_and_the_old_pair_stays(
    files: Files, spoil: Callable[[Files], None], why: str
) -> None:
    watched = files.watch()
    spoil(files)
    assert said(watched, looks=6) == [Notice.REFUSED]
    assert watched.refused is not None and why in watched.refused
    assert serial(watched.pair.pem) == serial(files.first.certificate)
    files.write(files.first)
    assert said(watched) == [Notice.ACCEPTED]
    assert watched.refused is None
    files.write(AUTHORITY.issue())
    assert said(watched) == [Notice.RENEWED]


def test_a_certificate_that_becomes_valid_is_taken_up_then(files: Files) -> None:
    watched = files.watch()
    not_yet(files)
    assert said(watched) == [Notice.REFUSED]
    files.now += FUTURE
    assert said(watched) == [Notice.RENEWED]


def test_at_the_start_an_expired_pair_serves_and_a_wrong_one_does_not(files: Files) -> None:
    expired(files)
    assert files.watch().pair.expires < files.now
    mismatch(files)
    with pytest.raises(PairRefused, match="is not the key of"):
        files.watch()


def test_with_a_pair_in_use_already_wrong_files_are_no_error(files: Files) -> None:
    held = files.watch().pair
    mismatch(files)
    watched = PairFiles(files.certificate, files.key, now=lambda: files.now, held=held)
    assert (watched.pair, watched.refused is None) == (held, False)
    files.write(AUTHORITY.issue())
    assert said(watched) == [Notice.RENEWED]


def test_messages_hold_nothing_of_the_key(files: Files) -> None:
    secret = b"-----BEGIN PRIVATE KEY-----\nTOPSECRET\n-----END PRIVATE KEY-----\n"
    replace(files.key, secret)
    with pytest.raises(PairRefused) as refused:
        read_pair(files.certificate, files.key)
    assert "TOPSECRET" not in str(refused.value)


def rsa_pair() -> KeyPair:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "rsa")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return KeyPair(certificate.public_bytes(pem), key.private_bytes(pem, pkcs8, serialization.NoEncryption()))


def handshake(server: ssl.SSLContext, *, server_name: str | None, signatures: str) -> int:
    """The serial of what this server offers to a client that takes certificates of one kind only."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers(signatures)
    one, other = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(one, server_side=True).close()
        except ssl.SSLError:
            one.close()

    serving = threading.Thread(target=serve)
    serving.start()
    try:
        with client.wrap_socket(other, server_hostname=server_name) as tls:
            found = tls.getpeercert(binary_form=True)
    finally:
        other.close()
        serving.join(10)
        one.close()
    assert found is not None
    return x509.load_der_x509_certificate(found).serial_number


@pytest.mark.parametrize("server_name", [None, "localhost"])
def test_a_running_server_offers_the_new_pair_and_no_longer_the_old_one(server_name: str | None) -> None:
    old, new = rsa_pair(), AUTHORITY.issue()
    present = [old.certificate + old.key]
    context = following_context(lambda: present[0])
    assert handshake(context, server_name=server_name, signatures="ECDHE-RSA-AES128-GCM-SHA256") == serial(
        old.certificate
    )
    present[0] = new.certificate + new.key
    assert handshake(context, server_name=server_name, signatures="ECDHE-ECDSA-AES128-GCM-SHA256") == serial(
        new.certificate
    )
    # A context that the new pair was loaded into would still answer this client, with the old certificate.
    with pytest.raises((ssl.SSLError, OSError)):
        handshake(context, server_name=server_name, signatures="ECDHE-RSA-AES128-GCM-SHA256")
