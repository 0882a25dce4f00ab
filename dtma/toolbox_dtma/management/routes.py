"""The routes of design §5. Thin: each parses, calls the service, and answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from starlette.responses import Response, StreamingResponse

from toolbox_dtma.engine.api import EngineUnavailable
from toolbox_dtma.management.events import Event
from toolbox_dtma.management.owners import Reader, Writer
from toolbox_dtma.management.problems import Refused
from toolbox_dtma.management.service import Service
from toolbox_dtma.metrics import CONTENT_TYPE
from toolbox_dtma.wire import (
    EPOCH_HEADER,
    OWNER_HEADER,
    CallBatch,
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
from toolbox_dtma.wire.base import DnsLabel, Uid

router = APIRouter(responses={"default": {"model": Problem, "description": "Refused"}})

FIRST_LOG_CHUNK = 1.0
"""Seconds to wait for a first piece of log, so that a failure can still become a problem."""


def _service(request: Request) -> Service:
    return request.app.state.service


OwnerHeader = Annotated[Uid, Header(alias=OWNER_HEADER)]
EpochHeader = Annotated[int, Header(alias=EPOCH_HEADER, ge=0, le=2**53)]


def _reader(owner: OwnerHeader) -> Reader:
    return Reader(owner)


def _writer(owner: OwnerHeader, epoch: EpochHeader) -> Writer:
    return Writer(owner, epoch)


Host = Annotated[Service, Depends(_service)]
Reading = Annotated[Reader, Depends(_reader)]
Writing = Annotated[Writer, Depends(_writer)]
InstanceId = Annotated[Uid, Path(alias="id")]
ConnectionUid = Annotated[Uid, Path(alias="uid")]
NamespaceQuery = Annotated[DnsLabel, Query()]
NameQuery = Annotated[DnsLabel, Query()]


@router.put("/v2/owners/{owner}")
async def claim(host: Host, owner: Annotated[Uid, Path()], body: OwnerClaim, header: OwnerHeader) -> OwnerClaimed:
    """A leader of a cluster claims the host."""
    if header != owner:
        raise Refused(ProblemCode.OWNER_MISMATCH, f"{OWNER_HEADER} names another owner than the path")
    return await host.owners.claim(owner, body.epoch)


@router.get("/v2/host")
async def facts(host: Host, reader: Reading) -> HostFacts:
    """Identity, versions, engine, capacity and usage."""
    return await host.facts(reader)


@router.put("/v2/host/config", status_code=204)
async def configure(host: Host, writer: Writing, body: HostConfig) -> None:
    """Replace the gateway's configuration."""
    await host.configure(writer, body)


@router.get("/v2/instances")
async def list_instances(host: Host, reader: Reading) -> InstanceList:
    """Every instance of the owner."""
    return host.instances.list(reader)


@router.put("/v2/instances/{id}", status_code=202)
async def put_instance(host: Host, writer: Writing, instance_id: InstanceId, body: DesiredInstance) -> InstanceReport:
    """Accept a desired instance; the host converges from there."""
    return await host.instances.put(writer, instance_id, body)


@router.get("/v2/instances/{id}")
async def get_instance(host: Host, reader: Reading, instance_id: InstanceId) -> InstanceReport:
    """One instance."""
    return host.instances.get(reader, instance_id)


@router.delete("/v2/instances/{id}", status_code=204)
async def delete_instance(
    host: Host,
    writer: Writing,
    instance_id: InstanceId,
    uid: Annotated[Uid, Query()],
    namespace: NamespaceQuery,
    name: NameQuery,
    volume_policy: Annotated[VolumePolicy | None, Query(alias="volumePolicy")] = None,
) -> None:
    """Remove an instance, its network and its grants; its volumes as `volumePolicy` says, else as the instance does."""
    await host.instances.delete(
        writer, instance_id, uid=uid, namespace=namespace, name=name, volume_policy=volume_policy
    )


@router.get(
    "/v2/instances/{id}/logs", response_class=StreamingResponse, responses={200: {"content": {"text/plain": {}}}}
)
async def instance_logs(
    host: Host,
    reader: Reading,
    instance_id: InstanceId,
    tail: Annotated[int, Query(ge=0, le=10_000)] = 200,
    since: Annotated[float | None, Query(ge=0, le=1e11, allow_inf_nan=False)] = None,
    follow: Annotated[bool, Query()] = False,
) -> StreamingResponse:
    """Container output. `since` is Unix time in seconds; an answer that does not follow is cut at 4 MiB."""
    chunks = host.instances.logs(reader, instance_id, tail=tail, since=since, follow=follow)
    first = asyncio.ensure_future(anext(chunks, None))
    await asyncio.wait({first}, timeout=FIRST_LOG_CHUNK)
    if first.done():
        _check_logs(first)
    limit = None if follow else host.bounds.log_bytes
    stream = _log_stream(first, chunks, limit=limit, seconds=host.timings.log_follow)
    return StreamingResponse(stream, media_type="text/plain", headers={"Cache-Control": "no-store"})


def _check_logs(first: asyncio.Future[bytes | None]) -> None:
    try:
        first.result()
    except KeyError:
        raise Refused(ProblemCode.NOT_FOUND, "this instance has no container yet") from None
    except EngineUnavailable as error:
        raise Refused(ProblemCode.ENGINE_UNAVAILABLE, f"its logs cannot be read now: {error}") from None


async def _log_stream(
    first: asyncio.Future[bytes | None], chunks: AsyncIterator[bytes], *, limit: int | None, seconds: float
) -> AsyncGenerator[bytes]:
    deadline = asyncio.get_running_loop().time() + seconds
    sent = 0
    pending = first
    try:
        while True:
            left = deadline - asyncio.get_running_loop().time()
            await asyncio.wait({pending}, timeout=max(0.0, left))
            chunk = pending.result() if pending.done() else None
            if chunk is None:
                return
            if limit is not None and sent + len(chunk) > limit:
                yield chunk[: limit - sent]
                return
            sent += len(chunk)
            yield chunk
            pending = asyncio.ensure_future(anext(chunks, None))
    except (EngineUnavailable, KeyError):
        # The answer has begun; its end is all that can still be said.
        return
    finally:
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


@router.get("/v2/grants")
async def list_grants(host: Host, reader: Reading) -> GrantList:
    """Every grant of the owner, with whether all workers obey it."""
    return host.grants.list(reader)


@router.put("/v2/grants/{uid}")
async def put_grant(host: Host, writer: Writing, uid: ConnectionUid, body: Grant) -> GrantReport:
    """Store a grant; answers when every gateway worker obeys it."""
    return await host.grants.put(writer, uid, body)


@router.delete("/v2/grants/{uid}", status_code=204)
async def delete_grant(
    host: Host, writer: Writing, uid: ConnectionUid, namespace: NamespaceQuery, name: NameQuery
) -> None:
    """Revoke a grant; answers when no gateway worker honours it."""
    await host.grants.delete(writer, uid, namespace=namespace, name=name)


@router.get("/v2/events", response_class=StreamingResponse, responses={200: {"content": {"text/event-stream": {}}}})
async def events(
    host: Host,
    reader: Reading,
    after: Annotated[str | None, Query(max_length=64)] = None,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
) -> StreamingResponse:
    """Server-sent events from a cursor on; Last-Event-ID wins over `after`, without either from now on."""
    host.owners.admit(reader)
    start = host.events.parse_cursor(last_event_id or after)
    stream = _event_stream(host, reader.owner, start)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _event_stream(host: Service, owner: str, start: int) -> AsyncGenerator[str]:
    yield ": connected\n\n"
    async with aclosing(host.events.watch(owner, start, heartbeat=host.timings.heartbeat)) as watch:
        async for event in watch:
            yield _sse(host.events.boot_id, event) if event else ": heartbeat\n\n"


def _sse(boot_id: int, event: Event) -> str:
    return f"id: {boot_id}:{event.seq}\nevent: {event.kind}\ndata: {event.data}\n\n"


@router.get("/v2/calls", response_model=CallBatch)
async def calls(host: Host, reader: Reading, after: Annotated[str | None, Query(max_length=64)] = None) -> Response:
    """Call records of the owner's connections, oldest first; asking with a batch's cursor acknowledges it."""
    content = await host.calls.read(reader, after)
    return Response(content, media_type="application/json", headers={"Cache-Control": "no-store"})


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process runs."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(host: Host) -> dict[str, str]:
    """State is loaded and gateway workers can connect."""
    if not host.ready.is_set():
        raise Refused(ProblemCode.ENGINE_UNAVAILABLE, "starting or stopping")
    return {"status": "ok"}


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(host: Host) -> Response:
    """Prometheus metrics."""
    return Response(host.metrics.render(), media_type=CONTENT_TYPE)
