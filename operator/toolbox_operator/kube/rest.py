"""Raw requests to the API server with deadlines and typed errors. No fence: see `client.py`."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration

from toolbox_operator.api.meta import Key
from toolbox_operator.kube.api import AlreadyExists, Conflict, KubeError, Missing, Refused, Resource

MERGE_PATCH = "application/merge-patch+json"
JSON = "application/json"
USER_AGENT = "magic-toolbox-operator"

Observer = Callable[[str, int], None]
"""Told (verb, HTTP status) of every request; 0 without an answer."""


def object_path(resource: Resource, key: Key, subresource: str = "") -> str:
    """The URL path of one namespaced object."""
    path = f"{collection_path(resource, key.namespace)}/{quote(key.name, safe='')}"
    return f"{path}/{subresource}" if subresource else path


def collection_path(resource: Resource, namespace: str = "") -> str:
    """The URL path of a kind in one namespace, or in all."""
    root = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
    scope = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    return f"{root}{scope}/{resource.plural}"


class KubeRest:
    """JSON requests over one connection pool. Every call ends within its deadline, in seconds."""

    def __init__(self, configuration: Configuration, *, observer: Observer | None = None) -> None:
        self._api: Any = ApiClient(configuration)
        self._host = str(configuration.host).rstrip("/")
        self._observer = observer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._api.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        deadline: float,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = JSON,
        accept: str = JSON,
    ) -> dict[str, Any]:
        """The JSON object of a 2xx answer. Raises `KubeError` or one of its kinds on everything else."""
        headers = {"Accept": accept, "User-Agent": USER_AGENT, "Content-Type": content_type}
        url = self._url(path, query)
        status = 0
        try:
            async with asyncio.timeout(deadline):
                # The typed API classes would parse every body into models; the raw parts keep JSON as it is.
                await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
                response = await self._api.rest_client.request(
                    method, url, headers=headers, body=body, _request_timeout=aiohttp.ClientTimeout(total=deadline)
                )
                raw: bytes = await response.read()
                status = int(response.status)
        except TimeoutError as error:
            raise KubeError(0, f"{method} {path}: no answer within {deadline:g} s") from error
        except (aiohttp.ClientError, ssl.SSLError, OSError) as error:
            raise KubeError(0, f"{method} {path}: {error or type(error).__name__}") from error
        finally:
            if self._observer is not None:
                self._observer(method, status)
        answer = _parse(raw)
        if 200 <= status < 300 and answer is not None:
            return answer
        retry_after = _seconds(response.headers.get("Retry-After"))
        raise _error(method, path, status, answer, retry_after)

    @asynccontextmanager
    async def lines(
        self, path: str, *, query: Mapping[str, str], deadline: float, silence: float, accept: str = JSON
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """The lines of a long GET, once its head is there, which takes at most `deadline` seconds.

        Ends with the answer. Raises `KubeError` or one of its kinds, also when nothing came for `silence` seconds.
        """
        headers = {"Accept": accept, "User-Agent": USER_AGENT, "Content-Type": JSON}
        response: Any = None
        status = 0
        try:
            async with asyncio.timeout(deadline):
                await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, "GET", None)
                answer = await self._api.rest_client.request(
                    "GET", self._url(path, query), headers=headers, _request_timeout=aiohttp.ClientTimeout(total=None)
                )
                response, status = answer.response, int(answer.status)
                if status != 200:
                    raw: bytes = await answer.read()
                    raise _error("GET", path, status, _parse(raw), _seconds(answer.headers.get("Retry-After")))
            async with aclosing(_lines(response.content, path, silence)) as lines:
                yield lines
        except TimeoutError as error:
            raise KubeError(0, f"GET {path}: no answer within {deadline:g} s") from error
        except (aiohttp.ClientError, ssl.SSLError, OSError) as error:
            raise KubeError(0, f"GET {path}: {error or type(error).__name__}") from error
        finally:
            if response is not None:
                response.close()
            if self._observer is not None:
                self._observer("GET", status)

    def _url(self, path: str, query: Mapping[str, str] | None) -> str:
        return f"{self._host}{path}?{urlencode(query)}" if query else f"{self._host}{path}"


async def _lines(content: aiohttp.StreamReader, path: str, silence: float) -> AsyncGenerator[bytes]:
    while True:
        try:
            async with asyncio.timeout(silence):
                line = await content.readline()
        except TimeoutError as error:
            raise KubeError(0, f"GET {path}: nothing came for {silence:g} s") from error
        except ValueError as error:
            raise KubeError(200, f"GET {path}: a line is too long") from error
        if not line:
            return
        yield line


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        answer: Any = json.loads(raw)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None  # pyright: ignore[reportUnknownVariableType] # JSON keys are str


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; the date form is not used by API servers."""
    return float(header) if header is not None and header.isdecimal() else None


def _names_an_object(answer: Mapping[str, Any] | None) -> bool:
    details = (answer or {}).get("details")
    return bool(details and details.get("name"))


def _error(
    method: str, path: str, status: int, answer: Mapping[str, Any] | None, retry_after: float | None
) -> KubeError:
    detail = str(answer.get("message", "")) if answer else ""
    reason = str(answer.get("reason", "")) if answer else ""
    if 200 <= status < 300:
        return KubeError(status, f"{method} {path}: the answer is not a JSON object")
    message = f"{method} {path}: {status} {reason}: {detail}"
    if status == 404 and reason == "NotFound" and _names_an_object(answer):
        # An unknown kind is 404 too, and says nothing about the object.
        return Missing(status, message)
    if status == 409 and reason == "AlreadyExists":
        # A quota conflict and a name taken are both 409; only the reason tells.
        return AlreadyExists(status, message)
    if status == 409:
        return Conflict(status, message, retry_after=retry_after)
    if status in (403, 422):
        return Refused(status, message)
    return KubeError(status, message, retry_after=retry_after)
