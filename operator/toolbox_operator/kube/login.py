"""Where the API server is and who we are: one explicit source, used by our client and by kopf alike.

Either a kubeconfig whose path was given, or the pod's service account. Never the machine's current context.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kopf
from kubernetes.aio import config as aio_config
from kubernetes.aio.client import Configuration

_loaders: Any = aio_config
"""Untyped upstream."""


class LoginFailed(Exception):
    """No usable credentials; the message says what to give."""


@dataclass(frozen=True, slots=True)
class Login:
    """The source of credentials. `kubeconfig` None means the pod's service account."""

    kubeconfig: Path | None = None

    async def configuration(self) -> Configuration:
        """A client configuration that refreshes its own token."""
        configuration = Configuration()
        try:
            if self.kubeconfig is None:
                _loaders.load_incluster_config(client_configuration=configuration)
            else:
                if not self.kubeconfig.is_file():
                    raise LoginFailed(f"kubeconfig {self.kubeconfig} does not exist")
                await _loaders.load_kube_config(
                    config_file=str(self.kubeconfig), client_configuration=configuration, persist_config=False
                )
        except LoginFailed:
            raise
        except Exception as error:  # The loaders raise many types for a malformed file; all mean the same here.
            source = f"kubeconfig {self.kubeconfig}" if self.kubeconfig else "the service account of this pod"
            raise LoginFailed(f"cannot use {source}: {error}; give --kubeconfig PATH outside a cluster") from error
        # Retries belong to the work queue; a proxy of the environment must not see cluster traffic.
        configuration.retries = None
        configuration.client_session_kwargs = {"trust_env": False}
        return configuration

    async def kopf_connection(self) -> kopf.ConnectionInfo:
        """The same credentials for kopf, read anew: kopf asks again when they are refused."""
        configuration = await self.configuration()
        token: Any = configuration.get_api_key_with_prefix("BearerToken")
        if inspect.isawaitable(token):
            token = await token
        scheme, _, value = str(token or "").rpartition(" ")
        return kopf.ConnectionInfo(
            server=str(configuration.host),
            ca_path=configuration.ssl_ca_cert,
            insecure=not configuration.verify_ssl,
            username=configuration.username or None,
            password=configuration.password or None,
            scheme=(scheme or "Bearer") if value else None,
            token=value or None,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
        )
