"""A real Kubernetes API: an opted-in cluster, or API server, etcd and controller manager on loopback."""

from __future__ import annotations

import json
import os
import re
import secrets
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from ssl import create_default_context
from typing import Any, cast

import yaml

from localstack import certificates, debian, kube_binaries
from localstack.kube_binaries import Binaries
from localstack.ports import free_port
from localstack.processes import Command, Supervisor
from localstack.progress import SetupError, capture, step

CLUSTER_VARIABLE = "MAGIC_TOOLBOX_KUBECONFIG"
"""Kubeconfig of a cluster to use instead of a local one: an explicit opt-in, never the current context."""

OPERATOR_NAMESPACE = "magic-toolbox-system"
OPERATOR_ACCOUNT = "magic-toolbox-operator"
CEL_SINCE = (1, 25)
REPOSITORY = Path(__file__).resolve().parents[2]

Manifest = dict[str, Any]


def strip_validations(node: object) -> object:
    """A copy of a CRD without CEL rules, for servers that do not know them (and refuse them in `apply`)."""
    if isinstance(node, dict):
        mapping = cast("dict[str, object]", node)
        return {key: strip_validations(value) for key, value in mapping.items() if key != "x-kubernetes-validations"}
    if isinstance(node, list):
        return [strip_validations(item) for item in cast("list[object]", node)]
    return node


def admit_empty_strings(node: object) -> object:
    """A copy of a schema whose possibly empty strings may be null, for 1.20 built with a newer Go than its own.

    Such a server takes an empty string in a custom resource for null (it compares addresses of zero values, which
    later Go shares) and refuses it. Kubernetes' own builds do not.
    """
    if isinstance(node, dict):
        mapping = cast("dict[str, object]", node)
        copied = {key: value if key == "anyOf" else admit_empty_strings(value) for key, value in mapping.items()}
        bounded = mapping.keys() & {"minLength", "enum", "format"}
        return {**copied, "nullable": True} if mapping.get("type") == "string" and not bounded else copied
    if isinstance(node, list):
        return [admit_empty_strings(item) for item in cast("list[object]", node)]
    return node


def for_old_servers(crd: Manifest) -> Manifest:
    """The CRD as a server before 1.25 takes it."""
    adapted = cast("Manifest", strip_validations(crd))
    for version in adapted["spec"]["versions"]:
        properties = version["schema"]["openAPIV3Schema"]["properties"]
        for part in properties.keys() & {"spec", "status"}:
            properties[part] = admit_empty_strings(properties[part])
    return adapted


def load_manifests(folder: Path) -> list[Manifest]:
    """All objects of a folder's YAML files, in the order of the file names."""
    found: list[Manifest] = []
    for path in sorted(folder.glob("*.yaml")):
        documents = cast("list[Manifest | None]", list(yaml.safe_load_all(path.read_text())))
        found += [document for document in documents if document]
    return [item for item in found if item.get("kind") != "Kustomization"]


def kubeconfig(server: str, ca: str, token: str) -> str:
    """A kubeconfig for one user; `ca` is base64."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "local", "cluster": {"server": server, "certificate-authority-data": ca}}],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "local", "context": {"cluster": "local", "user": "user"}}],
        "current-context": "local",
    }
    return yaml.safe_dump(config, sort_keys=False)


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running API server."""

    admin_kubeconfig: Path
    version: tuple[int, int]
    folder: Path
    """Folder for this run's files about the cluster, the operator's kubeconfig among them."""
    kubectl_path: Path

    @property
    def operator_kubeconfig(self) -> Path:
        """Kubeconfig with the rights of the operator's ClusterRole; exists after `install_operator_account`."""
        return self.folder / "operator.kubeconfig"

    @property
    def has_cel(self) -> bool:
        """Whether the API server enforces `x-kubernetes-validations`."""
        return self.version >= CEL_SINCE

    def kubectl(self, *args: str, stdin: str | None = None, seconds: float = 60.0) -> str:
        """Runs kubectl as admin and gives its standard output; a failure carries kubectl's message."""
        config = ["--kubeconfig", str(self.admin_kubeconfig), "--cache-dir", str(self.folder / "discovery")]
        return capture([str(self.kubectl_path), *config, *args], stdin=stdin, seconds=seconds)

    def get(self, *args: str) -> Manifest:
        """`kubectl get ... -o json`, parsed."""
        return cast("Manifest", json.loads(self.kubectl("get", *args, "-o", "json")))

    def apply(self, manifests: Sequence[Mapping[str, Any]]) -> None:
        """Applies objects as admin (server side, so that size is no limit)."""
        if not manifests:
            return
        text = yaml.safe_dump_all(manifests, sort_keys=False)
        flags = ("--server-side", "--force-conflicts", "--field-manager=local-stack", "--validate=false")
        self.kubectl("apply", *flags, "-f", "-", stdin=text)

    def install_crds(self, folder: Path = REPOSITORY / "crds") -> None:
        """Applies the CRDs and waits until they are served."""
        crds = load_manifests(folder)
        if not crds:
            raise SetupError(f"no CRDs in {folder}: run make crds")
        if not self.has_cel:
            crds = [for_old_servers(crd) for crd in crds]
        self.apply(crds)
        names = [f"crd/{crd['metadata']['name']}" for crd in crds]
        self.kubectl("wait", "--for=condition=Established", "--timeout=30s", *names)

    def install_operator_account(self, folder: Path = REPOSITORY / "manifests" / "rbac") -> Path:
        """Applies the operator's RBAC and writes a kubeconfig with a token of its service account."""
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OPERATOR_NAMESPACE}}
        account = {"name": OPERATOR_ACCOUNT, "namespace": OPERATOR_NAMESPACE}
        self.apply([namespace, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}])
        rules = load_manifests(folder)
        if not any(rule.get("kind") == "ClusterRole" for rule in rules):
            raise SetupError(f"no ClusterRole in {folder}")
        self.apply(rules)
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 86400},
        }
        path = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/serviceaccounts/{OPERATOR_ACCOUNT}/token"
        answer = json.loads(self.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(request)))
        view = json.loads(self.kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
        cluster = view["clusters"][0]["cluster"]
        text = kubeconfig(cluster["server"], cluster.get("certificate-authority-data", ""), answer["status"]["token"])
        certificates.write_secret(self.operator_kubeconfig, text.encode())
        return self.operator_kubeconfig


def find_kubectl() -> Path:
    """Kubectl from the PATH, else from Debian's package."""
    return debian.program("kubectl", "kubernetes-client", "usr/bin/kubectl")


def opted_in(folder: Path) -> Cluster | None:
    """The cluster named by `$MAGIC_TOOLBOX_KUBECONFIG`, if it is set."""
    path = os.environ.get(CLUSTER_VARIABLE)
    if not path:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    draft = Cluster(Path(path), (0, 0), folder, find_kubectl())
    info = json.loads(draft.kubectl("get", "--raw", "/version", seconds=15))
    minor = re.match(r"\d+", info["minor"])
    version = int(info["major"]), int(minor[0]) if minor else 0
    return Cluster(draft.admin_kubeconfig, version, folder, draft.kubectl_path)


def _answers(url: str, ca: Path | None) -> bool:
    context = create_default_context(cafile=str(ca)) if ca else None
    try:
        with urllib.request.urlopen(url, timeout=2, context=context) as answer:
            return answer.status == 200
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def _etcd(supervisor: Supervisor, binaries: Binaries, folder: Path) -> str:
    client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    argv = [
        str(binaries.etcd),
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
    ]
    child = supervisor.start(Command("etcd", argv))
    child.wait_until(lambda: _answers(f"{client}/health", None), 30, "answering")
    return client


def _apiserver(supervisor: Supervisor, binaries: Binaries, folder: Path, extra: Sequence[str]) -> Cluster:
    etcd = _etcd(supervisor, binaries, folder)
    files = certificates.make_server_files(folder)
    private, public = certificates.make_signing_key(folder)
    token = secrets.token_urlsafe(32)
    tokens = folder / "tokens.csv"
    certificates.write_secret(tokens, f"{token},admin,admin,system:masters\n".encode())
    port = free_port()
    argv = [
        str(binaries.apiserver),
        f"--etcd-servers={etcd}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--secure-port={port}",
        f"--tls-cert-file={files.certificate}",
        f"--tls-private-key-file={files.key}",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={public}",
        f"--service-account-signing-key-file={private}",
        f"--token-auth-file={tokens}",
        "--authorization-mode=RBAC",
        # No kubelet here that would give pods their tokens.
        "--disable-admission-plugins=ServiceAccount",
        "--endpoint-reconciler-type=none",
        *extra,
    ]
    server = f"https://127.0.0.1:{port}"
    child = supervisor.start(Command("kube-apiserver", argv, cwd=folder))
    child.wait_until(lambda: _answers(f"{server}/readyz", files.ca), 60, "ready")
    admin = folder / "admin.kubeconfig"
    certificate = files.ca.read_bytes()
    certificates.write_secret(admin, kubeconfig(server, b64encode(certificate).decode(), token).encode())
    _controller_manager(supervisor, binaries, admin, private, files.ca)
    return Cluster(admin, binaries.version, folder, find_kubectl())


def _controller_manager(supervisor: Supervisor, binaries: Binaries, admin: Path, key: Path, ca: Path) -> None:
    argv = [
        str(binaries.controller_manager),
        f"--kubeconfig={admin}",
        "--controllers=namespace,garbagecollector,serviceaccount,root-ca-cert-publisher,clusterrole-aggregation",
        f"--service-account-private-key-file={key}",
        f"--root-ca-file={ca}",
        "--leader-elect=false",
        "--secure-port=0",
        # Namespaces and owner references of hundreds of tests go through this one client.
        "--kube-api-qps=200",
        "--kube-api-burst=400",
        "--concurrent-namespace-syncs=10",
    ]
    if binaries.version < (1, 24):
        argv.append("--port=0")  # older ones serve plain HTTP on every address unless told not to
    supervisor.start(Command("kube-controller-manager", argv))


def start(supervisor: Supervisor, folder: Path, *, extra: Sequence[str] = ()) -> Cluster:
    """A bare cluster: the opted-in one, or one started here, whose API server gets `extra` flags."""
    cluster = opted_in(folder)
    if cluster is not None:
        return cluster
    binaries = kube_binaries.find()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    with step(f"Kubernetes API {binaries.version[0]}.{binaries.version[1]}"):
        return _apiserver(supervisor, binaries, folder, extra)
