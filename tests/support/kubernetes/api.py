"""The Kubernetes API as admin, without the start of a kubectl for each request: for those who look or write often."""

from __future__ import annotations

import http.client
import json
import ssl
import tempfile
from base64 import b64decode
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import yaml

GROUP_ROOT = "/apis/magictoolbox.dev/v1alpha1"
PLURALS = {"Toolbox": "toolboxes", "MCPServer": "mcpservers", "AgentMCPConnection": "agentmcpconnections"}
LEASE = "/apis/coordination.k8s.io/v1/namespaces/magic-toolbox-system/leases/magic-toolbox-operator"
DEADLINE = 30.0


class ApiRefused(Exception):
    """The API server answered with an error; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


@dataclass(frozen=True, slots=True)
class Access:
    """What a kubeconfig says: where, whom to trust, who we are."""

    server: str
    ca: str
    token: str
    """Empty where a certificate says who we are."""
    certificate: bytes = b""
    """PEM of it and its key."""

    @classmethod
    def read(cls, kubeconfig: Path) -> Access:
        """Of a kubeconfig with one cluster and one user, with a token or a certificate."""
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        ca = b64decode(cluster["certificate-authority-data"]).decode()
        if "token" in user:
            return cls(str(cluster["server"]), ca, str(user["token"]))
        pem = b"".join(b64decode(user[f"client-{part}-data"]) + b"\n" for part in ("certificate", "key"))
        return cls(str(cluster["server"]), ca, "", pem)

    @property
    def trust(self) -> ssl.SSLContext:
        """A context that verifies the server, and says who we are where a certificate does."""
        context = ssl.create_default_context(cadata=self.ca)
        if self.certificate:
            with tempfile.NamedTemporaryFile() as file:
                file.write(self.certificate)
                file.flush()
                context.load_cert_chain(file.name)
        return context


def path_of(kind: str, namespace: str, name: str = "") -> str:
    """The path of an object of ours, or of all in a namespace."""
    return f"{GROUP_ROOT}/namespaces/{namespace}/{PLURALS[kind]}" + (f"/{name}" if name else "")


class KubeApi:
    """Requests straight to the API server, each over a connection of its own."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self._address = urlsplit(access.server).netloc
        self._trust = access.trust

    @property
    def headers(self) -> dict[str, str]:
        """What says who asks."""
        token = self.access.token
        return {"Accept": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}

    def connect(self, seconds: float = DEADLINE) -> http.client.HTTPSConnection:
        """A new connection to the server."""
        return http.client.HTTPSConnection(self._address, timeout=seconds, context=self._trust)

    def request(
        self, method: str, path: str, body: object = None, *, content_type: str = "application/json"
    ) -> dict[str, Any]:
        """The answer as JSON. Raises `ApiRefused`."""
        raw = self.raw(method, path, body, content_type=content_type)
        return cast("dict[str, Any]", json.loads(raw))

    def raw(self, method: str, path: str, body: object = None, *, content_type: str = "application/json") -> bytes:
        """The answer's body as it is. Raises `ApiRefused`."""
        connection = self.connect()
        try:
            return self.over(connection, method, path, body, content_type)
        finally:
            connection.close()

    def over(
        self, connection: http.client.HTTPSConnection, method: str, path: str, body: object, content_type: str
    ) -> bytes:
        """The answer's body, over a given connection. Raises `ApiRefused`."""
        headers, payload = self.headers, None
        if body is not None:
            payload = json.dumps(body).encode()
            headers["Content-Type"] = content_type
        connection.request(method, path, body=payload, headers=headers)
        answer = connection.getresponse()
        raw = answer.read()
        if answer.status >= 300:
            raise ApiRefused(answer.status, raw.decode(errors="replace")[:500])
        return raw

    def find(self, path: str) -> dict[str, Any] | None:
        """The object, or None."""
        try:
            return self.request("GET", path)
        except ApiRefused as error:
            if error.status == 404:
                return None
            raise

    def create_unless_there(self, collection: str, body: object) -> None:
        """A create for which an object of that name is as good."""
        try:
            self.request("POST", collection, body)
        except ApiRefused as error:
            if error.status != 409:
                raise

    def merge(self, path: str, patch: object) -> dict[str, Any]:
        """A merge patch."""
        return self.request("PATCH", path, patch, content_type="application/merge-patch+json")

    def lease(self) -> dict[str, Any]:
        """The spec of the operator's Lease; empty while there is none."""
        found = self.find(LEASE)
        return {} if found is None else cast("dict[str, Any]", found.get("spec") or {})


@cache
def api_of(kubeconfig: Path) -> KubeApi:
    """The API of a cluster whose admin a kubeconfig is."""
    return KubeApi(Access.read(kubeconfig))
