"""`toolbox-dtma init`: give a host its identity, keys and certificates, and print what to apply in the cluster.

Idempotent: running it again keeps the identity, the token and the authority. Changed addresses, and certificates near
their end, get new server certificates from the same authority, so nothing has to be applied again.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import pwd
import re
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from toolbox_dtma import pki
from toolbox_dtma.state.files import ensure_folder, read_record, write_atomic, write_record
from toolbox_dtma.state.keyring import first_ring
from toolbox_dtma.state.records import HostRecord

_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
_DNS_NAME = re.compile(r"^(?=.{1,253}$)[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$")
_MAX_SOCKET_PATH = 107


class InitError(Exception):
    """Init cannot do what was asked; the message says what to change."""


@dataclass(frozen=True, slots=True)
class InitOptions:
    """The command line of init, as given."""

    state_dir: Path
    gateway_dir: Path
    runtime_dir: Path
    addresses: tuple[str, ...]
    management_port: int
    gateway_port: int
    gateway_user: str
    name: str
    namespace: str
    gateway_workers: int = 2
    bind: str | None = None
    docker_url: str | None = None


def init(options: InitOptions, *, now: Callable[[], datetime]) -> str:
    """Bring everything on disk up to date; the YAML to apply. Raises `InitError`, `StateCorrupt`, `OSError`."""
    _check(options)
    uid, gid = resolve_user(options.gateway_user)
    ensure_folder(options.state_dir)
    record = _host_record(options, uid, gid)
    _check_identity(record, options)
    write_record(options.state_dir / "host.json", record)
    ca = _authority(options.state_dir, record.host_id, now())
    token = _kept(options.state_dir / "token", lambda: secrets.token_urlsafe(32).encode())
    _kept(options.state_dir / "spec.key", lambda: base64.b64encode(secrets.token_bytes(32)))
    _keyring(options.state_dir / "keyring.json", now())
    _server_certificate(options.state_dir, ca, options.addresses, now(), owner=None)
    _gateway_folder(options, ca, uid, gid, now())
    return manifest(options, token=token.decode().strip(), ca=ca.certificate.decode())


def renew(state_dir: Path, *, now: Callable[[], datetime], force: bool = False) -> str:
    """New server certificates where they end soon, or with `force`; what was done, a line for each.

    Identity, token and authority stay, so nothing has to be applied in the cluster, and nothing to be restarted: who
    serves with them takes them up. Raises `InitError`, `StateCorrupt`, `OSError`.
    """
    if not (state_dir / "host.json").exists():
        raise InitError(f"{state_dir} holds no host; run `toolbox-dtma init` first")
    host = read_record(state_dir / "host.json", HostRecord)
    ca = _authority(state_dir, host.host_id, now())
    lines: list[str] = []
    for folder, owner in ((state_dir, None), (Path(host.gateway_dir), (host.gateway_uid, host.gateway_gid))):
        renewed = _server_certificate(folder, ca, host.addresses, now(), owner=owner, force=force)
        path = folder / "tls.crt"
        word = "renewed" if renewed else "kept"
        lines.append(f"{path}: {word}, good until {pki.expiry(path.read_bytes()):%Y-%m-%d}\n")
    ends = pki.expiry(ca.certificate)
    if ends - now() < pki.SERVER_LIFETIME:
        lines.append(
            f"{state_dir / 'ca.crt'}: the authority itself ends on {ends:%Y-%m-%d}; before that, remove ca.crt and "
            "ca.key, run init again, and apply what it prints\n"
        )
    return "".join(lines)


def _check(options: InitOptions) -> None:
    for value, flag in ((options.name, "--name"), (options.namespace, "--namespace")):
        if not _LABEL.fullmatch(value):
            raise InitError(f"{flag} must be a DNS label: lower-case letters, digits and dashes, at most 63")
    for address in options.addresses:
        if not _is_ip(address) and not _DNS_NAME.fullmatch(address):
            raise InitError(f"--address {address} is neither an IP address nor a lower-case DNS name")
    if options.management_port == options.gateway_port:
        raise InitError("--management-port and --gateway-port must differ")
    for port in (options.management_port, options.gateway_port):
        if not 1 <= port <= 65535:
            raise InitError(f"port {port} is not between 1 and 65535")
    if len(str(options.runtime_dir / "gateway.sock")) > _MAX_SOCKET_PATH:
        raise InitError(f"--runtime-dir is too long: with gateway.sock it may have {_MAX_SOCKET_PATH} characters")
    for path in (options.state_dir, options.gateway_dir, options.runtime_dir):
        if not path.is_absolute():
            raise InitError(f"{path} must be an absolute path")


def resolve_user(text: str) -> tuple[int, int]:
    """(uid, gid) of the gateway's user, given as a number or a name. Raises `InitError`."""
    if text.isdecimal():
        uid = int(text)
        try:
            gid = pwd.getpwuid(uid).pw_gid
        except KeyError:
            gid = uid
    else:
        try:
            entry = pwd.getpwnam(text)
        except KeyError:
            raise InitError(f"there is no user {text}: make it (`useradd --system {text}`) or give a number") from None
        uid, gid = entry.pw_uid, entry.pw_gid
    if uid == 0:
        raise InitError("the gateway must not run as root: give --gateway-user another user")
    return uid, gid


def _host_record(options: InitOptions, uid: int, gid: int) -> HostRecord:
    path = options.state_dir / "host.json"
    host_id = read_record(path, HostRecord).host_id if path.exists() else str(uuid.uuid4())
    any_v6 = any(":" in address for address in options.addresses)
    return HostRecord(
        host_id=host_id,
        name=options.name,
        namespace=options.namespace,
        addresses=options.addresses,
        # All interfaces unless told otherwise: agents and operators come from other machines.
        bind=options.bind or ("::" if any_v6 else "0.0.0.0"),
        management_port=options.management_port,
        gateway_port=options.gateway_port,
        gateway_dir=str(options.gateway_dir),
        gateway_uid=uid,
        gateway_gid=gid,
        gateway_workers=options.gateway_workers,
        runtime_dir=str(options.runtime_dir),
        docker_url=options.docker_url,
    )


def _check_identity(record: HostRecord, options: InitOptions) -> None:
    path = options.state_dir / "host.json"
    if not path.exists():
        return
    held = read_record(path, HostRecord)
    if (held.name, held.namespace) != (record.name, record.namespace):
        raise InitError(
            f"this host is {held.namespace}/{held.name} already; use that name, or another --state-dir for a new host"
        )


def _kept(path: Path, make: Callable[[], bytes]) -> bytes:
    if not path.exists():
        write_atomic(path, make())
    return path.read_bytes()


def _authority(folder: Path, host_id: str, now: datetime) -> pki.KeyPair:
    certificate, key = folder / "ca.crt", folder / "ca.key"
    if certificate.exists():
        return pki.KeyPair(certificate.read_bytes(), key.read_bytes())
    pair = pki.make_ca(host_id, now)
    # The certificate last: it is what says that the authority is complete.
    write_atomic(key, pair.key)
    write_atomic(certificate, pair.certificate)
    return pair


def _keyring(path: Path, now: datetime) -> None:
    if not path.exists():
        write_record(path, first_ring(now))


def _server_certificate(
    folder: Path,
    ca: pki.KeyPair,
    addresses: tuple[str, ...],
    now: datetime,
    *,
    owner: tuple[int, int] | None,
    force: bool = False,
) -> bool:
    """Have a current certificate there. Whether it is a new one."""
    certificate, key = folder / "tls.crt", folder / "tls.key"
    complete = certificate.exists() and key.exists()
    if not force and complete and pki.is_current(certificate.read_bytes(), ca.certificate, addresses, now):
        return False
    pair = pki.issue_server(ca, addresses, now)
    certificate.unlink(missing_ok=True)
    write_atomic(key, pair.key, owner=owner)
    write_atomic(certificate, pair.certificate, owner=owner)
    return True


def _gateway_folder(options: InitOptions, ca: pki.KeyPair, uid: int, gid: int, now: datetime) -> None:
    folder = options.gateway_dir
    ensure_folder(folder)
    for parent in folder.parents:
        if not parent.stat().st_mode & 0o001:
            raise InitError(f"--gateway-dir: the gateway's user cannot enter {parent} (chmod o+x, or choose another)")
    os.chown(folder, uid, gid)
    _server_certificate(folder, ca, options.addresses, now, owner=(uid, gid))
    any_v6 = any(":" in address for address in options.addresses)
    own = {"tlsCertificate": str(folder / "tls.crt"), "tlsKey": str(folder / "tls.key")}
    decided = {
        "listenHost": options.bind or ("::" if any_v6 else "0.0.0.0"),
        "listenPort": options.gateway_port,
        "socket": str(options.runtime_dir / "gateway.sock"),
        "workers": options.gateway_workers,
    }
    path = folder / "gateway.json"
    # What somebody wrote into it besides stays, a certificate of another authority above all.
    content = json.dumps(own | _held_settings(path) | decided, indent=2).encode() + b"\n"
    write_atomic(path, content, owner=(uid, gid))


def _held_settings(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError):
        raise InitError(f"{path} holds no JSON object: mend it, or remove it to have it made anew") from None


def manifest(options: InitOptions, *, token: str, ca: str) -> str:
    """The Secrets and the Toolbox, as YAML documents."""
    host = f"[{options.addresses[0]}]" if ":" in options.addresses[0] else options.addresses[0]
    token_name, ca_name = f"{options.name}-dtma", f"{options.name}-ca"

    def metadata(name: str) -> dict[str, str]:
        return {"name": name, "namespace": options.namespace}

    def secret(name: str, data: dict[str, str]) -> dict[str, Any]:
        return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata(name), "type": "Opaque", "stringData": data}

    toolbox = {
        "apiVersion": "magictoolbox.dev/v1alpha1",
        "kind": "Toolbox",
        "metadata": metadata(options.name),
        "spec": {
            "endpoint": f"https://{host}:{options.management_port}",
            "gatewayURL": f"https://{host}:{options.gateway_port}",
            "authSecretRef": {"name": token_name, "key": "token"},
            "caSecretRef": {"name": ca_name, "key": "ca.crt"},
            "gatewayCASecretRef": {"name": ca_name, "key": "ca.crt"},
        },
    }
    documents = [secret(token_name, {"token": token}), secret(ca_name, {"ca.crt": ca}), toolbox]
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, explicit_start=True)


class _Dumper(yaml.SafeDumper):
    """Certificates as blocks that a person recognises."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # The stubs of PyYAML leave this method's parameters untyped.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)  # pyright: ignore[reportUnknownMemberType]


_Dumper.add_representer(str, _represent_text)


def _is_ip(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True
