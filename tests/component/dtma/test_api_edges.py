"""What the API refuses before it does anything, and how."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator

import httpx
import pytest

from support.dtma.host import FAST, DtmaHost, code_of, instance_body
from support.dtma.worker import ScriptedWorker, connected

pytestmark = pytest.mark.component

BEGUN = b"GET /v2/host HTTP/1.1\r\nHost: x\r\n"
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic dTpw"}])
@pytest.mark.parametrize("path", ["/v2/instances", "/v2/openapi.json", "/nothing"])
async def test_nothing_is_served_without_the_token(host: DtmaHost, path: str, header: dict[str, str]) -> None:
    async with host.client() as client:
        del client.headers["Authorization"]
        answer = await client.get(path, headers=header)
    assert code_of(answer) == "Unauthenticated"
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_health_and_metrics_are_open_on_loopback_whatever_a_proxy_header_says(host: DtmaHost, path: str) -> None:
    async with host.client() as client:
        del client.headers["Authorization"]
        assert (await client.get(path, headers={"X-Forwarded-For": "203.0.113.9"})).status_code == 200


async def test_a_client_that_does_not_know_the_authority_cannot_connect(host: DtmaHost) -> None:
    async with httpx.AsyncClient(verify=ssl.create_default_context()) as client:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await client.get(f"https://127.0.0.1:{host.port}/healthz")


async def test_an_unknown_path_and_method_are_problems_too(host: DtmaHost) -> None:
    async with host.client() as client:
        assert code_of(await client.get("/v2/nothing")) == "NotFound"
        answer = await client.post("/v2/instances")
        assert code_of(answer) == "MethodNotAllowed"
        assert "GET" in answer.headers["allow"]


async def test_a_body_over_a_mebibyte_is_refused_however_it_is_sent(host: DtmaHost) -> None:
    body = b'{"x":"' + b"a" * (1 << 20) + b'"}'

    async def chunks() -> AsyncGenerator[bytes]:
        for start in range(0, len(body), 1 << 16):
            yield body[start : start + (1 << 16)]

    async with host.client() as client:
        assert code_of(await client.put("/v2/instances/i-1", content=body, headers=JSON)) == "TooLarge"
        assert code_of(await client.put("/v2/instances/i-1", content=chunks(), headers=JSON)) == "TooLarge"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"uid": "\xff"}'])
async def test_a_body_that_is_not_an_instance_is_refused(host: DtmaHost, body: bytes) -> None:
    async with host.client() as client:
        assert code_of(await client.put("/v2/instances/i-1", content=body, headers=JSON)) == "Invalid"


@pytest.mark.parametrize("instance_id", ["a.b", "a b", "%2e%2e", "x" * 129])
async def test_an_id_that_could_be_a_path_is_refused(host: DtmaHost, instance_id: str) -> None:
    async with host.client() as client:
        assert code_of(await client.put(f"/v2/instances/{instance_id}", json=instance_body())) == "Invalid"


async def test_an_epoch_that_is_not_a_number_is_refused(host: DtmaHost) -> None:
    async with host.client() as client:
        answer = await client.put("/v2/instances/i-1", json=instance_body(), headers={"Toolbox-Epoch": "newest"})
    assert code_of(answer) == "Invalid"


async def test_state_that_cannot_be_written_is_an_internal_problem_and_changes_nothing(host: DtmaHost) -> None:
    folder = host.state_dir / "instances"
    aside = host.state_dir / "aside"
    folder.rename(aside)
    async with host.client() as client:
        answer = await client.put("/v2/instances/i-1", json=instance_body())
        assert code_of(answer) == "Internal"
        assert "No such file" in answer.json()["detail"]
        aside.rename(folder)
        assert code_of(await client.get("/v2/instances/i-1")) == "NotFound"
        assert (await client.put("/v2/instances/i-1", json=instance_body())).status_code == 202


async def test_requests_are_counted_by_route_template_and_status(host: DtmaHost) -> None:
    async with host.client() as client:
        await client.put("/v2/instances/i-1", json=instance_body())
        await client.get("/v2/instances/i-2")
        text = (await client.get("/metrics")).text
    assert 'dtma_requests_total{method="PUT",route="/v2/instances/{id}",status="202"} 1.0' in text
    assert 'dtma_requests_total{method="GET",route="/v2/instances/{id}",status="404"} 1.0' in text
    assert "dtma_certificate_expiry_seconds" in text
    assert sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("dtma_instances{")) == 1


async def test_the_configuration_reaches_workers_and_survives_a_restart(host: DtmaHost) -> None:
    config = {"gatewayURL": "https://tbx-1.example.com:30443", "allowedOrigins": ["https://ui.example.com"]}
    async with host.client() as client:
        assert (await client.put("/v2/host/config", json=config)).status_code == 204
        assert code_of(await client.put("/v2/host/config", json=config | {"issuers": ["x"]})) == "Invalid"
    await host.restart()
    async with connected(ScriptedWorker(), host.socket_path) as worker:
        assert worker.policy.config is not None
        assert worker.policy.config.gateway_url == "https://tbx-1.example.com:30443"
        assert len(worker.policy.keyring.keys[0].secret) == 43


@pytest.mark.parametrize(
    ("before", "begun"), [(b"", b""), (b"", BEGUN), (b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n", BEGUN)]
)
async def test_a_connection_that_does_not_finish_a_request_is_closed(
    host: DtmaHost, before: bytes, begun: bytes
) -> None:
    await host.stop()
    host.timings = FAST.model_copy(update={"request_head": 0.5})
    await host.start()
    trust = ssl.create_default_context(cafile=str(host.state_dir / "ca.crt"))
    reader, writer = await asyncio.open_connection("127.0.0.1", host.port, ssl=trust)
    writer.write(before)
    if before:
        await reader.readuntil(b'"ok"}')
    writer.write(begun)
    async with asyncio.timeout(20):
        await reader.read()
    writer.close()
