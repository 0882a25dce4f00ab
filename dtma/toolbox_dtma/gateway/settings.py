"""What the gateway reads at start: gateway.json, written by `toolbox-dtma init`."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel


class SettingsInvalid(Exception):
    """The settings file cannot be used; the message says what to change in it."""


class ClientBounds(BaseModel):
    """What clients may take of the gateway. Numbers of connections are shared out among the workers."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    connections: Annotated[int, Field(ge=16, le=1_000_000)] = 8192
    """Open connections of all clients together."""
    connections_per_source: Annotated[int, Field(ge=8, le=1_000_000)] = 2048
    """Of one address (IPv6: one /64). Where everybody comes through one proxy, as many as `connections`."""
    handshake_seconds: Annotated[float, Field(gt=0, le=300)] = 10.0
    """From accept to the end of the TLS handshake."""
    head_seconds: Annotated[float, Field(gt=0, le=300)] = 10.0
    """For the head of a request: the first one from the handshake on, later ones from their first byte on."""
    head_bytes: Annotated[int, Field(ge=4096, le=1024 * 1024)] = 64 * 1024
    """Of a request's head; a single line of it may have 8190."""
    headers: Annotated[int, Field(ge=16, le=1024)] = 128
    idle_seconds: Annotated[float, Field(gt=0, le=3600)] = 75.0
    """Between the requests of a connection."""
    stall_seconds: Annotated[float, Field(gt=0, le=3600)] = 120.0
    """How long a client may leave a full buffer of ours as it is, before its connection is cut."""


class GatewaySettings(BaseModel):
    """Settings of one gateway. Policy is not among them: DTMA pushes it over `socket`."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    listen_host: str = "0.0.0.0"
    listen_port: Annotated[int, Field(ge=0, le=65535)] = 30443
    tls_certificate: Path | None = None
    """PEM chain. Without it the gateway speaks plain HTTP, which is refused on any address but loopback."""
    tls_key: Path | None = None
    socket: Path
    """DTMA's gateway.sock."""
    workers: Annotated[int, Field(ge=1, le=64)] = 2
    pid_dir: Path | None = None
    """Folder for `gateway.pid`; no file is written without it."""
    policy_grace_seconds: Annotated[float, Field(gt=0, le=30)] = 30.0
    """How long the last snapshot serves after the socket was lost. DTMA counts on at most 30 s."""
    drain_seconds: Annotated[float, Field(ge=0, le=300)] = 10.0
    """How long running calls may go on after SIGTERM, or in a worker that is replaced."""
    clients: ClientBounds = ClientBounds()

    @model_validator(mode="after")
    def _plain_http_stays_local(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("set both tlsCertificate and tlsKey, or neither")
        if self.tls_certificate is None and not _is_loopback(self.listen_host):
            raise ValueError("set tlsCertificate and tlsKey: plain HTTP is allowed on a loopback listenHost only")
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load_settings(path: Path) -> GatewaySettings:
    """Read gateway.json. Raises `SettingsInvalid`."""
    try:
        return GatewaySettings.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SettingsInvalid(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SettingsInvalid(f"{path}: {where + ': ' if where else ''}{first['msg']}") from error
