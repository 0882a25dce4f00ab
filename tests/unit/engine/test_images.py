"""References, credentials and the reasons of failed pulls."""

from __future__ import annotations

import pytest

from toolbox_dtma.engine.failures import DockerRefused, Failure
from toolbox_dtma.engine.images import Reference, matching_credentials, pull_failure, repository_digest
from toolbox_dtma.engine.models import Image
from toolbox_dtma.wire import InstanceReason, RegistryCredential

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "full", "floating"),
    [
        ("busybox", "docker.io/library/busybox:latest", True),
        ("busybox:1.36", "docker.io/library/busybox:1.36", False),
        ("org/app:latest", "docker.io/org/app:latest", True),
        ("index.docker.io/org/app:1", "docker.io/org/app:1", False),
        ("localhost/app", "localhost/app:latest", True),
        ("127.0.0.1:5000/app:1", "127.0.0.1:5000/app:1", False),
        ("registry.example.com/a/b/c", "registry.example.com/a/b/c:latest", True),
        (f"registry.example.com/app@{DIGEST}", f"registry.example.com/app@{DIGEST}", False),
        (f"registry.example.com/app:latest@{DIGEST}", f"registry.example.com/app@{DIGEST}", False),
        ("[::1]:5000/app:1", "[::1]:5000/app:1", False),
    ],
)
def test_a_reference_is_completed(text: str, full: str, floating: bool) -> None:
    reference = Reference.parse(text)
    assert (reference.full, reference.floating) == (full, floating)


@pytest.mark.parametrize(
    "text",
    ["UPPER/case:1", "app:", "app@sha256:short", "app:bad tag", "a//b", "-host/app", "app@", ":1", "/app", "a/b:x:y"],
)
def test_an_invalid_reference_is_refused_with_its_reason(text: str) -> None:
    with pytest.raises(Failure) as caught:
        Reference.parse(text)
    assert caught.value.reason is InstanceReason.IMAGE_INVALID


def credential(registry: str, username: str = "u") -> RegistryCredential:
    return RegistryCredential(registry=registry, username=username, password="secret")


def test_credentials_match_by_registry_the_most_specific_path_first() -> None:
    credentials = (
        credential("registry.example.com"),
        credential("other.example.com"),
        credential("https://registry.example.com/team/", "team"),
        credential("registry.example.com/tea", "wrong"),
    )
    found = matching_credentials(Reference.parse("registry.example.com/team/app:1"), credentials)
    assert [item.username for item in found] == ["team", "u"]


def test_the_hub_has_many_names() -> None:
    found = matching_credentials(Reference.parse("org/app:1"), (credential("https://index.docker.io/v1/"),))
    assert len(found) == 1


@pytest.mark.parametrize(
    ("status", "text", "reason"),
    [
        (
            404,
            "manifest for r.example/x:1 not found: manifest unknown: manifest unknown",
            InstanceReason.IMAGE_NOT_FOUND,
        ),
        (404, "repository r.example/x not found: name unknown", InstanceReason.IMAGE_NOT_FOUND),
        (500, 'Head "http://r.example/v2/x": no basic auth credentials', InstanceReason.REGISTRY_UNAUTHORIZED),
        (500, "unauthorized: authentication required", InstanceReason.REGISTRY_UNAUTHORIZED),
        (
            404,
            "pull access denied for x, repository does not exist or may require 'docker login'",
            InstanceReason.REGISTRY_UNAUTHORIZED,
        ),
        (500, "dial tcp 127.0.0.1:1: connect: connection refused", InstanceReason.IMAGE_PULL_FAILED),
        (500, "lookup nowhere.example: no such host", InstanceReason.IMAGE_PULL_FAILED),
        (500, "x509: certificate signed by unknown authority", InstanceReason.IMAGE_PULL_FAILED),
        (0, "no matching manifest for linux/arm64 in the manifest list entries", InstanceReason.IMAGE_PULL_FAILED),
        (0, "write /var/lib/docker/tmp/x: no space left on device", InstanceReason.DISK_FULL),
        (500, "toomanyrequests: rate limit", InstanceReason.IMAGE_PULL_FAILED),
        (400, "invalid reference format", InstanceReason.IMAGE_INVALID),
    ],
)
def test_a_failed_pull_has_a_reason(status: int, text: str, reason: InstanceReason) -> None:
    failure = pull_failure(Reference.parse("r.example/x:1"), DockerRefused(status, text), with_credentials=False)
    assert failure.reason is reason


def test_messages_are_bounded_and_carry_no_signed_links() -> None:
    text = "Get https://user:hunter2@cdn.example/blob?X-Signature-Token=abcdef: broken " + "x" * 2000
    failure = pull_failure(Reference.parse("r.example/x:1"), DockerRefused(500, text), with_credentials=True)
    assert len(failure.message) <= 512
    assert "hunter2" not in failure.message and "abcdef" not in failure.message


def test_the_digest_is_the_one_of_the_references_repository() -> None:
    image = Image(id="sha256:id", repo_digests=("other/app@sha256:1", "registry.example.com/app@sha256:2"))
    assert repository_digest(image, "registry.example.com/app:1") == "sha256:2"
    assert repository_digest(image, "registry.example.com/else:1") == "sha256:id"
