"""What can go wrong between a desired instance and a running container, as a reason and a sentence."""

from __future__ import annotations

import re

from toolbox_dtma.wire import InstanceReason

MESSAGE_LIMIT = 512


def bounded(message: str) -> str:
    """One line of at most 512 printable characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    return line if len(line) <= MESSAGE_LIMIT else line[: MESSAGE_LIMIT - 1] + "…"


class Failure(Exception):
    """Convergence stopped at something worth reporting; it is retried with back-off."""

    def __init__(self, reason: InstanceReason, message: str) -> None:
        self.reason = reason
        self.message = bounded(message)
        super().__init__(f"{reason}: {self.message}")


class DockerRefused(Exception):
    """The engine answered with an error. `status` is its HTTP status, 0 when it failed inside a stream."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.message = bounded(message)
        super().__init__(f"[{status}] {self.message}")


_NO_SPACE = re.compile(r"no space left on device|disk quota exceeded", re.I)
_NETWORK = re.compile(
    r"failed to (create|set up) (endpoint|container networking)|network \S+ not found|could not find an available|"
    r"address already in use|pool overlaps|no available ip|failed programming external connectivity|iptables",
    re.I,
)


def disk_full(message: str) -> Failure | None:
    """The failure for an error text that says the disk is full."""
    if _NO_SPACE.search(message):
        return Failure(
            InstanceReason.DISK_FULL, "The host's disk is full; free space on it, for example unused images."
        )
    return None


def create_failure(refused: DockerRefused) -> Failure:
    """Classify a refused `create`."""
    if full := disk_full(refused.message):
        return full
    if "invalid reference format" in refused.message:
        return Failure(InstanceReason.IMAGE_INVALID, "The image is not a valid image reference.")
    if _NETWORK.search(refused.message):
        return Failure(InstanceReason.NETWORK_FAILED, f"The container's network failed: {refused.message}")
    return Failure(InstanceReason.CREATE_FAILED, f"Docker refused to create the container: {refused.message}")


_EXECUTABLE = re.compile(r'exec: "?(?P<what>[^":]+)"?: (?P<why>[^:]+)')


def start_failure(refused: DockerRefused) -> Failure:
    """Classify a refused `start`."""
    if full := disk_full(refused.message):
        return full
    if _NETWORK.search(refused.message):
        return Failure(InstanceReason.NETWORK_FAILED, f"The container's network failed: {refused.message}")
    if blocked := _mount_point_taken(refused.message):
        return blocked
    if found := _EXECUTABLE.search(refused.message):
        return cannot_execute(found["what"], found["why"])
    return Failure(InstanceReason.START_FAILED, f"Docker could not start the container: {refused.message}")


def cannot_execute(command: str, why: str) -> Failure:
    """The image has no such program, or it cannot be executed."""
    return Failure(
        InstanceReason.START_FAILED,
        f"The command {command[:200]!r} cannot be executed in this image: {why.strip()}. "
        "Check spec.command and spec.image.",
    )


def network_failure(refused: DockerRefused) -> Failure:
    """Classify a refused network call."""
    return disk_full(refused.message) or Failure(
        InstanceReason.NETWORK_FAILED, f"Docker refused the container's network: {refused.message}"
    )


_ON_A_FILE = re.compile(r"mount\b.*\bnot a directory", re.I)


def _mount_point_taken(message: str) -> Failure | None:
    if _ON_A_FILE.search(message):
        return Failure(
            InstanceReason.VOLUME_FAILED,
            "The image has something else than a directory where a volume is to be mounted: choose another mountPath "
            "in spec.volumes.",
        )
    return None


def volume_failure(refused: DockerRefused) -> Failure:
    """Classify a refused call about volumes."""
    return (
        disk_full(refused.message)
        or _mount_point_taken(refused.message)
        or Failure(InstanceReason.VOLUME_FAILED, f"Docker refused the container's volumes: {refused.message}")
    )
