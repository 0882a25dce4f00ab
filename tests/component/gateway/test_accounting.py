"""One record for every tools/call, and how it says that the call ended."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import httpx
import pytest
from aiohttp import web

from support.gateway.held_calls import Held, hang_up, start
from support.gateway.mcp_http import MODERN, call, open_session, request
from support.gateway.mcp_servers import RealServer, ScriptedServer, Seen, json_answer, raw_answer
from support.gateway.threads import eventually
from support.gateway.world import Connection, World, restricted
from toolbox_dtma.link.calls import CallEntry

pytestmark = pytest.mark.component

SECRET = "an argument that nobody may keep"
LARGE = "x" * 300_000


async def recorded(gateway: World, connection: Connection, number: int = 1) -> list[CallEntry]:
    """The records of a connection, once there are so many."""

    def enough() -> list[CallEntry] | None:
        found = gateway.dtma.calls_of(connection.uid)
        return found if len(found) >= number else None

    found = await asyncio.to_thread(eventually, enough, f"{number} records")
    assert len(found) == number
    return found


def result(**members: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "result": {"content": [], **members}}


def rpc_error(id: int | None) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "error": {"code": -1, "message": "no"}}


NEWS = {"jsonrpc": "2.0", "method": "notifications/message"}


def events(*documents: Any, id: str | None = None) -> bytes:
    head = f"id: {id}\n" if id is not None else ""
    return "".join(f"{head}data: {json.dumps(document)}\n\n" for document in documents).encode()


STREAM, JSON = "text/event-stream", "application/json"


@pytest.mark.parametrize(
    ("body", "kind", "status", "outcome"),
    [
        (json.dumps(result()).encode(), JSON, 200, "ok"),
        (json.dumps(result(isError=True)).encode(), JSON, 200, "tool_error"),
        (json.dumps(rpc_error(1)).encode(), JSON, 200, "rpc_error"),
        (json.dumps(rpc_error(None)).encode(), JSON, 400, "rpc_error"),
        (json.dumps(result(resultType="input_required")).encode(), JSON, 200, "input_required"),
        (json.dumps(result(task={"taskId": "t"})).encode(), JSON, 200, "task"),
        (json.dumps(result(text=LARGE, isError=True)).encode(), JSON, 200, "tool_error"),
        (json.dumps(result(text=LARGE)).encode(), JSON, 200, "ok"),
        (b"gone", "text/plain", 404, "upstream_error"),
        (b"", JSON, 202, "upstream_error"),
        (b"", JSON, 302, "upstream_error"),
        (events(NEWS, result(isError=True)), STREAM, 200, "tool_error"),
        (events({"jsonrpc": "2.0", "id": 2, "result": {}}), STREAM, 200, "upstream_error"),
        (events(NEWS, id="7"), STREAM, 200, "detached"),
        (events(result(text=LARGE, isError=True)), STREAM, 200, "tool_error"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("exposed", ["everything", "some"])
async def test_the_outcome_is_what_the_server_answered(
    gateway: World,
    script: ScriptedServer,
    http: httpx.AsyncClient,
    body: bytes,
    kind: str,
    status: int,
    outcome: str,
    exposed: str,
) -> None:
    script.answer = raw_answer(body, kind, status=status)
    expose = restricted("get_*") if exposed == "some" else None
    connection = gateway.connect(gateway.instance(script.port, surface=("get_time",)), expose=expose)
    answer = await http.post(connection.url, json=call("get_time"), headers=connection.headers)
    (record,) = await recorded(gateway, connection)
    assert record.outcome.value == outcome
    assert record.bytes_out == len(answer.content)


async def test_a_record_has_what_is_needed_and_no_argument(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    script.answer = json_answer(result(text=SECRET))
    connection = gateway.connect(gateway.instance(script.port))
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    parent = f"00-{trace}-00f067aa0ba902b7-01"
    headers = {
        **connection.headers,
        "MCP-Protocol-Version": "2025-06-18",
        "traceparent": parent,
        "tracestate": "vendor=x",
    }
    sent = json.dumps(call("t" * 300, {"text": SECRET})).encode()
    answer = await http.post(connection.url, content=sent, headers=headers)
    (record,) = await recorded(gateway, connection)
    assert record.tool == "t" * 256
    assert (record.bytes_in, record.bytes_out) == (len(sent), len(answer.content))
    assert (record.protocol_version, record.trace_id) == ("2025-06-18", trace)
    assert uuid.UUID(str(record.id)).version == 7 and 0 <= record.duration_ms < 10_000
    (seen,) = script.seen
    assert (seen.all("traceparent"), seen.all("tracestate")) == ([parent], ["vendor=x"])
    told = "".join(message.model_dump_json() for message in gateway.dtma.told)
    assert SECRET not in told and connection.token not in told
    assert SECRET not in gateway.log_text() and connection.token not in gateway.log_text()


async def test_a_trace_in_the_message_counts_where_the_header_has_none(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    script.answer = json_answer(result())
    connection = gateway.connect(gateway.instance(script.port))
    message = call("x")
    message["params"]["_meta"] = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    await http.post(connection.url, json=message, headers={**connection.headers, "traceparent": "nonsense"})
    (record,) = await recorded(gateway, connection)
    assert record.trace_id == "a" * 32
    assert script.seen[0].all("traceparent") == ["nonsense"], "passed on as it came"


async def test_a_refused_call_is_recorded_with_the_answer_that_it_got(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    connection = gateway.connect(gateway.instance(script.port, surface=("get_time",)), expose=restricted("get_*"))
    answer = await http.post(connection.url, json=call("drop_table"), headers=connection.headers)
    wrong = {**connection.headers, "Mcp-Method": "tools/list"}
    assert (await http.post(connection.url, json=call("get_time"), headers=wrong)).status_code == 400
    first, second = await recorded(gateway, connection, 2)
    assert {first.outcome.value, second.outcome.value} == {"denied"}
    denied = first if first.tool == "drop_table" else second
    assert denied.bytes_out == len(answer.content)
    assert script.seen == []


async def test_a_batch_has_a_record_for_each_call_and_its_bytes_once(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    script.answer = json_answer([{**result(), "id": 2}, {**result(isError=True), "id": 1}])
    connection = gateway.connect(gateway.instance(script.port))
    batch = [call("a", id=1), request("ping", id=3), call("b", id=2), call("c", id=4)]
    sent = json.dumps(batch).encode()
    answer = await http.post(connection.url, content=sent, headers=connection.headers)
    records = await recorded(gateway, connection, 3)
    outcomes = {record.tool: record.outcome.value for record in records}
    assert outcomes == {"a": "tool_error", "b": "ok", "c": "upstream_error"}
    assert (sum(r.bytes_in for r in records), sum(r.bytes_out for r in records)) == (len(sent), len(answer.content))


async def test_only_calls_with_a_valid_credential_are_recorded(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    connection = gateway.connect(gateway.instance(script.port))
    other = gateway.connect(gateway.instance(script.port))
    forged = {**connection.headers, "Authorization": "Bearer mtb_none"}
    assert (await http.post(connection.url, json=call("x"), headers=forged)).status_code == 401
    assert (await http.post(other.url, json=call("x"), headers=connection.headers)).status_code == 403
    await http.post(connection.url, json=request("tools/list"), headers=connection.headers)
    await http.post(connection.url, json={"jsonrpc": "2.0", "method": "notifications/x"}, headers=connection.headers)
    await http.post(connection.url, json=call("last"), headers=connection.headers)
    (record,) = await recorded(gateway, connection)
    assert record.tool == "last" and gateway.dtma.calls_of(other.uid) == []


async def test_refusals_are_counted_by_reason(gateway: World, http: httpx.AsyncClient) -> None:
    def count() -> int:
        batches = {(told.stream, told.batch): told for told in gateway.dtma.told}
        return sum(told.refusals.get("path", 0) for told in batches.values())

    before = count()
    for _ in range(3):
        assert (await http.get(f"{gateway.base}/nowhere")).status_code == 404
    await asyncio.to_thread(eventually, lambda: count() == before + 3, "refusals")


async def silent(_request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
    """Never answers."""
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_call_whose_client_hung_up_is_detached_once_it_ended(
    gateway: World, held: tuple[ScriptedServer, Held], http: httpx.AsyncClient
) -> None:
    script, switch = held
    connection = gateway.connect(gateway.instance(script.port))
    await hang_up(gateway, *await start(http, connection, script))
    assert gateway.dtma.calls_of(connection.uid) == [] and script.open == 1, "it runs on"
    switch.release()
    (record,) = await recorded(gateway, connection)
    assert record.outcome.value == "detached"


async def test_a_call_that_ends_with_its_client_s_connection_is_cancelled(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    script.answer = silent
    connection = gateway.connect(gateway.instance(script.port))
    await hang_up(gateway, *await start(http, connection, script, modern=True))
    (record,) = await recorded(gateway, connection)
    assert (record.outcome.value, record.protocol_version) == ("cancelled", MODERN)


@pytest.mark.parametrize("hangs_up", [False, True])
async def test_a_revoked_call_is_cancelled_whether_or_not_its_client_waits(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient, hangs_up: bool
) -> None:
    script.answer = silent
    connection = gateway.connect(gateway.instance(script.port))
    if hangs_up:
        await hang_up(gateway, *await start(http, connection, script))
        await asyncio.to_thread(gateway.revoke, connection)
    else:
        asking = asyncio.create_task(http.post(connection.url, json=call("x"), headers=connection.headers))
        await asyncio.to_thread(eventually, lambda: script.open == 1, "the call runs")
        await asyncio.to_thread(gateway.revoke, connection)
        assert (await asking).status_code == 401
    (record,) = await recorded(gateway, connection)
    assert record.outcome.value == "cancelled"


async def broken(request: web.BaseRequest, _seen: Seen) -> web.StreamResponse:
    """Begins an answer and breaks off."""
    response = web.StreamResponse(headers={"Content-Type": JSON, "Content-Length": "1000000"})
    await response.prepare(request)
    await response.write(b'{"jsonrpc":"2.0","id":1,"result":{' + b" " * 200_000)
    assert request.transport is not None
    request.transport.abort()
    return response


async def test_a_server_that_breaks_off_or_is_away_is_an_upstream_error(
    gateway: World, script: ScriptedServer, http: httpx.AsyncClient
) -> None:
    script.answer = broken
    connection = gateway.connect(gateway.instance(script.port))
    with pytest.raises(httpx.TransportError):
        await http.post(connection.url, json=call("x"), headers=connection.headers)
    gateway.change_instance(connection.instance, address=None, state="stopped")
    assert (await http.post(connection.url, json=call("x"), headers=connection.headers)).status_code == 503
    records = await recorded(gateway, connection, 2)
    assert {record.outcome.value for record in records} == {"upstream_error"}


async def test_a_real_server_s_answers_are_understood(
    gateway: World, everyday: RealServer, everyday_json: RealServer, http: httpx.AsyncClient
) -> None:
    for server in (everyday, everyday_json):
        session = await open_session(http, gateway.connect(gateway.instance(server.port)))
        await session.post(call("get_time"))
        await session.post(call("echo", {}))
        await session.post(call("no_such_tool"))
        records = await recorded(gateway, session.connection, 3)
        found = {record.tool: record.outcome.value for record in records}
        assert found["get_time"] == "ok"
        assert found["echo"] == "tool_error"
        assert found["no_such_tool"] in ("tool_error", "rpc_error")
        assert {record.protocol_version for record in records} == {"2025-11-25"}
