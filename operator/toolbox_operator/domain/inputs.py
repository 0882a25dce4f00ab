"""From a spec and the Secrets and ConfigMaps it refers to, to the instance a host is told to run."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, cast

from pydantic import ValidationError

from toolbox_dtma.wire import (
    DesiredInstance,
    Egress,
    EnvVar,
    Expose,
    InstanceState,
    Limits,
    NameFilter,
    RegistryCredential,
    Security,
    Sessions,
    Volume,
    VolumePolicy,
)
from toolbox_operator.api.conditions import Reason
from toolbox_operator.api.mcpserver import Expose as SpecExpose
from toolbox_operator.api.mcpserver import MCPServerSpec, ResolvedServer
from toolbox_operator.api.mcpserver import NameFilter as SpecNameFilter
from toolbox_operator.api.meta import Body, Key
from toolbox_operator.api.parse import ServerObject
from toolbox_operator.api.quantity import parse_cpu, parse_duration, parse_memory
from toolbox_operator.api.sessions import Sessions as SpecSessions
from toolbox_operator.domain.values import target

DEFAULT_MEMORY = "512Mi"
DEFAULT_CPU = "1"
DEFAULT_PIDS = 256
DEFAULT_PATH = "/mcp"
DEFAULT_SSE_PATH = "/sse"
DEFAULT_MAX_SESSIONS = 10
DEFAULT_IDLE_TIMEOUT = "30m"

_DOCKER_CONFIG = ".dockerconfigjson"
_LONGEST_VALUE = 32768


class Source(StrEnum):
    """Kinds of object a value can come from."""

    SECRET = "Secret"  # noqa: S105 - the name of a kind
    CONFIG_MAP = "ConfigMap"


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """An object whose values a spec needs."""

    source: Source
    name: str


@dataclass(frozen=True, slots=True)
class Unresolved:
    """A reference that does not lead to a usable value."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything resolved, and its hash. Values are secret."""

    env: tuple[EnvVar, ...] = field(repr=False)
    registries: tuple[RegistryCredential, ...] = field(repr=False)

    @property
    def hash(self) -> str:
        """SHA-256 (hex) that changes when any value does."""
        content = {
            "env": [[item.name, item.value] for item in self.env],
            "registries": [[item.registry, item.username, item.password] for item in self.registries],
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def refs_of(spec: MCPServerSpec) -> tuple[Ref, ...]:
    """The objects to read before the spec can be resolved, in its own namespace, each once."""
    found: dict[Ref, None] = {}
    for variable in spec.env:
        if variable.value_from is None:
            continue
        if secret := variable.value_from.secret_key_ref:
            found[Ref(Source.SECRET, secret.name)] = None
        if config := variable.value_from.config_map_key_ref:
            found[Ref(Source.CONFIG_MAP, config.name)] = None
    for pull in spec.image_pull_secrets:
        found[Ref(Source.SECRET, pull.name)] = None
    return tuple(found)


def resolve(spec: MCPServerSpec, found: Mapping[Ref, Body | None]) -> Inputs | Unresolved:
    """All values of a spec, or the first reference that has none. `found` holds every object of `refs_of`."""
    env: list[EnvVar] = []
    for index, variable in enumerate(spec.env):
        value: str | Unresolved
        if variable.value_from is None:
            value = variable.value or ""
        elif secret := variable.value_from.secret_key_ref:
            value = value_of(Ref(Source.SECRET, secret.name), secret.key, found.get(Ref(Source.SECRET, secret.name)))
        elif config := variable.value_from.config_map_key_ref:
            ref = Ref(Source.CONFIG_MAP, config.name)
            value = value_of(ref, config.key, found.get(ref))
        else:
            return Unresolved(Reason.SPEC_INVALID, f"spec.env[{index}].valueFrom: set a source")
        if isinstance(value, Unresolved):
            return value
        if "\0" in value or len(value) > _LONGEST_VALUE:
            return Unresolved(
                Reason.SECRET_INVALID,
                f"The value of {variable.name} cannot be an environment variable: it is longer than"
                f" {_LONGEST_VALUE} characters or holds a NUL.",
            )
        env.append(EnvVar(name=variable.name, value=value))
    registries: list[RegistryCredential] = []
    wanted = registry_of(spec.image)
    for pull in spec.image_pull_secrets:
        ref = Ref(Source.SECRET, pull.name)
        text = value_of(ref, _DOCKER_CONFIG, found.get(ref))
        if isinstance(text, Unresolved):
            return text
        credentials = _registry_credentials(ref, text, wanted)
        if isinstance(credentials, Unresolved):
            return credentials
        registries += credentials
    return Inputs(env=tuple(env), registries=tuple(registries[:16]))


def value_of(ref: Ref, key: str, body: Body | None) -> str | Unresolved:
    """One value of a Secret or ConfigMap, as text."""
    if body is None:
        missing = Reason.SECRET_NOT_FOUND if ref.source is Source.SECRET else Reason.CONFIG_MAP_NOT_FOUND
        return Unresolved(missing, f"The {ref.source} {ref.name} does not exist: create it in this namespace.")
    data = cast("Mapping[str, str]", body.get("data") or {})
    if key not in data:
        missing = Reason.SECRET_KEY_NOT_FOUND if ref.source is Source.SECRET else Reason.CONFIG_MAP_KEY_NOT_FOUND
        return Unresolved(missing, f"The {ref.source} {ref.name} has no key {key}: add it.")
    if ref.source is Source.CONFIG_MAP:
        return data[key]
    try:
        return base64.b64decode(data[key], validate=True).decode("utf-8")
    except ValueError:
        return Unresolved(Reason.SECRET_INVALID, f"The key {key} of the Secret {ref.name} is not UTF-8 text.")


def registry_of(image: str) -> str:
    """The registry's host (and port) of an image reference.

    >>> registry_of("127.0.0.1:5000/a/b:1"), registry_of("team/server"), registry_of("python:3.11")
    ('127.0.0.1:5000', 'docker.io', 'docker.io')
    """
    first, slash, _ = image.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else "docker.io"


def _registry_credentials(ref: Ref, text: str, wanted: str) -> list[RegistryCredential] | Unresolved:
    """The credentials for one registry in a Docker configuration; others stay in the cluster."""
    unusable = Unresolved(
        Reason.SECRET_INVALID,
        f"The Secret {ref.name} is not a Docker configuration: create it with `kubectl create secret docker-registry`.",
    )
    try:
        auths: Any = json.loads(text)["auths"]
        found: list[RegistryCredential] = []
        for address, entry in cast("Mapping[str, Any]", auths).items():
            if _host(address) != wanted:
                continue
            username, password = entry.get("username"), entry.get("password")
            if entry.get("auth"):
                decoded = base64.b64decode(entry["auth"], validate=True).decode("utf-8")
                username, _, password = decoded.partition(":")
            found.append(RegistryCredential(registry=wanted, username=username, password=password))
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError):
        return unusable
    return found


def _host(address: str) -> str:
    bare = address.removeprefix("https://").removeprefix("http://").partition("/")[0]
    return "docker.io" if bare in ("index.docker.io", "registry-1.docker.io") else bare


def default_path(transport: str) -> str:
    """The path of a server that listens and names none."""
    return DEFAULT_SSE_PATH if transport == "sse" else DEFAULT_PATH


def resolved_server(server: ServerObject, spec: MCPServerSpec) -> ResolvedServer:
    """The spec with every default filled in."""
    limits, stdio = spec.resources.limits, spec.transport == "stdio"
    sessions = spec.sessions or SpecSessions()
    return ResolvedServer(
        toolbox=str(target(spec.toolbox_ref, server.key.namespace)),
        image=spec.image,
        transport=spec.transport,
        port=None if stdio else spec.port,
        path=None if stdio else spec.path or default_path(spec.transport),
        max_sessions=sessions.max_sessions or DEFAULT_MAX_SESSIONS if stdio else None,
        idle_timeout=sessions.idle_timeout or DEFAULT_IDLE_TIMEOUT if stdio else None,
        memory=limits.memory or DEFAULT_MEMORY,
        cpu=limits.cpu or DEFAULT_CPU,
        pids=limits.pids or DEFAULT_PIDS,
    )


def wire_expose(expose: SpecExpose) -> Expose:
    """A spec's `expose` as hosts read it."""
    return Expose(
        tools=_wire_filter(expose.tools),
        resources=_wire_filter(expose.resources),
        prompts=_wire_filter(expose.prompts),
        approved_hash=expose.tools.approved_hash,
    )


def _wire_filter(names: SpecNameFilter) -> NameFilter:
    return NameFilter(allow=names.allow, deny=names.deny)


def _wire_sessions(resolved: ResolvedServer) -> Sessions | None:
    if resolved.max_sessions is None or resolved.idle_timeout is None:
        return None
    return Sessions(max_sessions=resolved.max_sessions, idle_seconds=parse_duration(resolved.idle_timeout))


def volume_policy(spec: MCPServerSpec) -> VolumePolicy:
    """A spec's `volumePolicy` as hosts read it."""
    return VolumePolicy(spec.volume_policy.value)


def desired_instance(server: ServerObject, spec: MCPServerSpec, inputs: Inputs) -> DesiredInstance:
    """What the host is told. `spec` has passed every rule."""
    resolved = resolved_server(server, spec)
    return DesiredInstance(
        uid=server.uid,
        namespace=server.key.namespace,
        name=server.key.name,
        generation=server.generation,
        inputs_hash=inputs.hash,
        image=resolved.image,
        registry_credentials=inputs.registries,
        transport=spec.transport,
        port=resolved.port,
        path=resolved.path,
        sessions=_wire_sessions(resolved),
        command=spec.command,
        args=spec.args,
        env=inputs.env,
        limits=Limits(
            memory_bytes=parse_memory(resolved.memory), cpu_millis=parse_cpu(resolved.cpu), pids=resolved.pids
        ),
        security=Security(
            read_only_root_filesystem=spec.security.read_only_root_filesystem,
            run_as_user=spec.security.run_as_user,
            egress=Egress(spec.security.egress.value),
        ),
        state=InstanceState(spec.state.value),
        expose=wire_expose(spec.expose),
        volumes=tuple(
            Volume(name=volume.name, mount_path=volume.mount_path, read_only=volume.read_only)
            for volume in spec.volumes
        ),
        volume_policy=volume_policy(spec),
    )


def toolbox_key(resolved: ResolvedServer) -> Key:
    """The Toolbox a server was accepted on."""
    namespace, _, name = resolved.toolbox.partition("/")
    return Key(namespace, name)
