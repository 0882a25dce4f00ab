"""A cluster with our manifests applied and an audit log, and the operator's pods as Docker containers on it."""

from __future__ import annotations

import json
import secrets
import subprocess
import urllib.error
import urllib.request
from base64 import b64decode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from delivery import manifests as delivery_manifests
from localstack import certificates
from localstack import kubernetes as kubernetes_module
from localstack.docker import Engine
from localstack.kubernetes import OPERATOR_ACCOUNT, OPERATOR_NAMESPACE, REPOSITORY, Cluster, Manifest, load_manifests
from localstack.ports import free_port
from localstack.processes import Supervisor
from support.install.pods import arguments, docker_flags, named, pod_of, values
from support.poll import until

ACCOUNT = f"system:serviceaccount:{OPERATOR_NAMESPACE}:{OPERATOR_ACCOUNT}"
LABEL = "magic-toolbox-test"
MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
SHORT = ("--timing=lease_duration=6", "--timing=lease_renew_deadline=4", "--timing=lease_retry=0.5")
Permission = tuple[str, str, str]
"""(verb, API group, resource or resource/subresource)"""


def rendered(*, dev: bool = False) -> list[Manifest]:
    """The objects that kustomize makes; without a new enough one on the PATH, those of the files."""
    if delivery_manifests.builder() is not None:
        return delivery_manifests.build(delivery_manifests.DEV if dev else delivery_manifests.DEFAULT)
    folders = [REPOSITORY / "crds", *(REPOSITORY / "manifests" / name for name in ("operator", "rbac"))]
    if dev:
        folders.append(REPOSITORY / "manifests" / "overlays" / "dev")
    return [each for folder in folders for each in load_manifests(folder)]


@dataclass(frozen=True, slots=True)
class Installation:
    """A cluster that our manifests were applied to in one go."""

    cluster: Cluster
    objects: Sequence[Manifest]
    audit: Path
    said: str
    """What kubectl printed."""

    def requests(self) -> list[dict[str, Any]]:
        """What the operator asked of the API server so far, as the audit log has it."""
        lines = self.audit.read_text().splitlines()
        # The last line may be half written.
        return [json.loads(line) for line in lines if line.endswith("}")]

    def token(self, pod: str) -> str:
        """A token of the operator's account that is bound to a pod object, made here; gone with the pod."""
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": pod, "namespace": OPERATOR_NAMESPACE},
            "spec": {
                "serviceAccountName": OPERATOR_ACCOUNT,
                "containers": [{"name": "none", "image": "registry.example.com/none"}],
                "nodeSelector": {"magictoolbox.dev/none": "none"},
            },
        }
        made = json.loads(self.cluster.kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(body)))
        reference = {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": made["metadata"]["uid"]}
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 3600, "boundObjectRef": reference},
        }
        path = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/serviceaccounts/{OPERATOR_ACCOUNT}/token"
        answer = json.loads(self.cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(request)))
        return str(answer["status"]["token"])


def install(supervisor: Supervisor, folder: Path) -> Installation:
    """A cluster of its own whose API server writes down what the operator's account asks for."""
    folder.mkdir(parents=True)
    policy = {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata", "users": [ACCOUNT]}, {"level": "None"}],
    }
    policy_file, audit = folder / "audit-policy.yaml", folder / "audit.log"
    policy_file.write_text(yaml.safe_dump(policy))
    flags = (f"--audit-policy-file={policy_file}", f"--audit-log-path={audit}", "--audit-log-mode=blocking")
    cluster = kubernetes_module.start(supervisor, folder / "kubernetes", extra=flags)
    objects = rendered(dev=True)
    fitting = objects if cluster.has_cel else delivery_manifests.adapted(objects)
    said = cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(fitting, sort_keys=False))
    crds = [f"crd/{each['metadata']['name']}" for each in objects if each["kind"] == "CustomResourceDefinition"]
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", *crds)
    return Installation(cluster, objects, audit, said)


def get(url: str) -> tuple[int, str]:
    """Status and text of a local URL; (0, reason) when nothing answers."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        return 0, str(error)


@dataclass(slots=True)
class Replica:
    """One pod of the operator's Deployment, as a container with the same user, rights, arguments and mounts."""

    engine: Engine
    name: str
    flags: Sequence[str]
    health_port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)

    def start(self, installation: Installation, image: str, *, dsn: str | None = None) -> None:
        """Runs the pod of the manifests, but on loopback ports of this machine and with a short Lease."""
        pod = pod_of(named(installation.objects, "Deployment", "magic-toolbox-operator"))
        (container,) = pod["containers"]
        known = {"POD_NAMESPACE": OPERATOR_NAMESPACE, **({"DATABASE_URL": dsn} if dsn else {})}
        environment = values(container, known)
        given = arguments(container, environment)
        ours = ("--listen=127.0.0.1", f"--health-port={self.health_port}", f"--metrics-port={self.metrics_port}")
        argv = [
            "run",
            "--detach",
            "--restart=unless-stopped",
            "--network=host",
            f"--name={self.name}",
            *self.flags,
            *docker_flags(pod),
        ]
        argv += [flag for name, value in environment.items() for flag in ("--env", f"{name}={value}")]
        self.engine.docker(*argv, image, *given, *ours, *SHORT)

    def ready(self) -> tuple[int, str]:
        """What the readiness probe gets."""
        return get(f"http://127.0.0.1:{self.health_port}/readyz")

    def leads(self) -> bool:
        """Whether its metrics say that it leads."""
        _, text = get(f"http://127.0.0.1:{self.metrics_port}/metrics")
        return "magic_toolbox_leader 1.0" in text.splitlines()

    def await_ready(self) -> None:
        """Waits for the readiness probe to pass."""
        self._await("ready", lambda: self.ready()[0] == 200)

    def await_leading(self) -> None:
        """Waits until it leads."""
        self._await("leading", self.leads)

    def _await(self, what: str, look: Callable[[], bool]) -> None:
        try:
            until(f"{self.name} {what}", look, seconds=120)
        except AssertionError as error:
            raise AssertionError(f"{error}; exit code {self.exit_code()}; its log:\n{self.logs()}") from error

    def exit_code(self) -> int | None:
        """The container's exit code; None while it runs."""
        state = self.engine.docker("inspect", "--format", "{{.State.Running}} {{.State.ExitCode}}", self.name).split()
        return None if state[0] == "true" else int(state[1])

    def logs(self) -> str:
        """Everything it has written."""
        done = subprocess.run(["docker", "logs", self.name], capture_output=True, text=True, timeout=20, check=True)
        return done.stdout + done.stderr


@dataclass(slots=True)
class Account:
    """The folder that a kubelet would mount for the service account, and what is in it."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, cluster: Cluster, token: str) -> Account:
        """Writes ca.crt, namespace and token."""
        folder.mkdir(parents=True)
        folder.chmod(0o755)
        config = yaml.safe_load(cluster.kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
        authority = config["clusters"][0]["cluster"]["certificate-authority-data"]
        account = cls(folder)
        account.write("ca.crt", b64decode(authority))
        account.write("namespace", OPERATOR_NAMESPACE.encode())
        account.write("token", token.encode())
        return account

    def write(self, name: str, content: bytes) -> None:
        """Replaces a file at once, as a kubelet does."""
        draft = self.folder / f".{name}.{secrets.token_hex(4)}"
        certificates.write_secret(draft, content)
        draft.chmod(0o644)
        draft.rename(self.folder / name)

    def flags(self, cluster: Cluster) -> list[str]:
        """What a pod has of it: the mount, and where the API server is."""
        config = yaml.safe_load(cluster.kubectl("config", "view", "--minify", "-o", "json"))
        server = urlsplit(str(config["clusters"][0]["cluster"]["server"]))
        return [
            f"--volume={self.folder}:{MOUNT}:ro",
            f"--env=KUBERNETES_SERVICE_HOST={server.hostname}",
            f"--env=KUBERNETES_SERVICE_PORT={server.port}",
        ]
