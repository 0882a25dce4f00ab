"""What the manifests say about a pod: the rules of the `restricted` standard, and the same pod as a Docker command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from localstack.kubernetes import Manifest

_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def pod_of(workload: Manifest) -> dict[str, Any]:
    """The pod's spec of a Deployment or StatefulSet."""
    spec: dict[str, Any] = workload["spec"]["template"]["spec"]
    return spec


def named(objects: Sequence[Manifest], kind: str, name: str) -> Manifest:
    """The one object of this kind and name."""
    (found,) = [each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def breaks_restricted(pod: Mapping[str, Any]) -> list[str]:
    """What of a pod the Pod Security Standard `restricted` refuses; none of ours uses init containers."""
    found = [f"{key} is set" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    found += [f"volume {each['name']}" for each in pod.get("volumes", []) if each.keys() - {"name"} - _VOLUMES]
    shared: Mapping[str, Any] = pod.get("securityContext", {})
    if shared.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        found.append("no seccomp profile")
    for container in pod["containers"]:
        own: Mapping[str, Any] = container.get("securityContext", {})
        user = own.get("runAsUser", shared.get("runAsUser"))
        rules = {
            "may be root": own.get("runAsNonRoot", shared.get("runAsNonRoot")) is True and user not in (None, 0),
            "may gain privileges": own.get("allowPrivilegeEscalation") is False,
            "keeps capabilities": own.get("capabilities") == {"drop": ["ALL"]},
            "is privileged": not own.get("privileged"),
            "opens ports of the node": not any("hostPort" in port for port in container.get("ports", [])),
            # Not in the standard, but in ours.
            "may write to its image": own.get("readOnlyRootFilesystem") is True,
            "has no bounds": {"cpu", "memory"} <= container.get("resources", {}).get("limits", {}).keys(),
        }
        found += [f"container {container['name']} {problem}" for problem, holds in rules.items() if not holds]
    return found


def values(container: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, str]:
    """The environment of a container; what comes from elsewhere is taken from `known`, by the variable's name."""
    return {
        each["name"]: known[each["name"]] if "valueFrom" in each else each["value"]
        for each in container.get("env", [])
        if "valueFrom" not in each or each["name"] in known
    }


def arguments(container: Mapping[str, Any], environment: Mapping[str, str]) -> list[str]:
    """The arguments with `$(NAME)` replaced, as a kubelet does it."""
    found: list[str] = []
    for argument in container.get("args", []):
        text = str(argument)
        for name, value in environment.items():
            text = text.replace(f"$({name})", value)
        found.append(text)
    return found


def docker_flags(pod: Mapping[str, Any]) -> list[str]:
    """`docker run` flags for the pod's only container: user, rights, root file system, memory, scratch folders."""
    (container,) = pod["containers"]
    shared, own = pod["securityContext"], container["securityContext"]
    flags = [f"--user={shared['runAsUser']}:{shared['runAsGroup']}"]
    if own["readOnlyRootFilesystem"]:
        flags.append("--read-only")
    flags += [f"--cap-drop={capability}" for capability in own["capabilities"].get("drop", [])]
    if own["allowPrivilegeEscalation"] is False:
        flags.append("--security-opt=no-new-privileges")
    flags.append(f"--memory={container['resources']['limits']['memory'].removesuffix('i').lower()}")
    scratch = {volume["name"] for volume in pod.get("volumes", []) if "emptyDir" in volume}
    for mount in container.get("volumeMounts", []):
        if mount["name"] in scratch:
            owner = f"uid={shared['runAsUser']},gid={shared['runAsGroup']},mode=0770"
            flags.append(f"--tmpfs={mount['mountPath']}:{owner}")
    return flags
