"""The CRD server of Kubernetes 1.36, where CEL rules and strict field validation are tried for real.

It runs alone with an etcd: its client is an administrator by certificate, so that nobody needs to be asked who
is who, and it serves custom resources only (no namespaces, no `kubectl`).
"""

from __future__ import annotations

import ssl
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from localstack import cache, certificates, kube_binaries
from localstack.kubernetes import REPOSITORY, kubeconfig, load_manifests
from localstack.ports import free_port
from localstack.processes import Child, Command, Supervisor
from localstack.progress import capture, run_step
from support.crd.api import Answer

_SCRIPT = REPOSITORY / "hack" / "build-crd-server.sh"
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def binary() -> Path:
    """The cached binary, built first where it is missing."""
    path = Path(capture([str(_SCRIPT), "--print"]).strip())
    if not path.exists():
        run_step("CRD server of Kubernetes 1.36", [str(_SCRIPT)], cache.log("crd-server"), seconds=1500)
    return path


@dataclass(frozen=True, slots=True)
class CrdServer:
    """A running CRD server with our CRDs."""

    client: httpx.Client

    strict = True
    """Unknown fields are refused."""

    def create(self, path: str, body: dict[str, Any], *, dry_run: bool = False) -> Answer:
        """POST an object."""
        return self._send("POST", path, body, {"dryRun": "All"} if dry_run else {})

    def replace(self, path: str, body: dict[str, Any]) -> Answer:
        """PUT an object or its status."""
        return self._send("PUT", path, body, {})

    def delete(self, path: str) -> None:
        """Delete an object; absent is fine."""
        self.client.delete(path)

    def _send(self, method: str, path: str, body: dict[str, Any], params: dict[str, str]) -> Answer:
        answer = self.client.request(method, path, json=body, params={"fieldValidation": "Strict", **params})
        if answer.is_success:
            return Answer(True, "", answer.json())
        return Answer(False, answer.json()["message"], {})


@contextmanager
def running(supervisor: Supervisor, folder: Path) -> Generator[CrdServer]:
    """Etcd and the server, with the CRDs and their rules installed; the supervisor stops them."""
    program = binary()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    etcd = _etcd(supervisor, folder)
    server = certificates.make_server_files(folder)
    authority, pair = _administrator(folder)
    nobody = folder / "nobody.kubeconfig"
    # Required by the server's flags; the administrators' group is let in without a question to anyone.
    nobody.write_text(kubeconfig("http://127.0.0.1:9", "", "none"))
    port = free_port()
    arguments = [
        f"--etcd-servers={etcd}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--tls-cert-file={server.certificate}",
        f"--tls-private-key-file={server.key}",
        f"--client-ca-file={authority}",
        f"--kubeconfig={nobody}",
        f"--authentication-kubeconfig={nobody}",
        f"--authorization-kubeconfig={nobody}",
        "--authentication-skip-lookup",
        "--authentication-tolerate-lookup-failure",
        "--disable-admission-plugins=NamespaceLifecycle,MutatingAdmissionWebhook,ValidatingAdmissionWebhook,"
        "ValidatingAdmissionPolicy,MutatingAdmissionPolicy",
    ]
    child = supervisor.start(Command("crd-server", [str(program), *arguments], cwd=folder))
    context = ssl.create_default_context(cafile=str(server.ca))
    context.load_cert_chain(pair)
    address = f"https://127.0.0.1:{port}"
    with httpx.Client(base_url=address, verify=context, timeout=20, trust_env=False) as client:
        child.wait_until(lambda: _ready(client), 60, "ready")
        _install(client, child)
        yield CrdServer(client)


def _ready(client: httpx.Client) -> bool:
    # The whole of /readyz never is: the informers of core objects have no server to ask.
    try:
        return client.get("/readyz/poststarthook/crd-informer-synced").status_code == 200
    except httpx.TransportError:
        return False


def _install(client: httpx.Client, child: Child) -> None:
    crds = load_manifests(REPOSITORY / "crds")
    for crd in crds:
        answer = client.post(_CRDS, params={"fieldValidation": "Strict"}, json=crd)
        if not answer.is_success:
            raise child.explain(f"refused {crd['metadata']['name']}: {answer.text}")

    def served() -> bool:
        return all(
            _established(client, crd["metadata"]["name"]) and _lists(client, crd["spec"]["names"]["plural"])
            for crd in crds
        )

    child.wait_until(served, 30, "serving the CRDs")


def _established(client: httpx.Client, name: str) -> bool:
    conditions = client.get(f"{_CRDS}/{name}").json().get("status", {}).get("conditions", [])
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)


def _lists(client: httpx.Client, plural: str) -> bool:
    return client.get(f"/apis/magictoolbox.dev/v1alpha1/{plural}").is_success


def _etcd(supervisor: Supervisor, folder: Path) -> str:
    url, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    arguments = [
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={url}",
        f"--advertise-client-urls={url}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
    ]
    child = supervisor.start(Command("crd-server-etcd", [str(kube_binaries.find().etcd), *arguments]))

    def healthy() -> bool:
        try:
            return httpx.get(f"{url}/health", timeout=2, trust_env=False).is_success
        except httpx.TransportError:
            return False

    child.wait_until(healthy, 30, "answering")
    return url


def _administrator(folder: Path) -> tuple[Path, Path]:
    """A certificate of the administrators' group: the file of its authority, and of certificate and key."""
    now = datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:masters"),
            x509.NameAttribute(NameOID.COMMON_NAME, "admin"),
        ]
    )
    # Its own authority: one key that signs nothing else.
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    authority, pair = folder / "client-ca.crt", folder / "client.pem"
    authority.write_bytes(pem)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    certificates.write_secret(pair, pem + secret)
    return authority, pair
