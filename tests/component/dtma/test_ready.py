"""From a started container to Ready and back, through a gateway worker's probes."""

from __future__ import annotations

from typing import Any

import pytest

from support.dtma.host import DtmaHost, eventually, instance_body
from support.dtma.worker import ScriptedWorker, connected, fails, works
from toolbox_dtma.link.messages import Surface
from toolbox_dtma.wire import InstancePhase, InstanceReason

pytestmark = pytest.mark.component


async def put(host: DtmaHost, **changes: Any) -> None:
    async with host.client() as client:
        (await client.put("/v2/instances/i-1", json=instance_body(**changes))).raise_for_status()


async def observed(host: DtmaHost) -> dict[str, Any]:
    async with host.client() as client:
        return (await client.get("/v2/instances/i-1")).json()["observed"]


async def reached(host: DtmaHost, phase: str, reason: str | None = None) -> dict[str, Any]:
    return await eventually(
        lambda: observed(host),
        lambda seen: seen["phase"] == phase and reason in (None, seen["reason"]),
        f"{phase}/{reason}",
    )


async def test_an_instance_is_ready_after_a_probe_of_its_container(host: DtmaHost) -> None:
    await put(host)
    assert (await observed(host))["phase"] in ("Pending", "Starting")
    async with connected(ScriptedWorker(probes=works("get_time", "set_time")), host.socket_path) as worker:
        ready = await reached(host, "Ready")
        assert (ready["generation"], ready["inputsHash"]) == (1, "0" * 64)
        assert [tool["name"] for tool in ready["probe"]["tools"]] == ["get_time", "set_time"]
        route = worker.policy.instances["i-1"]
        assert (route.address, route.port, route.path, route.state) == ("127.0.0.1", 3001, "/mcp", "running")
        assert route.surface == Surface(tools=("get_time", "set_time"))


async def test_a_container_that_never_listens_becomes_an_error_and_recovers(host: DtmaHost) -> None:
    async with connected(ScriptedWorker(probes=fails("connection refused", refused=True)), host.socket_path) as worker:
        with host.timed(probe_start_deadline=0.6):
            await put(host)
            error = await reached(host, "Error", "PortNotListening")
            assert error["message"] == "connection refused"
            worker.probes = fails("it speaks no MCP")
            await reached(host, "Error", "ProbeFailed")
        worker.probes = works("get_time")
        await reached(host, "Ready")


async def test_a_ready_instance_that_stops_answering_becomes_an_error(host: DtmaHost, worker: ScriptedWorker) -> None:
    await put(host)
    await reached(host, "Ready")
    worker.probes = fails("it hangs")
    error = await reached(host, "Error", "ProbeFailed")
    assert error["message"] == "it hangs"
    assert error["probe"]["ok"] is False


async def test_a_new_container_start_has_to_be_probed_again(host: DtmaHost, worker: ScriptedWorker) -> None:
    await put(host)
    await reached(host, "Ready")
    before = worker.policy.instances["i-1"]
    worker.probes = fails("not yet")
    incarnation = host.engine.restart("i-1")
    assert (await observed(host))["phase"] == "Starting"
    worker.probes = works("get_time")
    await reached(host, "Ready")
    after = worker.policy.instances["i-1"]
    assert before.incarnation != after.incarnation == incarnation


async def test_a_change_of_expose_alone_neither_restarts_nor_probes_anew(
    host: DtmaHost, worker: ScriptedWorker
) -> None:
    with host.timed(probe_interval=60.0):
        await put(host)
        await reached(host, "Ready")
        incarnation = host.engine.containers["i-1"]
        worker.probes = fails("must not matter yet")
        await put(host, generation=2, expose={"tools": {"allow": ["get_*"], "deny": []}})
        now = await observed(host)
    assert (now["phase"], now["generation"]) == ("Ready", 2)
    assert host.engine.containers["i-1"] == incarnation


async def test_a_stopped_instance_is_not_reachable_and_not_probed(host: DtmaHost, worker: ScriptedWorker) -> None:
    await put(host)
    await reached(host, "Ready")
    await put(host, generation=2, state="Stopped")
    await reached(host, "Stopped")
    assert worker.policy.instances["i-1"].state == "stopped"
    assert worker.policy.instances["i-1"].address is None
    await put(host, generation=3)
    await reached(host, "Ready")


async def test_what_the_engine_says_of_a_failure_is_reported(host: DtmaHost, worker: ScriptedWorker) -> None:
    host.engine.runs = False
    await put(host)
    host.engine.show("i-1", phase=InstancePhase.ERROR, reason=InstanceReason.IMAGE_NOT_FOUND, message="no such image")
    error = await reached(host, "Error", "ImageNotFound")
    assert error["message"] == "no such image"


async def test_a_restart_of_the_host_alone_leaves_ready_instances_ready(host: DtmaHost) -> None:
    async with connected(ScriptedWorker(), host.socket_path):
        await put(host)
        await reached(host, "Ready")
    await host.restart()
    # Nobody could have probed it since: this is what was remembered for the same container start.
    assert (await observed(host))["phase"] == "Ready"


async def test_a_container_that_restarted_meanwhile_is_probed_before_it_is_ready(host: DtmaHost) -> None:
    async with connected(ScriptedWorker(), host.socket_path):
        await put(host)
        await reached(host, "Ready")
    await host.stop()
    host.engine.containers["i-1"] = "another-start"
    await host.start()
    assert (await observed(host))["phase"] == "Starting"


async def test_workers_keep_the_last_route_while_the_engine_is_away_at_the_start(host: DtmaHost) -> None:
    async with connected(ScriptedWorker(), host.socket_path):
        await put(host)
        await reached(host, "Ready")
    await host.stop()
    host.engine.runs = False
    await host.start()
    assert (await observed(host))["phase"] == "Pending"
    async with connected(ScriptedWorker(), host.socket_path) as worker:
        route = worker.policy.instances["i-1"]
        assert (route.state, route.address, route.surface) == (
            "running",
            "127.0.0.1",
            Surface(tools=("get_time",)),
        )
