"""The Secret of a connection: made, repaired, rotated; a foreign one is never touched."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace

from toolbox_operator.api.conditions import Reason
from toolbox_operator.api.connection import AgentMCPConnectionSpec
from toolbox_operator.api.meta import Body, Key
from toolbox_operator.domain.connection import ConnectionObserved, secret_of
from toolbox_operator.domain.credential import (
    Target,
    Tokens,
    advance,
    new_token,
    owned,
    read_tokens,
    secret_body,
    secret_patch,
)
from toolbox_operator.domain.inputs import Ref, Source, Unresolved, value_of
from toolbox_operator.domain.toolbox import is_ca, no_ca
from toolbox_operator.kube.api import SECRETS, AlreadyExists, Conflict
from toolbox_operator.reconcile.context import Context

_TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True)
class Foreign:
    """A Secret of that name exists and is not ours."""


@dataclass(frozen=True, slots=True)
class NoCa:
    """The gateway's CA cannot be read, so the Secret stays as it is."""

    reason: Reason
    message: str
    tokens: Tokens | None = field(default=None, repr=False)
    """What the Secret holds; None without one that has a usable token."""


class ConnectionSecret:
    """Secrets of connections."""

    def __init__(self, context: Context):
        self._ctx = context

    async def ensure(
        self, seen: ConnectionObserved, spec: AgentMCPConnectionSpec, rotate: str | None
    ) -> tuple[Body, Tokens, bool] | Foreign | NoCa:
        """The Secret as it should be now, written if it was not, and whether its tokens changed. Raises `KubeError`."""
        target = await self._target(seen)
        connection = seen.connection
        key = Key(connection.key.namespace, secret_of(connection, spec))
        secret = await self._ctx.kube.get(SECRETS, key)
        if secret is not None and not owned(secret, connection):
            return Foreign()
        if secret is not None and secret["metadata"].get("deletionTimestamp"):
            raise Conflict(409, "the Secret is on its way out; another one can be made when it is gone")
        before = read_tokens(secret) if secret is not None else None
        if isinstance(target, NoCa):
            return replace(target, tokens=before)
        tokens = advance(
            before,
            rotate,
            self._ctx.clock.now(),
            new_token(secrets.token_bytes(_TOKEN_BYTES)),
        )
        if secret is None:
            try:
                secret = await self._ctx.kube.create(SECRETS, secret_body(connection, key.name, tokens, target))
            except AlreadyExists as error:
                raise Conflict(409, "the Secret appeared meanwhile") from error
            return secret, tokens, True
        return await self._patch(seen, secret, tokens, target), tokens, tokens != before

    async def write(self, seen: ConnectionObserved, secret: Body, tokens: Tokens) -> Body:
        """Put these tokens into the Secret. Raises `KubeError`."""
        target = await self._target(seen)
        if isinstance(target, NoCa):
            raise Conflict(409, "the gateway's CA disappeared meanwhile")
        return await self._patch(seen, secret, tokens, target)

    async def _patch(self, seen: ConnectionObserved, secret: Body, tokens: Tokens, target: Target) -> Body:
        patch = secret_patch(secret, seen.connection, tokens, target)
        if not patch:
            return secret
        return await self._ctx.kube.merge_patch(SECRETS, Key.of(secret), secret["metadata"]["resourceVersion"], patch)

    async def _target(self, seen: ConnectionObserved) -> Target | NoCa:
        server, toolbox, url = seen.server, seen.toolbox, seen.url
        if server is None or toolbox is None or toolbox.spec is None or url is None:
            raise Conflict(409, "the server or its Toolbox disappeared meanwhile")
        ca_pem: str | None = None
        if (ref := toolbox.spec.gateway_ca_secret_ref) is not None:
            body = await self._ctx.kube.get(SECRETS, Key(toolbox.key.namespace, ref.name))
            value = value_of(Ref(Source.SECRET, ref.name), ref.key, body)
            if not isinstance(value, Unresolved) and not is_ca(value):
                value = no_ca(ref)
            if isinstance(value, Unresolved):
                return NoCa(value.reason, f"{value.message} The Toolbox {toolbox.key} refers to it.")
            ca_pem = value
        return Target(
            server_name=server.key.name,
            url=url,
            transport="streamable-http",
            ca_pem=ca_pem,
        )
