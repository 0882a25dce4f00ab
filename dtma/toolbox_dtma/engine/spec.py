"""From a desired instance to a container: the create request, and the hash that says whether it changed."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any

from toolbox_dtma.engine.api import Wanted
from toolbox_dtma.engine.egress import name_resolution
from toolbox_dtma.engine.names import LABEL_GENERATION, LABEL_OWNER, LABEL_SPEC_HASH, LABEL_UID, HostNames
from toolbox_dtma.engine.volumes import mounts
from toolbox_dtma.wire import DesiredInstance

CURRENT_VERSION = "v1"

_SHAPING_V1 = {"image", "command", "args", "env", "limits", "security", "restart_token", "volumes"}
"""Fields that shape a container. Not here: port and path (told to the gateway), expose, state, credentials."""


def _payload_v1(desired: DesiredInstance) -> bytes:
    # The order of volumes has no meaning, and the API server does not keep it.
    ordered = desired.model_copy(update={"volumes": tuple(sorted(desired.volumes, key=lambda volume: volume.name))})
    shaping = ordered.model_dump(mode="json", include=_SHAPING_V1, exclude_defaults=True)
    return json.dumps(shaping, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


_PAYLOADS: Mapping[str, Callable[[DesiredInstance], bytes]] = {"v1": _payload_v1}
"""One entry per version ever released. A container made by an older one is compared in its own version."""


def spec_hash(desired: DesiredInstance, key: bytes, version: str = CURRENT_VERSION) -> str:
    """`v1:` and an HMAC over the fields that shape a container and are not default.

    The key is local to the host, so that the label doesn't give away environment values.
    """
    digest = hmac.new(key, _PAYLOADS[version](desired), hashlib.sha256).hexdigest()
    return f"{version}:{digest}"


def same_spec(labels: Mapping[str, str], desired: DesiredInstance, key: bytes) -> bool:
    """Whether the container with these labels was made for this spec.

    A hash version this release doesn't know (DTMA was downgraded) is compared by object and generation.
    """
    recorded = labels.get(LABEL_SPEC_HASH, "")
    version = recorded.partition(":")[0]
    if version in _PAYLOADS:
        return hmac.compare_digest(recorded, spec_hash(desired, key, version))
    return labels.get(LABEL_UID) == desired.uid and labels.get(LABEL_GENERATION) == str(desired.generation)


TMPFS_BYTES = 64 * 1024 * 1024


def container_config(
    names: HostNames, instance_id: str, owner: str, desired: DesiredInstance, key: bytes, network: str, address: str
) -> dict[str, Any]:
    """The whole create request: nothing of the host is passed through, nothing is published."""
    limits, security = desired.limits, desired.security
    config: dict[str, Any] = {
        "Image": desired.image,
        "Hostname": desired.name,
        "Env": [f"{item.name}={item.value}" for item in desired.env],
        "Labels": names.labels(instance_id)
        | {
            LABEL_OWNER: owner,
            LABEL_SPEC_HASH: spec_hash(desired, key),
            LABEL_UID: desired.uid,
            LABEL_GENERATION: str(desired.generation),
        },
        "Tty": False,
        "OpenStdin": False,
        # The gateway's probe says whether the server works; an image's own check would only burn CPU.
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "NetworkMode": network,
            "Init": True,
            "RestartPolicy": {"Name": "no"},
            "Privileged": False,
            "PublishAllPorts": False,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": security.read_only_root_filesystem,
            "Tmpfs": {"/tmp": f"rw,noexec,nosuid,nodev,mode=1777,size={TMPFS_BYTES}"},
            "IpcMode": "private",
            "Memory": limits.memory_bytes,
            # Equal to Memory: no swap beside it.
            "MemorySwap": limits.memory_bytes,
            "NanoCpus": limits.cpu_millis * 1_000_000,
            "PidsLimit": limits.pids,
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}},
        }
        | name_resolution(security.egress),
        "NetworkingConfig": {"EndpointsConfig": {network: {"IPAMConfig": {"IPv4Address": address}}}},
    }
    if desired.command:
        config["Entrypoint"] = list(desired.command)
    if desired.args:
        config["Cmd"] = list(desired.args)
    if desired.volumes:
        holder = Wanted(instance_id, owner, desired).holder
        config["HostConfig"]["Mounts"] = mounts(names, holder, desired.volumes)
    if security.run_as_user is not None:
        config["User"] = str(security.run_as_user)
    return config
