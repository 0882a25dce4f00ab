"""A second host on this machine's engine, whose Toolbox is the tests' to apply, break and delete."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localstack.host import Host, Settings
from localstack.kubernetes import Manifest
from localstack.processes import Supervisor
from support import manifests
from toolbox_dtma.engine.names import LABEL_HOST


@dataclass(frozen=True, slots=True)
class SpareHost:
    """A running host that no Toolbox uses."""

    host: Host
    token: str
    ca: str

    @property
    def endpoint(self) -> str:
        """URL of its management API."""
        return f"https://127.0.0.1:{self.host.management_port}"

    @property
    def label(self) -> str:
        """As `docker --filter` takes it."""
        return f"label={LABEL_HOST}={self.host.host_id}"

    def secret(self, namespace: str, name: str, **data: str) -> Manifest:
        """A Secret with its token and CA, or with what is given."""
        content = data or {"token": self.token, "ca.crt": self.ca}
        metadata = {"name": name, "namespace": namespace}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": content}

    def toolbox(self, namespace: str, name: str, *, secret: str = "spare", **spec: Any) -> Manifest:
        """Its Toolbox, with the Secret of `secret`, unless `spec` says otherwise."""
        right = {
            "endpoint": self.endpoint,
            "gatewayURL": f"https://127.0.0.1:{self.host.gateway_port}",
            "authSecretRef": {"name": secret, "key": "token"},
            "caSecretRef": {"name": secret, "key": "ca.crt"},
            "gatewayCASecretRef": {"name": secret, "key": "ca.crt"},
            "leaseDuration": "20s",
        }
        return manifests.manifest("Toolbox", namespace, name, {**right, **spec})


def start(supervisor: Supervisor, folder: Path) -> SpareHost:
    """Init, DTMA and gateway; the supervisor ends them, the janitor removes what they made."""
    host = Host(supervisor, folder, Settings(name=f"spare-{secrets.token_hex(3)}"))
    host.start()
    found: dict[str, str] = {}
    for document in host.manifests:
        if document["kind"] == "Secret":
            found |= document["stringData"]
    return SpareHost(host, found["token"], found["ca.crt"])
