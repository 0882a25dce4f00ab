"""`HttpHost`: one host's management API over HTTPS.

An answer counts only when it is whole, JSON and of the expected shape. Everything else, a page of a proxy, a
cut-off body, an empty one, means *unknown* and is `HostUnreachable`, never "nothing there".
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Literal, TypeVar, cast
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from toolbox_dtma.wire import (
    EPOCH_HEADER,
    OWNER_HEADER,
    CallBatch,
    CallRecord,
    DesiredInstance,
    Grant,
    GrantList,
    GrantReport,
    HostConfig,
    HostFacts,
    InstanceList,
    InstanceReport,
    OwnerClaim,
    OwnerClaimed,
    Problem,
    ProblemCode,
    VolumePolicy,
)
from toolbox_operator.hosts.api import (
    HostEvent,
    HostProblem,
    HostSettings,
    HostUnauthorized,
    HostUnreachable,
    HostUntrusted,
    PulledCalls,
)
from toolbox_operator.hosts.sse import EventStream
from toolbox_operator.runtime import Fenced, Leadership, Timings

ModelT = TypeVar("ModelT", bound=BaseModel)
Method = Literal["GET", "PUT", "DELETE"]

MAX_ANSWER = 16 * 1024 * 1024
"""Bytes of the largest answer that is read."""

_REMOVAL_FACTOR = 2.0
"""A removal waits for the stop grace of the container, so it may take this many times longer than a call."""


def trust(ca_pem: str | None) -> ssl.SSLContext:
    """A verifying TLS context. Raises ValueError when `ca_pem` holds no certificate."""
    if ca_pem is None:
        return ssl.create_default_context()
    try:
        context = ssl.create_default_context(cadata=ca_pem)
    except (ssl.SSLError, ValueError) as error:
        raise ValueError("not a PEM certificate") from error
    if not context.get_ca_certs():
        raise ValueError("not the certificate of a CA")
    return context


class HttpHost:
    """A `WatchableHost` over httpx."""

    def __init__(
        self,
        settings: HostSettings,
        leadership: Leadership,
        timings: Timings,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        self._leadership = leadership
        self._timings = timings
        self._client = httpx.AsyncClient(
            base_url=settings.endpoint.rstrip("/"),
            headers={
                "Authorization": f"Bearer {settings.token}",
                "Accept-Encoding": "identity",
                "User-Agent": "toolbox-operator",
            },
            verify=trust(settings.ca_pem),
            timeout=httpx.Timeout(timings.host_call, connect=timings.host_connect),
            limits=httpx.Limits(max_connections=8, max_keepalive_connections=4),
            trust_env=False,
            follow_redirects=False,
            transport=transport,
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    async def claim(self, epoch: int) -> OwnerClaimed:
        self._leadership.check()
        path = f"/v2/owners/{_segment(self._leadership.owner)}"
        answer = await self._call("PUT", path, epoch=epoch, body=OwnerClaim(epoch=epoch))
        return _parsed(OwnerClaimed, answer)

    async def facts(self) -> HostFacts:
        return _parsed(HostFacts, await self._call("GET", "/v2/host"))

    async def configure(self, config: HostConfig) -> None:
        await self._mutate("PUT", "/v2/host/config", body=config)

    async def list_instances(self) -> InstanceList:
        return _parsed(InstanceList, await self._call("GET", "/v2/instances"))

    async def put_instance(self, instance_id: str, desired: DesiredInstance) -> InstanceReport:
        return _parsed(
            InstanceReport, await self._mutate("PUT", f"/v2/instances/{_segment(instance_id)}", body=desired)
        )

    async def get_instance(self, instance_id: str) -> InstanceReport | None:
        try:
            answer = await self._call("GET", f"/v2/instances/{_segment(instance_id)}")
        except HostProblem as problem:
            if problem.code is ProblemCode.NOT_FOUND:
                return None
            raise
        return _parsed(InstanceReport, answer)

    async def delete_instance(
        self, instance_id: str, *, uid: str, namespace: str, name: str, volume_policy: VolumePolicy | None = None
    ) -> None:
        volumes = {} if volume_policy is None else {"volumePolicy": volume_policy.value}
        await self._remove(f"/v2/instances/{_segment(instance_id)}", uid=uid, namespace=namespace, name=name, **volumes)

    async def put_grant(self, uid: str, grant: Grant) -> GrantReport:
        return _parsed(GrantReport, await self._mutate("PUT", f"/v2/grants/{_segment(uid)}", body=grant))

    async def list_grants(self) -> tuple[GrantReport, ...]:
        return _parsed(GrantList, await self._call("GET", "/v2/grants")).items

    async def delete_grant(self, uid: str, *, namespace: str, name: str) -> None:
        await self._remove(f"/v2/grants/{_segment(uid)}", namespace=namespace, name=name)

    async def watch(self, cursor: str) -> AsyncGenerator[HostEvent]:
        headers = {OWNER_HEADER: self._leadership.owner, "Accept": "text/event-stream"}
        timeout = httpx.Timeout(
            self._timings.host_call, connect=self._timings.host_connect, read=self._timings.host_silence
        )
        stream = EventStream()
        try:
            async with self._client.stream(
                "GET", "/v2/events", params={"after": cursor}, headers=headers, timeout=timeout
            ) as response:
                if response.status_code != 200:
                    raise _problem(response, await _body(response))
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    raise HostUnreachable("the event stream is not one: something else answers at the endpoint")
                async for chunk in response.aiter_bytes():
                    for event in stream.feed(chunk):
                        yield event
        except httpx.HTTPError as error:
            raise _transport_error(error) from error
        except ValueError as error:
            raise HostUnreachable(f"the event stream is damaged: {error}") from error

    async def calls(self, after: str | None) -> PulledCalls:
        return _calls(await self._call("GET", "/v2/calls", params=None if after is None else {"after": after}))

    async def _remove(self, path: str, **identity: str) -> None:
        try:
            await self._mutate("DELETE", path, params=identity, patience=_REMOVAL_FACTOR)
        except HostProblem as problem:
            if problem.code not in (ProblemCode.NOT_FOUND, ProblemCode.DELETED):
                raise

    async def _mutate(
        self,
        method: Method,
        path: str,
        *,
        body: BaseModel | None = None,
        params: Mapping[str, str] | None = None,
        patience: float = 1.0,
    ) -> Any:
        """A fenced call: claims again and repeats once when the host does not know us, or knows a higher epoch."""
        self._leadership.check()
        epoch = self._leadership.epoch
        try:
            return await self._call(method, path, epoch=epoch, body=body, params=params, patience=patience)
        except HostProblem as problem:
            if problem.code is ProblemCode.FENCED_EPOCH:
                current = problem.current
                if current is None:
                    raise Fenced("a host refused our epoch and did not say which it knows") from problem
                if current >= self._leadership.epoch and current > epoch:
                    await self._leadership.raise_epoch(current)
            elif problem.code is not ProblemCode.NOT_CLAIMED:
                raise
        self._leadership.check()
        epoch = self._leadership.epoch
        try:
            await self.claim(epoch)
            return await self._call(method, path, epoch=epoch, body=body, params=params, patience=patience)
        except HostProblem as problem:
            if problem.code is ProblemCode.FENCED_EPOCH:
                raise Fenced("another leader is ahead of us at a host") from problem
            raise

    async def _call(
        self,
        method: Method,
        path: str,
        *,
        epoch: int | None = None,
        body: BaseModel | None = None,
        params: Mapping[str, str] | None = None,
        patience: float = 1.0,
    ) -> Any:
        headers = {OWNER_HEADER: self._leadership.owner}
        if epoch is not None:
            headers[EPOCH_HEADER] = str(epoch)
        content: bytes | None = None
        if body is not None:
            content = body.model_dump_json(by_alias=True).encode()
            headers["Content-Type"] = "application/json"
        deadline = self._timings.host_call * patience
        timeout = httpx.Timeout(deadline, connect=self._timings.host_connect)
        try:
            async with (
                asyncio.timeout(deadline),
                self._client.stream(
                    method, path, headers=headers, content=content, params=params, timeout=timeout
                ) as response,
            ):
                payload = await _body(response)
        except TimeoutError as error:
            raise HostUnreachable(f"no answer within {deadline:g} s") from error
        except httpx.HTTPError as error:
            raise _transport_error(error) from error
        if not response.is_success:
            raise _problem(response, payload)
        if response.status_code == 204:
            return None
        if not payload and method == "DELETE":
            return None
        return _json(response, payload)


def _segment(text: str) -> str:
    return quote(text, safe="")


async def _body(response: httpx.Response) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for chunk in response.aiter_bytes():
        size += len(chunk)
        if size > MAX_ANSWER:
            raise HostUnreachable(f"the answer is larger than {MAX_ANSWER // 1024 // 1024} MiB")
        parts.append(chunk)
    return b"".join(parts)


def _json(response: httpx.Response, payload: bytes) -> Any:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "application/problem+json"):
        raise HostUnreachable(f"answered {response.status_code} with {kind or 'no content type'} instead of JSON")
    try:
        return json.loads(payload)
    except ValueError as error:
        raise HostUnreachable(f"answered {response.status_code} with JSON that cannot be read") from error


def _parsed(model: type[ModelT], answer: Any) -> ModelT:
    try:
        return model.model_validate(answer)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"]) or "the whole"
        raise HostUnreachable(f"the answer is not a valid {model.__name__} (at {where})") from error


def _calls(answer: Any) -> PulledCalls:
    """A batch without the records that cannot be read, of a newer host say: they would hold up the rest for ever."""
    found = cast("dict[str, Any]", answer).get("items") if isinstance(answer, dict) else None
    if not isinstance(found, list):
        raise HostUnreachable("the answer is not a valid CallBatch (at items)")
    items = cast("list[object]", found)
    readable = [call for item in items if (call := _call_record(item)) is not None]
    batch = _parsed(CallBatch, {**answer, "items": readable})
    return PulledCalls(batch, unreadable=len(items) - len(readable))


def _call_record(item: object) -> CallRecord | None:
    try:
        return CallRecord.model_validate(item)
    except ValidationError:
        return None


def _problem(response: httpx.Response, payload: bytes) -> Exception:
    status = response.status_code
    try:
        problem = Problem.model_validate(_json(response, payload))
    except (HostUnreachable, ValidationError):
        if status in (401, 403):
            return HostUnauthorized(f"answered {status}")
        return HostUnreachable(f"answered {status} without saying why; is this a Toolbox host?")
    detail = problem.detail or problem.title
    if problem.code in (ProblemCode.UNAUTHENTICATED, ProblemCode.FORBIDDEN):
        return HostUnauthorized(detail)
    return HostProblem(problem.code, detail, current=problem.current)


def _transport_error(error: httpx.HTTPError) -> Exception:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return HostUntrusted(cause.verify_message)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.TimeoutException):
        return HostUnreachable("no answer in time")
    return HostUnreachable(str(error) or type(error).__name__)
