"""What the gateway reads at start: gateway.json, written by `toolbox-dtma init`."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel


class SettingsInvalid(Exception):
    """The settings file cannot be used; the message says what to change in it."""


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
    """How long running calls may go on after SIGTERM."""

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
