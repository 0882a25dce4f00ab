"""What the CRD tests ask of an API server, in one form for both servers they run on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

from localstack.kubernetes import Cluster
from localstack.progress import SetupError
from toolbox_operator.api.crd import DEFINITIONS
from toolbox_operator.api.meta import API_VERSION, Kind

PLURALS: dict[Kind, str] = {definition.kind: definition.plural for definition in DEFINITIONS}


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether the server took an object, its message if not, the stored object if it did."""

    accepted: bool
    message: str
    body: dict[str, Any]


class Api(Protocol):
    """An API server that serves our CRDs."""

    @property
    def strict(self) -> bool:
        """Whether unknown fields are refused instead of dropped."""
        ...

    def create(self, path: str, body: dict[str, Any], *, dry_run: bool = False) -> Answer:
        """POST an object."""
        ...

    def replace(self, path: str, body: dict[str, Any]) -> Answer:
        """PUT an object or its status."""
        ...

    def delete(self, path: str) -> None:
        """Delete an object; absent is fine."""
        ...


def collection(kind: Kind, namespace: str) -> str:
    """URL path of a kind's objects in a namespace."""
    return f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURALS[kind]}"


@dataclass(frozen=True, slots=True)
class ClusterApi:
    """The API server of the local stack (or an opted-in cluster), through kubectl's own credentials."""

    cluster: Cluster

    @property
    def strict(self) -> bool:
        """Whether unknown fields are refused: strict field validation came with 1.25, as CEL did."""
        return self.cluster.has_cel

    def create(self, path: str, body: dict[str, Any], *, dry_run: bool = False) -> Answer:
        """POST an object."""
        return self._send("create", f"{path}?{self._query(dry_run)}", body)

    def replace(self, path: str, body: dict[str, Any]) -> Answer:
        """PUT an object or its status."""
        return self._send("replace", f"{path}?{self._query(False)}", body)

    def delete(self, path: str) -> None:
        """Delete an object; absent is fine."""
        try:
            self.cluster.kubectl("delete", "--raw", path)
        except SetupError as error:
            if "NotFound" not in str(error):
                raise

    def _query(self, dry_run: bool) -> str:
        return "fieldValidation=Strict&dryRun=All" if dry_run else "fieldValidation=Strict"

    def _send(self, verb: str, path: str, body: dict[str, Any]) -> Answer:
        try:
            text = self.cluster.kubectl(verb, "--raw", path, "-f", "-", stdin=json.dumps(body))
        except SetupError as error:
            return Answer(False, str(error), {})
        return Answer(True, "", json.loads(text))
