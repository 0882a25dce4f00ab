"""Instances of the SSE transport through the whole of DTMA: API, policy, probes, sessions; the broker is scripted."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import pytest_asyncio

from support.dtma.host import DtmaHost, eventually, grant_body, observed, ready, sse_body
from support.dtma.sessions import ScriptedBroker, until
from support.dtma.worker import ScriptedWorker, fails, works
from toolbox_dtma.link.broker import Ended, Refused, SessionEnded, Upstream
from toolbox_dtma.link.messages import InstanceRoute, ProbeRequest, ProbeResult

pytestmark = pytest.mark.component

HERE = Upstream(address="127.0.0.1", port=3001, path="/sse")


async def put(api: httpx.AsyncClient, **changes: Any) -> None:
    (await api.put("/v2/instances/i-1", json=sse_body(**changes))).raise_for_status()


def route(worker: ScriptedWorker) -> InstanceRoute:
    return worker.policy.instances["i-1"]


@pytest_asyncio.fixture
async def broker(host: DtmaHost, worker: ScriptedWorker, api: httpx.AsyncClient) -> ScriptedBroker:
    """The broker of a host with one ready instance, and a connection that may use it."""
    del worker
    await put(api)
    await ready(api)
    (await api.put("/v2/grants/c-1", json=grant_body(name="c-1"))).raise_for_status()
    return await host.brokers.nth(1)


async def test_an_sse_instance_is_ready_after_a_probe_through_the_broker_and_agents_reach_it_there(
    host: DtmaHost, worker: ScriptedWorker, api: httpx.AsyncClient
) -> None:
    asked: list[ProbeRequest] = []

    def answer(request: ProbeRequest) -> ProbeResult | None:
        asked.append(request)
        return works("get_time")(request)

    worker.probes = answer
    await put(api)
    seen = await ready(api)
    # A container stands, and none is made for a session.
    assert seen["sessions"] is None and not host.engine.made and host.engine.containers
    request = asked[0]
    assert (request.address, request.port, request.path) == ("", 0, "/instances/i-1/mcp")
    assert request.bridge == str(host.folder / "run" / "broker.sock") and request.ticket
    # No process is started for it.
    assert request.start == 0
    reached = route(worker)
    assert (reached.state, reached.address, reached.port) == ("running", None, 0)
    assert (reached.path, reached.bridge) == (request.path, request.bridge)
    assert reached.surface is not None and reached.surface.tools == ("get_time",)
    # Like any other that stands, it is asked again and again.
    await until(lambda: len(asked) >= 3, "further probes")
    assert len({request.ticket for request in asked}) == len(asked)


async def test_a_session_goes_to_the_container_until_its_connection_is_revoked(
    host: DtmaHost, broker: ScriptedBroker, api: httpx.AsyncClient
) -> None:
    session = await broker.opened("i-1", "c-1")
    assert broker.upstreams[session] == HERE
    assert b"dtma_sessions 1.0" in (await api.get("/metrics")).content
    where = {"namespace": "team-a", "name": "c-1"}
    (await api.delete("/v2/grants/c-1", params=where)).raise_for_status()
    ended = await broker.heard()
    assert isinstance(ended, SessionEnded) and (ended.session, ended.why) == (session, Ended.REVOKED)
    assert (await broker.refused("i-1", "c-1")).why is Refused.UNKNOWN
    assert not host.engine.made


async def test_another_start_of_the_container_ends_sessions_and_is_another_incarnation(
    host: DtmaHost, worker: ScriptedWorker, broker: ScriptedBroker, api: httpx.AsyncClient
) -> None:
    session, before = await broker.opened("i-1", "c-1"), route(worker).incarnation
    host.engine.restart("i-1")
    ended = await broker.heard()
    assert isinstance(ended, SessionEnded) and (ended.session, ended.why) == (session, Ended.STOPPED)
    await until(lambda: route(worker).incarnation != before, "a new route")
    await ready(api)
    await broker.opened("i-1", "c-1")


async def test_another_path_ends_sessions_although_the_container_stays(
    worker: ScriptedWorker, broker: ScriptedBroker, api: httpx.AsyncClient
) -> None:
    session, before = await broker.opened("i-1", "c-1"), route(worker).incarnation
    await put(api, generation=2, path="/events")
    ended = await broker.heard()
    assert isinstance(ended, SessionEnded) and (ended.session, ended.why) == (session, Ended.STOPPED)
    await until(lambda: route(worker).incarnation != before, "a new route")
    assert broker.upstreams[await broker.opened("i-1", "c-1")] == HERE.model_copy(update={"path": "/events"})


async def test_stopping_ends_sessions_and_starting_again_takes_new_ids(
    worker: ScriptedWorker, broker: ScriptedBroker, api: httpx.AsyncClient
) -> None:
    session, before = await broker.opened("i-1", "c-1"), route(worker).incarnation
    await put(api, generation=2, state="Stopped")
    ended = await broker.heard()
    assert isinstance(ended, SessionEnded) and (ended.session, ended.why) == (session, Ended.STOPPED)
    await until(lambda: route(worker).state == "stopped", "the route to be withdrawn")
    assert route(worker).bridge and route(worker).port == 0
    assert (await broker.refused("i-1", "c-1")).why is Refused.STOPPED
    await put(api, generation=3)
    await ready(api)
    assert route(worker).incarnation != before
    await broker.opened("i-1", "c-1")


async def test_a_broker_that_dies_is_replaced_and_its_sessions_are_gone(
    host: DtmaHost, worker: ScriptedWorker, broker: ScriptedBroker, api: httpx.AsyncClient
) -> None:
    await broker.opened("i-1", "c-1")
    before = route(worker).incarnation
    broker.kill()
    second = await host.brokers.nth(2)
    await until(lambda: route(worker).state == "running" and route(worker).incarnation != before, "a new route")
    await ready(api)
    await second.opened("i-1", "c-1")


async def test_a_host_whose_broker_cannot_be_started_says_so(
    host: DtmaHost, worker: ScriptedWorker, api: httpx.AsyncClient
) -> None:
    host.brokers.failure = PermissionError(1, "Operation not permitted")
    with host.timed(probe_start_deadline=0.6):
        await put(api)
        seen = await eventually(lambda: observed(api), lambda o: o["phase"] == "Error", "an error")
    assert seen["reason"] == "ProbeFailed" and "session broker" in seen["message"]
    assert worker.probed == 0 and route(worker).state == "unavailable"
    host.brokers.failure = None
    await ready(api)


async def test_a_server_that_does_not_answer_is_starting_first_and_then_in_error(
    host: DtmaHost, worker: ScriptedWorker, api: httpx.AsyncClient
) -> None:
    worker.probes = fails("MCPError: The server answered GET /sse with HTTP 404")
    await put(api)
    seen = await eventually(lambda: observed(api), lambda o: "HTTP 404" in o["message"], "what the probe found")
    assert seen["phase"] == "Starting"
    with host.timed(probe_start_deadline=0.1):
        seen = await eventually(lambda: observed(api), lambda o: o["phase"] == "Error", "an error")
    assert seen["reason"] == "ProbeFailed" and "HTTP 404" in seen["message"]


async def test_a_removed_instance_takes_its_sessions_along(
    host: DtmaHost, broker: ScriptedBroker, api: httpx.AsyncClient
) -> None:
    session = await broker.opened("i-1", "c-1")
    where = {"uid": "uid-1", "namespace": "team-a", "name": "time"}
    (await api.delete("/v2/instances/i-1", params=where)).raise_for_status()
    ended = await broker.heard()
    assert isinstance(ended, SessionEnded) and (ended.session, ended.why) == (session, Ended.STOPPED)
    assert host.engine.removed == ["i-1"]
    assert (await broker.refused("i-1", "c-1")).why is Refused.UNKNOWN


async def test_after_a_restart_of_dtma_sessions_can_be_opened_also_while_docker_is_away(
    host: DtmaHost, broker: ScriptedBroker
) -> None:
    del broker
    await host.stop()
    host.engine.runs = False
    await host.start()
    second = await host.brokers.nth(2)
    async with host.client() as again:
        assert (await observed(again))["phase"] == "Pending"
    assert second.upstreams[await second.opened("i-1", "c-1")] == HERE


async def test_its_container_has_logs(host: DtmaHost, broker: ScriptedBroker, api: httpx.AsyncClient) -> None:
    del broker
    host.engine.log_lines["i-1"] = [b"listening\n"]
    assert (await api.get("/v2/instances/i-1/logs")).content == b"listening\n"


async def test_sessions_are_for_stdio_only(host: DtmaHost, api: httpx.AsyncClient) -> None:
    del host
    answer = await api.put("/v2/instances/i-1", json=sse_body(sessions={"maxSessions": 3, "idleSeconds": 60.0}))
    assert answer.status_code == 422 and "no sessions" in answer.text
