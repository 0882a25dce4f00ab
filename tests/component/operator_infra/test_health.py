"""What probes and Prometheus are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import aiohttp
import pytest

from localstack.kubernetes import kubeconfig
from localstack.ports import accepts, free_port
from support.async_poll import until
from toolbox_operator.__main__ import run
from toolbox_operator.health import Health, Servers
from toolbox_operator.metrics import Metrics
from toolbox_operator.runtime import Settings


@pytest.fixture
async def servers() -> AsyncGenerator[tuple[Health, Metrics, Servers]]:
    health, metrics = Health(), Metrics()
    async with Servers(health, metrics, host="127.0.0.1", health_port=0, metrics_port=0) as servers:
        yield health, metrics, servers


async def fetch(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status, await answer.text()


async def test_a_process_without_problems_is_well(servers: tuple[Health, Metrics, Servers]) -> None:
    _, _, server = servers
    assert await fetch(server.health_port, "/healthz") == (200, "ok\n")
    assert await fetch(server.health_port, "/readyz") == (200, "ok\n")


async def test_a_problem_is_named_where_it_is_looked_for(servers: tuple[Health, Metrics, Servers]) -> None:
    health, _, server = servers
    health.liveness("watch", lambda: "nothing came for 31 s")
    assert await fetch(server.health_port, "/healthz") == (503, "watch: nothing came for 31 s\n")
    assert (await fetch(server.health_port, "/readyz"))[0] == 503


async def test_a_process_that_is_not_started_yet_is_alive_but_not_ready(
    servers: tuple[Health, Metrics, Servers],
) -> None:
    health, _, server = servers
    health.readiness("started", lambda: "not yet")
    assert (await fetch(server.health_port, "/healthz"))[0] == 200
    assert await fetch(server.health_port, "/readyz") == (503, "started: not yet\n")


async def test_metrics_are_on_a_port_of_their_own(servers: tuple[Health, Metrics, Servers]) -> None:
    _, metrics, server = servers
    metrics.reconciled("Toolbox", "ok", 0.01)
    metrics.host_call("facts", "HostUnreachable")
    status, text = await fetch(server.metrics_port, "/metrics")
    assert status == 200
    assert 'magic_toolbox_reconcile_seconds_count{kind="Toolbox",outcome="ok"} 1.0' in text
    assert 'magic_toolbox_host_calls_total{call="facts",outcome="HostUnreachable"} 1.0' in text
    assert (await fetch(server.health_port, "/metrics"))[0] == 404


async def test_a_port_that_is_taken_leaves_no_server_behind(servers: tuple[Health, Metrics, Servers]) -> None:
    _, _, taken = servers
    second = Servers(Health(), Metrics(), host="127.0.0.1", health_port=0, metrics_port=taken.metrics_port)
    with pytest.raises(OSError, match="address already in use"):
        await second.__aenter__()
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.get(f"http://127.0.0.1:{second.health_port}/healthz")


async def test_a_process_whose_api_server_never_answered_is_not_ready(tmp_path: Path) -> None:
    config = tmp_path / "kubeconfig"
    config.write_text(kubeconfig(f"https://127.0.0.1:{free_port()}", "", "token"))
    port, stop = free_port(), asyncio.Event()
    settings = Settings(kubeconfig=config, identity="i", health_port=port, metrics_port=0, listen="")
    running = asyncio.create_task(run(settings, stop))
    try:
        await until("serving", lambda: accepts(port))
        assert await fetch(port, "/readyz") == (503, "api: the API server has not answered yet\n")
        assert await fetch(port, "/healthz") == (200, "ok\n")
    finally:
        stop.set()
    assert await running == 0
