"""Stdio instances through the whole of DTMA: API, policy, probes and sessions; engine and broker are scripted."""

from __future__ import annotations

import itertools
import stat
import time
from typing import Any

import httpx
import pytest
import pytest_asyncio

from support.dtma.host import DtmaHost, code_of, eventually, grant_body, instance_body, observed, ready, stdio_body
from support.dtma.sessions import ScriptedBroker, until
from support.dtma.worker import ScriptedWorker, fails, works
from toolbox_dtma.engine.api import SessionExit
from toolbox_dtma.engine.failures import Failure
from toolbox_dtma.link.broker import Ended, Refused, SessionEnded
from toolbox_dtma.link.messages import InstanceRoute, ProbeRequest, ProbeResult
from toolbox_dtma.wire import InstanceReason, ProbeReport

pytestmark = pytest.mark.component


async def put(api: httpx.AsyncClient, **changes: Any) -> None:
    (await api.put("/v2/instances/i-1", json=stdio_body(**changes))).raise_for_status()


async def granted(api: httpx.AsyncClient, uid: str = "c-1") -> None:
    (await api.put(f"/v2/grants/{uid}", json=grant_body(name=uid))).raise_for_status()


def route(worker: ScriptedWorker) -> InstanceRoute:
    return worker.policy.instances["i-1"]


@pytest_asyncio.fixture
async def broker(host: DtmaHost, worker: ScriptedWorker, api: httpx.AsyncClient) -> ScriptedBroker:
    """The broker of a host with one ready stdio instance, and a connection that may use it."""
    del worker
    await put(api)
    await ready(api)
    await granted(api)
    return await host.brokers.nth(1)


async def test_a_stdio_instance_is_ready_after_a_probe_in_a_session_of_its_own(
    host: DtmaHost, worker: ScriptedWorker, api: httpx.AsyncClient
) -> None:
    asked: list[ProbeRequest] = []

    def answer(request: ProbeRequest) -> ProbeResult | None:
        asked.append(request)
        return works("get_time")(request)

    worker.probes = answer
    await put(api)
    seen = await ready(api)
    assert seen["container"] is None and seen["sessions"] == {"open": 0, "max": 3}
    (request,) = asked
    assert (request.address, request.port, request.path) == ("", 0, "/instances/i-1/mcp")
    assert request.bridge == str(host.folder / "run" / "broker.sock") and request.ticket
    assert request.start == host.timings.probe_session_start
    await until(lambda: not host.engine.processes, "the probe's process to go")
    reached = route(worker)
    assert (reached.state, reached.address, reached.port) == ("running", None, 0)
    assert (reached.path, reached.bridge) == (request.path, request.bridge)
    assert reached.surface is not None and reached.surface.tools == ("get_time",)


async def test_servers_that_take_long_to_start_a_process_keep_no_other_kind_waiting(
    host: DtmaHost, worker: ScriptedWorker, api: httpx.AsyncClient
) -> None:
    waiting: set[str] = set()

    def answer(request: ProbeRequest) -> ProbeResult | None:
        if request.bridge is None:
            return works("get_time")(request)
        waiting.add(request.path)
        return None

    worker.probes = answer
    for n in range(host.timings.probe_concurrency + 1):
        (
            await api.put(f"/v2/instances/slow-{n}", json=stdio_body(uid=f"slow-{n}", name=f"slow-{n}"))
        ).raise_for_status()
    await until(lambda: len(waiting) == host.timings.probe_concurrency, "all probes of sessions run")
    (await api.put("/v2/instances/stands", json=instance_body(uid="stands", name="stands"))).raise_for_status()
    await ready(api, "stands")
    assert len(waiting) == host.timings.probe_concurrency


async def test_the_brokers_socket_is_for_the_gateways_group_only(host: DtmaHost, broker: ScriptedBroker) -> None:
    del broker
    found = (host.folder / "run" / "broker.sock").stat()
    assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o660


async def test_a_host_without_stdio_instances_has_no_broker(
    host: DtmaHost, worker: ScriptedWorker, api: httpx.AsyncClient
) -> None:
    del worker
    (await api.put("/v2/instances/i-1", json=instance_body())).raise_for_status()
    assert (await ready(api))["sessions"] is None
    assert not host.brokers.started and not (host.folder / "run" / "broker.sock").exists()


async def test_a_revoked_connection_loses_its_sessions_before_the_answer(
    host: DtmaHost, broker: ScriptedBroker, api: httpx.AsyncClient
) -> None:
    session = await broker.opened("i-1", "c-1")
    where = {"namespace": "team-a", "name": "c-1"}
    (await api.delete("/v2/grants/c-1", params=where)).raise_for_status()
    assert host.engine.ended[-1] == (session, 0), "without a grace that anybody would wait for"
    ended = await broker.heard()
    assert isinstance(ended, SessionEnded) and (ended.session, ended.why) == (session, Ended.REVOKED)
    assert (await broker.refused("i-1", "c-1")).why is Refused.UNKNOWN


async def test_stopping_ends_sessions_and_starting_again_needs_a_probe_and_takes_new_ids(
    host: DtmaHost, worker: ScriptedWorker, broker: ScriptedBroker, api: httpx.AsyncClient
) -> None:
    session = await broker.opened("i-1", "c-1")
    before, probed = route(worker).incarnation, worker.probed
    await put(api, generation=2, state="Stopped")
    ended = await broker.heard()
    assert isinstance(ended, SessionEnded) and (ended.session, ended.why) == (session, Ended.STOPPED)
    assert (await observed(api))["phase"] == "Stopped"
    await until(lambda: route(worker).state == "stopped", "the route to be withdrawn")
    assert (await broker.refused("i-1", "c-1")).why is Refused.STOPPED
    # What the engine deploys is the very same as before.
    host.engine.runs = False
    await put(api, generation=3)
    host.engine.containers["i-1"] = host.engine.deployed["i-1"] = "start-1"
    host.engine.show("i-1")
    await ready(api)
    assert worker.probed == probed + 1
    await until(lambda: route(worker).incarnation != before, "a new route")
    await broker.opened("i-1", "c-1")


async def test_a_new_deployment_ends_sessions_and_a_wider_limit_does_not(
    host: DtmaHost, worker: ScriptedWorker, broker: ScriptedBroker, api: httpx.AsyncClient
) -> None:
    session = await broker.opened("i-1", "c-1")
    before = route(worker).incarnation
    await put(api, generation=2, sessions={"maxSessions": 5, "idleSeconds": 60.0})
    seen = await eventually(lambda: observed(api), lambda o: o["sessions"]["max"] == 5, "the new limit")
    assert seen["phase"] == "Ready" and session in host.engine.processes and route(worker).incarnation == before
    host.engine.restart("i-1")
    ended = await broker.heard()
    assert isinstance(ended, SessionEnded) and (ended.session, ended.why) == (session, Ended.STOPPED)
    await until(lambda: route(worker).incarnation != before, "a new route")


async def test_a_broker_that_dies_is_replaced_and_its_sessions_are_gone(
    host: DtmaHost, worker: ScriptedWorker, broker: ScriptedBroker, api: httpx.AsyncClient
) -> None:
    session = await broker.opened("i-1", "c-1")
    before, probed = route(worker).incarnation, worker.probed
    host.brokers.ready = False
    broker.kill()
    await until(lambda: route(worker).state == "unavailable", "the route to be withdrawn")
    assert session not in host.engine.processes
    second = await host.brokers.nth(2)
    second.say_ready()
    await until(lambda: route(worker).state == "running" and route(worker).incarnation != before, "a new route")
    await until(lambda: worker.probed > probed, "a probe through the new broker")
    assert (await ready(api))["phase"] == "Ready"
    await second.opened("i-1", "c-1")


async def test_a_broker_that_says_nonsense_is_replaced(host: DtmaHost, broker: ScriptedBroker) -> None:
    broker.control.send(b'{"kind": "open"}')
    assert (await host.brokers.nth(2)).pid
    assert broker.closed


async def test_a_host_whose_broker_cannot_be_started_says_so_of_its_stdio_servers(
    host: DtmaHost, worker: ScriptedWorker, api: httpx.AsyncClient
) -> None:
    host.brokers.failure = PermissionError(1, "Operation not permitted")
    await put(api)
    seen = await eventually(lambda: observed(api), lambda o: o["phase"] == "Error", "an error")
    assert seen["reason"] == "ProbeFailed" and "session broker" in seen["message"]
    assert worker.probed == 0 and route(worker).state == "unavailable"
    host.brokers.failure = None
    await ready(api)


@pytest.mark.parametrize(
    ("exit_", "reason", "words"),
    [
        (SessionExit(3), "ContainerExited", "code 3"),
        (SessionExit(127), "StartFailed", "spec.command"),
        (SessionExit(137, out_of_memory=True), "OutOfMemory", "memory"),
        (None, "ProbeFailed", "it speaks no MCP"),
    ],
)
async def test_a_server_that_fails_its_probe_is_in_error_at_once_with_what_its_process_did(
    host: DtmaHost, worker: ScriptedWorker, api: httpx.AsyncClient, exit_: SessionExit | None, reason: str, words: str
) -> None:
    def answer(request: ProbeRequest) -> ProbeResult | None:
        (session,) = host.engine.processes
        if exit_ is not None:
            host.engine.exit(session, exit_)
        return fails("it speaks no MCP")(request)

    worker.probes = answer
    await put(api)
    seen = await eventually(lambda: observed(api), lambda o: o["phase"] == "Error", "an error")
    assert seen["reason"] == reason and words in seen["message"] and seen["probe"]["ok"] is False
    await until(lambda: not host.engine.processes, "the probe's process to go")
    worker.probes = works("get_time")
    await ready(api)


async def test_a_container_that_cannot_be_made_is_what_is_reported(
    host: DtmaHost, worker: ScriptedWorker, api: httpx.AsyncClient
) -> None:
    host.engine.failure = Failure(InstanceReason.CREATE_FAILED, "Docker refused to create the container: no")
    await put(api)
    seen = await eventually(lambda: observed(api), lambda o: o["phase"] == "Error", "an error")
    assert (seen["reason"], worker.probed) == ("CreateFailed", 0) and "Docker refused" in seen["message"]
    host.engine.failure = None
    await ready(api)


async def test_failed_probes_of_a_server_come_ever_less_often(
    host: DtmaHost, worker: ScriptedWorker, api: httpx.AsyncClient
) -> None:
    times: list[float] = []

    def answer(request: ProbeRequest) -> ProbeResult | None:
        times.append(time.monotonic())
        return ProbeResult(probe=request.probe, report=ProbeReport(ok=False, message="no"))

    worker.probes = answer
    await put(api)
    await until(lambda: len(times) >= 4, "four probes")
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    first = host.timings.probe_session_retry
    assert gaps[0] >= first and gaps[1] >= 2 * first and gaps[2] >= 4 * first


async def test_the_number_of_sessions_is_reported(
    host: DtmaHost, broker: ScriptedBroker, api: httpx.AsyncClient
) -> None:
    sessions = [await broker.opened("i-1", "c-1") for _ in range(3)]
    await eventually(lambda: observed(api), lambda o: o["sessions"] == {"open": 3, "max": 3}, "three")
    assert b"dtma_sessions 3.0" in (await api.get("/metrics")).content
    for session in sessions:
        broker.let_go(session)
    await eventually(lambda: observed(api), lambda o: o["sessions"] == {"open": 0, "max": 3}, "none")


async def test_a_removed_instance_takes_its_sessions_along(
    host: DtmaHost, broker: ScriptedBroker, api: httpx.AsyncClient
) -> None:
    session = await broker.opened("i-1", "c-1")
    where = {"uid": "uid-1", "namespace": "team-a", "name": "time"}
    (await api.delete("/v2/instances/i-1", params=where)).raise_for_status()
    ended = await broker.heard()
    assert isinstance(ended, SessionEnded) and (ended.session, ended.why) == (session, Ended.STOPPED)
    assert not host.engine.processes
    assert (await broker.refused("i-1", "c-1")).why is Refused.UNKNOWN


async def test_a_restart_of_dtma_is_ready_at_once_with_nothing_of_the_sessions_before(
    host: DtmaHost, worker: ScriptedWorker, broker: ScriptedBroker, api: httpx.AsyncClient
) -> None:
    await broker.opened("i-1", "c-1")
    probed = worker.probed
    await host.stop()
    assert not host.engine.processes and not (host.folder / "run" / "broker.sock").exists()
    await host.start()
    async with host.client() as again:
        seen = await observed(again)
    assert seen["phase"] == "Ready" and seen["sessions"] == {"open": 0, "max": 3} and worker.probed == probed
    assert await host.brokers.nth(2)


async def test_a_stdio_server_has_no_logs_and_says_why(broker: ScriptedBroker, api: httpx.AsyncClient) -> None:
    del broker
    answer = await api.get("/v2/instances/i-1/logs")
    assert code_of(answer) == "NotFound" and "stdio" in answer.json()["detail"]
