"""Images: references, credentials, pulls, and why a pull failed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

from toolbox_dtma.engine.client import DockerClient, EngineSilent
from toolbox_dtma.engine.failures import DockerRefused, Failure, disk_full
from toolbox_dtma.engine.models import Image, PullProgress
from toolbox_dtma.wire import InstanceReason, RegistryCredential

DOCKER_HUB = "docker.io"
_HUB_ALIASES = frozenset({"index.docker.io", "registry-1.docker.io", "registry.hub.docker.com", DOCKER_HUB})
_CONCURRENT_PULLS = 3

_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9a-fA-F:]+\])"
    r"(?::[0-9]+)?"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed image reference: `registry/repository[:tag][@digest]`."""

    registry: str
    repository: str
    tag: str | None
    digest: str | None

    @staticmethod
    def parse(text: str) -> Reference:
        """Parse what an admin wrote. Raises `Failure` with `IMAGE_INVALID`."""
        rest, _, digest = text.partition("@")
        head, slash, last = rest.rpartition("/")
        last, _, tag = last.partition(":")
        path = f"{head}{slash}{last}"
        first, _, remainder = path.partition("/")
        if remainder and ("." in first or ":" in first or first == "localhost"):
            registry, repository = first, remainder
        else:
            registry, repository = DOCKER_HUB, path if remainder else f"library/{path}"
        valid = (
            _HOST.fullmatch(registry)
            and _REPOSITORY.fullmatch(repository)
            and len(repository) <= 255
            and ("@" not in text or _DIGEST.fullmatch(digest))
            and (":" not in rest.rpartition("/")[2] or _TAG.fullmatch(tag))
        )
        if not valid:
            raise Failure(
                InstanceReason.IMAGE_INVALID,
                f"{text[:200]!r} is not a valid image reference; expected registry/name:tag in lower case.",
            )
        if registry in _HUB_ALIASES:
            registry = DOCKER_HUB
        return Reference(registry, repository, tag or None, digest or None)

    @property
    def floating(self) -> bool:
        """Whether the same reference is expected to mean another image tomorrow."""
        return self.digest is None and self.tag in (None, "latest")

    @property
    def full(self) -> str:
        """The reference with nothing left to defaults: without a tag Docker would pull every tag."""
        name = f"{self.registry}/{self.repository}"
        if self.digest:
            return f"{name}@{self.digest}"
        return f"{name}:{self.tag or 'latest'}"

    @property
    def familiar(self) -> str:
        """Repository as Docker writes it in digests: the hub and its library are left out."""
        if self.registry != DOCKER_HUB:
            return f"{self.registry}/{self.repository}"
        return self.repository.removeprefix("library/")


def matching_credentials(
    reference: Reference, credentials: Sequence[RegistryCredential]
) -> tuple[RegistryCredential, ...]:
    """Credentials for the reference's registry, the most specific path first; a path matches whole segments."""
    scored: list[tuple[int, RegistryCredential]] = []
    for credential in credentials:
        host, _, path = re.sub(r"^https?://", "", credential.registry).strip("/").partition("/")
        if host in _HUB_ALIASES:
            host, path = DOCKER_HUB, path.removeprefix("v1").removeprefix("v2").strip("/")
        inside = not path or reference.repository == path or reference.repository.startswith(f"{path}/")
        if host == reference.registry and inside:
            scored.append((len(path), credential))
    return tuple(credential for _, credential in sorted(scored, key=lambda item: -item[0]))


_NOT_FOUND = re.compile(r"manifest unknown|name unknown|not found|no such image|repository name not known", re.I)
_UNAUTHORIZED = re.compile(
    r"no basic auth credentials|unauthorized|authentication required|access denied|denied:|"
    r"incorrect username or password|\b40[13]\b|forbidden",
    re.I,
)
_UNREACHABLE = re.compile(
    r"connection refused|no such host|i/o timeout|no route to host|network is unreachable|timeout exceeded|"
    r"connection reset|context deadline exceeded|\bEOF\b",
    re.I,
)
_SECRET = re.compile(r"(://)[^/\s@]+@|([?&][^=\s]*(?:token|sig|secret|key)[^=\s]*=)[^&\s\"]+", re.I)


def pull_failure(reference: Reference, refused: DockerRefused, *, with_credentials: bool) -> Failure:
    """Classify why an image could not be pulled; the message says what to change."""
    text = _SECRET.sub(r"\1\2…", refused.message)
    name, registry = reference.full, reference.registry
    if full := disk_full(text):
        return full
    if "invalid reference format" in text:
        return Failure(InstanceReason.IMAGE_INVALID, f"{name} is not a valid image reference.")
    if "no matching manifest" in text:
        return Failure(InstanceReason.IMAGE_PULL_FAILED, f"{name} has no image for this host's platform: {text}")
    if _UNREACHABLE.search(text):
        return Failure(InstanceReason.IMAGE_PULL_FAILED, f"The registry {registry} could not be reached: {text}")
    if _UNAUTHORIZED.search(text):
        cure = (
            "its credentials were refused; check spec.imagePullSecrets."
            if with_credentials
            else "it asks for credentials, or the image does not exist; name them in spec.imagePullSecrets."
        )
        return Failure(InstanceReason.REGISTRY_UNAUTHORIZED, f"The registry {registry} refused {name}: {cure}")
    if refused.status == 404 or _NOT_FOUND.search(text):
        return Failure(InstanceReason.IMAGE_NOT_FOUND, f"{name} does not exist in its registry; check spec.image.")
    return Failure(InstanceReason.IMAGE_PULL_FAILED, f"{name} could not be pulled: {text}")


class Images:
    """Brings images to the engine; at most three pulls at once."""

    def __init__(self, client: DockerClient) -> None:
        self._client = client
        self._slots = asyncio.Semaphore(_CONCURRENT_PULLS)
        self._digests: dict[tuple[str, str], str] = {}

    async def local(self, reference: Reference) -> Image | None:
        """The image if the engine has it."""
        return await self._client.image(reference.full)

    async def pull(self, reference: Reference, credentials: Sequence[RegistryCredential]) -> Image:
        """Pull with each matching credential in turn, or anonymously. Raises `Failure`."""
        matching = matching_credentials(reference, credentials)
        async with self._slots:
            for index, credential in enumerate(matching or (None,)):
                try:
                    await self._pull_once(reference, credential)
                    break
                except Failure as failure:
                    last = index + 1 >= len(matching)
                    if last or failure.reason is not InstanceReason.REGISTRY_UNAUTHORIZED:
                        raise
        # An image may have got its first repository digest by this.
        self._digests.clear()
        image = await self.local(reference)
        if image is None:
            raise Failure(
                InstanceReason.IMAGE_PULL_FAILED, f"{reference.full} was pulled, but is not there: removed at once?"
            )
        return image

    async def _pull_once(self, reference: Reference, credential: RegistryCredential | None) -> None:
        auth = None
        if credential is not None:
            auth = {"username": credential.username, "password": credential.password}
            auth["serveraddress"] = reference.registry
        try:
            async with self._client.pull(reference.full, auth) as lines:
                async for line in lines:
                    error = PullProgress.model_validate_json(line).error
                    if error is not None:
                        raise DockerRefused(0, error)
        except DockerRefused as refused:
            raise pull_failure(reference, refused, with_credentials=credential is not None) from refused
        except EngineSilent as silent:
            await self._client.version()
            # The engine answers, so it was the registry that did not.
            raise Failure(
                InstanceReason.IMAGE_PULL_FAILED, f"The registry {reference.registry} sent nothing for too long."
            ) from silent

    async def digest(self, image_id: str, reference_text: str) -> str:
        """Repository digest of a local image for this reference, else the image id."""
        known = self._digests.get((image_id, reference_text))
        if known is not None:
            return known
        image = await self._client.image(image_id)
        digest = repository_digest(image, reference_text) if image else image_id
        if len(self._digests) > 4096:
            self._digests.clear()
        self._digests[image_id, reference_text] = digest
        return digest


def repository_digest(image: Image, reference_text: str) -> str:
    """`sha256:…` under which the reference's repository knows the image, else the image id."""
    try:
        familiar = Reference.parse(reference_text).familiar
    except Failure:
        return image.id
    for entry in image.repo_digests:
        name, _, digest = entry.partition("@")
        if name == familiar and digest:
            return digest
    return image.id
