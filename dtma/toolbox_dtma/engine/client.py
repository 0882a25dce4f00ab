"""Docker's API as DTMA uses it: typed answers, a deadline on every call, two kinds of errors.

`EngineUnavailable` means there was no answer, `DockerRefused` that there was one. aiodocker brings the connection
(sockets, TLS, API version); requests are made here, because a stream must be closed when its reader stops early: a
pull that nobody waits for any more would go on.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import aiohttp
from aiodocker import Docker, DockerError
from pydantic import TypeAdapter, ValidationError

from toolbox_dtma.engine.api import EngineUnavailable
from toolbox_dtma.engine.attach import attached
from toolbox_dtma.engine.failures import DockerRefused
from toolbox_dtma.engine.models import (
    Container,
    ContainerSummary,
    Created,
    DockerEvent,
    EngineVersion,
    Image,
    Network,
    Volume,
    VolumeList,
)
from toolbox_dtma.engine.timings import Timings


class EngineSilent(EngineUnavailable):
    """Connected, but nothing came within the deadline."""


DEFAULT_URL = "unix:///var/run/docker.sock"

JsonObject = dict[str, Any]

T = TypeVar("T")

_UNREACHABLE = 900
"""aiodocker's status for "no connection"."""

_MAX_LINE = 4 * 1024 * 1024
_summaries = TypeAdapter(tuple[ContainerSummary, ...])
_container = TypeAdapter(Container)
_created = TypeAdapter(Created)
_image = TypeAdapter(Image)
_event = TypeAdapter(DockerEvent)
_networks = TypeAdapter(tuple[Network, ...])
_volume = TypeAdapter(Volume)
_volumes = TypeAdapter(VolumeList)


class DockerClient:
    """One engine. Connections are made on first use, so that a host starts while its engine is away."""

    def __init__(self, url: str | None, timings: Timings) -> None:
        self._url = url or DEFAULT_URL
        self._timings = timings
        self._docker: Docker | None = None

    async def aclose(self) -> None:
        """Close all connections; the next call opens new ones."""
        docker, self._docker = self._docker, None
        if docker is not None:
            await docker.close()

    async def version(self) -> EngineVersion:
        """Version facts; also learns the API version."""
        try:
            async with asyncio.timeout(self._timings.request):
                return EngineVersion.model_validate(await self._open().version())
        except DockerError as error:
            raise _translated(error) from error
        except TimeoutError as error:
            raise EngineSilent("the Docker Engine did not answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise EngineUnavailable(f"the Docker Engine cannot be reached: {error}") from error

    async def containers(self, labels: Mapping[str, str]) -> tuple[ContainerSummary, ...]:
        """All containers, running or not, that have all these labels; the newest first."""
        answer = await self._call("GET", "containers/json", {"all": "1", "filters": _label_filter(labels)})
        return _checked(answer, _summaries)

    async def container(self, container_id: str) -> Container | None:
        """An inspected container; none if there is no such."""
        answer = await self._unless_absent(f"containers/{container_id}/json")
        return None if answer is None else _checked(answer, _container)

    async def create(self, name: str, config: JsonObject) -> str:
        """Create a container, unstarted; its id."""
        answer = await self._call("POST", "containers/create", {"name": name}, config, self._timings.create)
        return _checked(answer, _created).id

    async def start(self, container_id: str) -> None:
        """Start a container; a running one is success."""
        await self._call("POST", f"containers/{container_id}/start", deadline=self._timings.create)

    async def stop(self, container_id: str, *, grace: int | None = None) -> None:
        """Stop a container with the usual grace period or another; a stopped or absent one is success."""
        grace = self._timings.stop_grace if grace is None else grace
        await self._absent_is_success(
            "POST", f"containers/{container_id}/stop", {"t": str(grace)}, grace + self._timings.request
        )

    async def kill(self, container_id: str) -> None:
        """SIGKILL to a container; one that does not run, or is absent, is success."""
        await self._absent_is_success("POST", f"containers/{container_id}/kill")

    async def attach(self, container_id: str) -> socket.socket:
        """The streams of a container that was made with an open stdin: see `attach.attached`."""
        if self._open().api_version == "auto":
            await self.version()
        try:
            async with asyncio.timeout(self._timings.request):
                return await attached(self._url, f"{self._open().api_version}/containers/{container_id}")
        except TimeoutError as error:
            raise EngineSilent("the Docker Engine did not answer in time") from error
        except OSError as error:
            raise EngineUnavailable(f"the Docker Engine cannot be reached: {error}") from error

    async def unpause(self, container_id: str) -> None:
        """Thaw a paused container."""
        await self._absent_is_success("POST", f"containers/{container_id}/unpause")

    async def remove(self, container_id: str) -> None:
        """Remove a container and its anonymous volumes; an absent one is success."""
        await self._absent_is_success("DELETE", f"containers/{container_id}", {"v": "1", "force": "1"})

    async def networks(self, labels: Mapping[str, str] | None = None) -> tuple[Network, ...]:
        """Networks with all these labels, or all of the engine."""
        answer = await self._call("GET", "networks", {"filters": _label_filter(labels)} if labels else {})
        return _checked(answer, _networks)

    async def create_network(self, config: JsonObject) -> str:
        """Create a network; its id."""
        return _checked(await self._call("POST", "networks/create", body=config), _created).id

    async def remove_network(self, network_id: str) -> None:
        """Remove a network; an absent one is success."""
        await self._absent_is_success("DELETE", f"networks/{network_id}")

    async def volumes(self, labels: Mapping[str, str]) -> tuple[Volume, ...]:
        """Volumes with all these labels."""
        return _checked(await self._call("GET", "volumes", {"filters": _label_filter(labels)}), _volumes).volumes

    async def create_volume(self, config: JsonObject) -> Volume:
        """Create a volume. Where there is one of that name, that one, whatever the configuration says."""
        return _checked(await self._call("POST", "volumes/create", body=config), _volume)

    async def remove_volume(self, name: str) -> None:
        """Remove a volume with its data; an absent one is success."""
        await self._absent_is_success("DELETE", f"volumes/{name}")

    async def archive_head(self, container_id: str, path: str, limit: int) -> bytes | None:
        """The first `limit` bytes, or all, of what is at a path in a container, as tar; none if nothing is there."""
        timeout = aiohttp.ClientTimeout(total=self._timings.request)
        head = bytearray()
        try:
            async with self._stream("GET", f"containers/{container_id}/archive", {"path": path}, timeout) as response:
                while len(head) < limit and (chunk := await response.content.read(limit - len(head))):
                    head += chunk
        except DockerRefused as refused:
            if refused.status == 404:
                return None
            raise
        return bytes(head)

    async def put_archive(self, container_id: str, path: str, archive: bytes) -> None:
        """Unpack a tar at a path in a container; of a directory that is there, owner and mode become the archive's."""
        timeout = aiohttp.ClientTimeout(total=self._timings.request)
        resource, headers = f"containers/{container_id}/archive", {"Content-Type": "application/x-tar"}
        async with self._stream("PUT", resource, {"path": path}, timeout, headers, data=archive) as response:
            await response.read()

    async def image(self, reference: str) -> Image | None:
        """A local image by reference or id; none if the engine doesn't have it."""
        answer = await self._unless_absent(f"images/{reference}/json")
        return None if answer is None else _checked(answer, _image)

    @asynccontextmanager
    async def pull(self, reference: str, auth: Mapping[str, str] | None) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Pull an image; lines of progress. Leaving the context ends the pull."""
        headers = {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(auth).encode()).decode()} if auth else {}
        timeout = aiohttp.ClientTimeout(total=self._timings.pull_total, sock_read=self._timings.pull_idle)
        async with self._stream("POST", "images/create", {"fromImage": reference}, timeout, headers) as response:
            yield _lines(response)

    @asynccontextmanager
    async def events(self, labels: Mapping[str, str]) -> AsyncGenerator[AsyncIterator[DockerEvent]]:
        """Container events for containers with these labels, until the engine goes away."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._timings.request)
        params = {"filters": _label_filter(labels, type="container")}
        async with self._stream("GET", "events", params, timeout) as response:
            yield _events(response)

    @asynccontextmanager
    async def logs(
        self, container_id: str, *, tail: int, since: float | None, follow: bool
    ) -> AsyncGenerator[aiohttp.StreamReader]:
        """Multiplexed output of a container."""
        params = {"stdout": "1", "stderr": "1", "follow": "1" if follow else "0", "tail": str(tail)}
        if since is not None:
            params["since"] = f"{since:.9f}"
        timeout = aiohttp.ClientTimeout(
            total=None if follow else self._timings.request, sock_connect=self._timings.request
        )
        async with self._stream("GET", f"containers/{container_id}/logs", params, timeout) as response:
            yield response.content

    def _open(self) -> Docker:
        if self._docker is None:
            self._docker = Docker(url=self._url, timeout=aiohttp.ClientTimeout(total=None, sock_connect=5))
        return self._docker

    async def _call(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        body: JsonObject | None = None,
        deadline: float | None = None,
    ) -> bytes:
        timeout = aiohttp.ClientTimeout(total=deadline or self._timings.request)
        async with self._stream(method, path, params or {}, timeout, body=body) as response:
            return await response.read()

    async def _unless_absent(self, path: str) -> bytes | None:
        try:
            return await self._call("GET", path)
        except DockerRefused as refused:
            if refused.status == 404:
                return None
            raise

    async def _absent_is_success(
        self, method: str, path: str, params: Mapping[str, str] | None = None, deadline: float | None = None
    ) -> None:
        try:
            await self._call(method, path, params, deadline=deadline)
        except DockerRefused as refused:
            # 409: its removal is under way already, or it isn't paused or running any more.
            settled = any(each in refused.message for each in ("already in progress", "not paused", "is not running"))
            if refused.status != 404 and not (refused.status in {409, 500} and settled):
                raise

    @asynccontextmanager
    async def _stream(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        limits: aiohttp.ClientTimeout,
        headers: Mapping[str, str] | None = None,
        body: JsonObject | None = None,
        data: bytes | None = None,
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        if self._open().api_version == "auto":
            await self.version()
        docker = self._open()
        url = f"{docker.docker_host}/{docker.api_version}/{path}"
        try:
            async with docker.session.request(
                method,
                url,
                params=params,
                headers=headers,
                json=body,
                data=data,
                timeout=limits,
                read_bufsize=_MAX_LINE,
            ) as response:
                if response.status >= 400:
                    raise DockerRefused(response.status, _message(await response.read()))
                yield response
        except TimeoutError as error:
            raise EngineSilent("the Docker Engine did not answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise EngineUnavailable(f"the Docker Engine cannot be reached: {error}") from error


def _label_filter(labels: Mapping[str, str], **also: str) -> str:
    filters = {"label": [f"{key}={value}" for key, value in labels.items()]}
    return json.dumps(filters | {key: [value] for key, value in also.items()})


def _checked(body: bytes, parser: TypeAdapter[T]) -> T:
    try:
        return parser.validate_json(body)
    except ValidationError as error:
        raise DockerRefused(0, f"unexpected answer of the Docker Engine: {error}") from error


def _translated(error: DockerError) -> EngineUnavailable | DockerRefused:
    if error.status == _UNREACHABLE:
        return EngineUnavailable(error.message)
    return DockerRefused(error.status, error.message)


def _message(body: bytes) -> str:
    try:
        parsed: object = json.loads(body)
    except ValueError:
        return body.decode(errors="replace")
    if isinstance(parsed, dict):
        return str(cast(JsonObject, parsed).get("message", ""))
    return str(parsed)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        while line := await response.content.readline():
            if line.strip():
                yield line
    except ValueError as error:
        raise DockerRefused(0, "the Docker Engine sent an endless line") from error


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[DockerEvent]:
    async for line in _lines(response):
        yield _checked(line, _event)
