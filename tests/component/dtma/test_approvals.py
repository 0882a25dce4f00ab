"""Approved tools on a host: learned from the probe, kept on disk, and handed to the workers."""

from __future__ import annotations

import hashlib
import json
import stat
from typing import Any

import pytest

from support.dtma.host import DtmaHost, eventually, grant_body, instance_body
from support.dtma.worker import Answer, ScriptedWorker, connected
from toolbox_dtma.link.messages import InstanceRoute, ProbeRequest, ProbeResult, Surface
from toolbox_dtma.wire import ProbeReport, ToolSummary

pytestmark = pytest.mark.component


def pin_of(**tools: str) -> str:
    """The hash of a surface, as if a worker had made it."""
    return f"sha256:{hashlib.sha256(json.dumps(sorted(tools.items())).encode()).hexdigest()}"


def shows(**tools: str) -> Answer:
    """Every probe finds these tools, defined by these words."""

    def answer(request: ProbeRequest) -> ProbeResult:
        report = ProbeReport(
            ok=True,
            tools=tuple(ToolSummary(name=name) for name in tools),
            tools_total=len(tools),
            tools_hash=pin_of(**tools),
        )
        hashes = tuple(f"sha256:{name}-{words}" for name, words in tools.items())
        return ProbeResult(probe=request.probe, report=report, surface=Surface(tools=tuple(tools), hashes=hashes))

    return answer


OLD, NEW = {"a": "1", "b": "1"}, {"a": "1", "b": "2"}
PIN, NEW_PIN = pin_of(**OLD), pin_of(**NEW)


async def put(host: DtmaHost, pin: str | None, generation: int = 1) -> None:
    body = instance_body(generation=generation, expose={"approvedHash": pin})
    async with host.client() as client:
        (await client.put("/v2/instances/i-1", json=body)).raise_for_status()


async def grant(host: DtmaHost, pin: str | None, generation: int = 1, **more: Any) -> None:
    body = grant_body(generation=generation, serverExpose={"approvedHash": pin}, **more)
    async with host.client() as client:
        (await client.put("/v2/grants/g-1", json=body)).raise_for_status()


async def approval(host: DtmaHost) -> dict[str, Any] | None:
    async with host.client() as client:
        return (await client.get("/v2/instances/i-1")).json()["observed"]["approval"]


async def approved(host: DtmaHost, **wanted: Any) -> dict[str, Any]:
    def good(found: dict[str, Any] | None) -> bool:
        return found is not None and all(found[name] == value for name, value in wanted.items())

    found = await eventually(lambda: approval(host), good, f"an approval with {wanted}")
    assert found is not None
    return found


async def route(worker: ScriptedWorker, places: dict[str, tuple[int, ...]]) -> InstanceRoute:
    async def look() -> InstanceRoute | None:
        return worker.policy.instances.get("i-1")

    found = await eventually(look, lambda r: r is not None and r.approvals == places, f"approvals {places}")
    assert found is not None
    return found


async def test_what_a_pin_approves_is_handed_to_the_workers_and_reported(host: DtmaHost) -> None:
    async with connected(ScriptedWorker(probes=shows(**OLD)), host.socket_path) as worker:
        await put(host, PIN)
        assert await approved(host, known=True) == {"hash": PIN, "known": True, "hidden": [], "hiddenTotal": 0}
        assert (await route(worker, {PIN: (0, 1)})).surface is not None
        worker.probes = shows(**NEW)
        assert (await approved(host, hiddenTotal=1))["hidden"] == ["b"]
        await route(worker, {PIN: (0,)})


async def test_a_pin_of_nothing_known_approves_nothing_until_its_surface_is_seen(host: DtmaHost) -> None:
    async with connected(ScriptedWorker(probes=shows(**OLD)), host.socket_path) as worker:
        await put(host, NEW_PIN)
        assert (await approved(host, known=False))["hidden"] == ["a", "b"]
        await route(worker, {NEW_PIN: ()})
        worker.probes = shows(**NEW)
        await approved(host, known=True, hiddenTotal=0)
        await route(worker, {NEW_PIN: (0, 1)})


async def test_approvals_outlive_restarts_and_the_surface_that_they_were_learned_from(host: DtmaHost) -> None:
    async with connected(ScriptedWorker(probes=shows(**OLD)), host.socket_path):
        await put(host, PIN)
        await approved(host, known=True)
        path = host.state_dir / "approvals" / "i-1.json"

        async def written() -> bool:
            return path.exists()

        await eventually(written, bool, "approvals on disk")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    host.engine.restart("i-1")
    await host.restart()
    async with connected(ScriptedWorker(probes=shows(**NEW)), host.socket_path) as worker:
        assert (await approved(host, known=True, hiddenTotal=1))["hidden"] == ["b"]
        await route(worker, {PIN: (0,)})


async def test_the_admin_accepts_the_new_hash_and_may_go_back(host: DtmaHost) -> None:
    async with connected(ScriptedWorker(probes=shows(**OLD)), host.socket_path) as worker:
        await put(host, PIN)
        await approved(host, known=True)
        await grant(host, PIN)
        worker.probes = shows(**NEW)
        await approved(host, hiddenTotal=1)
        await put(host, NEW_PIN, generation=2)
        assert (await approved(host, hash=NEW_PIN))["hidden"] == []
        # The grant carries the old one until it is put again.
        await route(worker, {NEW_PIN: (0, 1), PIN: (0,)})
        await grant(host, NEW_PIN, generation=2)
        await put(host, PIN, generation=3)
        assert (await approved(host, hash=PIN))["hidden"] == ["b"]


async def test_without_a_pin_nothing_is_said_or_kept(host: DtmaHost) -> None:
    async with connected(ScriptedWorker(probes=shows(**OLD)), host.socket_path) as worker:
        await put(host, None)
        await route(worker, {})

        async def probed() -> int:
            return worker.probed

        await eventually(probed, lambda n: n > 2, "probed some times")
        assert await approval(host) is None
        assert list((host.state_dir / "approvals").iterdir()) == []


async def test_approvals_go_with_their_instance(host: DtmaHost) -> None:
    async with connected(ScriptedWorker(probes=shows(**OLD)), host.socket_path):
        await put(host, PIN)
        await approved(host, known=True)
        params = {"uid": "uid-1", "namespace": "team-a", "name": "time"}
        async with host.client() as client:
            (await client.delete("/v2/instances/i-1", params=params)).raise_for_status()
        assert list((host.state_dir / "approvals").iterdir()) == []


async def test_a_pin_that_is_no_hash_is_refused(host: DtmaHost, worker: ScriptedWorker) -> None:
    async with host.client() as client:
        for pin in ("latest", "sha256:", f"sha256:{'A' * 64}"):
            answer = await client.put("/v2/instances/i-1", json=instance_body(expose={"approvedHash": pin}))
            assert answer.status_code == 422, answer.text
