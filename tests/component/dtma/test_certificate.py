"""DTMA takes up a renewed certificate while callers are connected."""

from __future__ import annotations

import asyncio

import pytest

from support.dtma.host import FAST, DtmaHost, eventually
from support.pairs import EXPIRED, Authority, replace, serial, served_serial
from toolbox_dtma import pki

pytestmark = pytest.mark.component


async def metric(host: DtmaHost, name: str) -> float:
    async with host.client() as client:
        text = (await client.get("/metrics")).text
    (line,) = [line for line in text.splitlines() if line.startswith(name + " ")]
    return float(line.split()[1])


async def test_new_connections_get_the_new_certificate_and_open_ones_stay(host: DtmaHost) -> None:
    await host.stop()
    host.timings = FAST.model_copy(update={"certificate_poll": 0.05})
    await host.start()
    certificate, key = host.state_dir / "tls.crt", host.state_dir / "tls.key"
    before = certificate.read_bytes()
    authority = pki.KeyPair((host.state_dir / "ca.crt").read_bytes(), (host.state_dir / "ca.key").read_bytes())
    renewed = Authority(authority).issue()

    async def served() -> int:
        return await asyncio.to_thread(served_serial, host.port)

    assert await served() == serial(before)
    async with host.client() as client, client.stream("GET", "/v2/events") as events:
        lines = events.aiter_lines()
        await anext(lines)
        replace(key, renewed.key)
        replace(certificate, renewed.certificate)
        await eventually(served, lambda found: found == serial(renewed.certificate), "the new one is served", 15)
        assert await anext(lines) is not None, "the stream of before goes on"

    expiry = pki.expiry(renewed.certificate).timestamp()
    assert await metric(host, "dtma_certificate_expiry_seconds") == expiry
    assert await metric(host, "dtma_certificate_refused") == 0

    expired = Authority(authority).issue(EXPIRED)
    replace(key, expired.key)
    replace(certificate, expired.certificate)

    async def refused() -> float:
        return await metric(host, "dtma_certificate_refused")

    await eventually(refused, bool, "the expired one is refused", 15)
    assert await served() == serial(renewed.certificate)
    assert await metric(host, "dtma_certificate_expiry_seconds") == expiry
