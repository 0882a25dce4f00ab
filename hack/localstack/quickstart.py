"""`examples/quickstart` as it is applied here: the host's own Toolbox, and images from the local registry."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from localstack.images import QUICKSTART_PREFIX
from localstack.kubernetes import REPOSITORY, Cluster, Manifest, load_manifests
from localstack.progress import SetupError

FOLDER = REPOSITORY / "examples" / "quickstart"


@dataclass(frozen=True, slots=True)
class Target:
    """An object's kind, namespace and name."""

    kind: str
    namespace: str
    name: str

    @property
    def resource(self) -> str:
        """As kubectl takes it."""
        return f"{self.kind.lower()}.magictoolbox.dev/{self.name}"


def localized(
    documents: Sequence[Manifest], toolbox: Sequence[Manifest], image: Callable[[str], str]
) -> list[Manifest]:
    """The quickstart's objects with its Toolbox replaced by what the host printed, and its images by local ones."""
    result: list[Manifest] = []
    for document in documents:
        if document["kind"] == "Toolbox":
            result += toolbox
        elif document["kind"] == "MCPServer":
            spec = cast("dict[str, Any]", document["spec"])
            name = _image_name(str(spec["image"]))
            result.append({**document, "spec": {**spec, "image": image(name)}})
        else:
            result.append(document)
    return result


def _image_name(image: str) -> str:
    if not image.startswith(QUICKSTART_PREFIX):
        raise SetupError(f"{image}: the quickstart's images begin with {QUICKSTART_PREFIX}")
    return image.removeprefix(QUICKSTART_PREFIX).split(":", 1)[0]


def load(toolbox: Sequence[Manifest], image: Callable[[str], str]) -> list[Manifest]:
    """The objects to apply, in order."""
    return localized(load_manifests(FOLDER), toolbox, image)


def targets(documents: Sequence[Manifest], kind: str) -> list[Target]:
    """The objects of one kind."""
    return [
        Target(kind, document["metadata"]["namespace"], document["metadata"]["name"])
        for document in documents
        if document["kind"] == kind
    ]


def wait_ready(cluster: Cluster, target: Target, seconds: int) -> Manifest:
    """The object once it is Ready; otherwise an error with its conditions."""
    try:
        flags = ("--for=condition=Ready", f"--timeout={seconds}s")
        cluster.kubectl("wait", target.resource, "-n", target.namespace, *flags, seconds=seconds + 15.0)
    except SetupError as error:
        found = cluster.get(target.resource, "-n", target.namespace)
        lines = [
            f"{condition['type']}={condition['status']} {condition.get('reason', '')}: {condition.get('message', '')}"
            for condition in found.get("status", {}).get("conditions", [])
        ]
        shown = "\n  ".join(lines) or "no conditions: the operator has not written any"
        raise SetupError(f"{target.kind} {target.name} is not Ready after {seconds}s:\n  {shown}") from error
    return cluster.get(target.resource, "-n", target.namespace)


def read_secret(cluster: Cluster, namespace: str, name: str) -> dict[str, str]:
    """A Secret's data, decoded."""
    return decoded(cluster.get("secret", name, "-n", namespace))


def decoded(secret: Mapping[str, Any]) -> dict[str, str]:
    """The data of a Secret."""
    data = cast("dict[str, str]", secret["data"])
    return {key: base64.b64decode(value).decode() for key, value in data.items()}
