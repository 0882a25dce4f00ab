"""Crashes, interference by hand, and everything that keeps a container from running, on the real engine."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from localstack.registry import Registry
from support.engine.host import FAST, EngineHost, eventually, is_running
from support.engine.images import docker
from toolbox_dtma.engine.api import EngineUnavailable
from toolbox_dtma.engine.docker import RemovalBlocked
from toolbox_dtma.wire import Egress, InstancePhase, InstanceReason

pytestmark = pytest.mark.integration

CRASHING = ("sh", "-c", "exit 3")


async def test_a_crash_is_an_error_at_once_and_restarts_come_ever_slower(host: EngineHost, instance: str) -> None:
    host.want(instance, command=CRASHING)
    crashed = await host.until(
        instance, lambda seen: seen.container is not None and seen.container.restarts >= 3, "restarted three times"
    )
    errors = [seen for _, seen in host.seen if seen.phase is InstancePhase.ERROR]
    assert errors and {seen.reason for seen in errors} == {InstanceReason.CONTAINER_EXITED}
    report = errors[0].container
    assert report is not None and report.exit_code == 3 and report.reason == "ContainerExited"
    assert crashed.container is not None
    starts = sorted(
        {seen.container.started_at for _, seen in host.seen if seen.container and seen.container.started_at}
    )
    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(starts)]
    assert gaps[0] >= FAST.restart_first and gaps[1] >= 2 * FAST.restart_first


async def test_a_killed_container_is_reported_and_comes_back(host: EngineHost, instance: str) -> None:
    host.want(instance)
    before = await host.running(instance)
    (container,) = host.ids()
    docker("kill", container)
    seen = await host.until(instance, lambda seen: seen.phase is InstancePhase.ERROR, "error")
    assert seen.reason is InstanceReason.CONTAINER_EXITED and seen.address is None
    after = await host.until(instance, lambda s: is_running(s) and s.incarnation != before.incarnation, "back")
    assert after.container is not None and after.container.restarts == 1 and host.ids() == [container]


async def test_running_out_of_memory_is_told_apart(host: EngineHost, instance: str) -> None:
    eat = ("sh", "-c", "dd if=/dev/zero of=/dev/null bs=200M")
    host.want(instance, command=eat, limits={"memory_bytes": 16 * 1024 * 1024})
    # Of one kill in fifty Docker 20.10 does not tell that it was for memory: its back-off brings more.
    seen = await host.until(instance, lambda seen: seen.reason is InstanceReason.OUT_OF_MEMORY, "out of memory")
    assert seen.phase is InstancePhase.ERROR
    assert "spec.resources.limits.memory" in seen.message


async def test_a_stop_by_hand_is_undone(host: EngineHost, instance: str) -> None:
    host.want(instance)
    before = await host.running(instance)
    docker("stop", *host.ids())
    await host.until(instance, lambda s: is_running(s) and s.incarnation != before.incarnation, "running again")


async def test_a_pause_by_hand_is_undone(host: EngineHost, instance: str) -> None:
    host.want(instance)
    before = await host.running(instance)
    docker("pause", *host.ids())
    await eventually(
        lambda: any(seen.container and seen.container.state == "paused" for _, seen in host.seen),
        lambda: f"seen paused: {host.last(instance)}",
    )
    after = await host.running(instance)
    assert after.incarnation == before.incarnation


async def test_a_container_removed_by_hand_is_made_again(host: EngineHost, instance: str) -> None:
    host.want(instance)
    await host.running(instance)
    (removed,) = host.ids()
    docker("rm", "--force", removed)
    await host.until(
        instance, lambda s: is_running(s) and s.container is not None and s.container.id != removed, "made again"
    )


async def test_a_network_removed_by_hand_is_made_again(host: EngineHost, instance: str) -> None:
    host.want(instance)
    await host.running(instance)
    host.want(instance, state="Stopped")
    await host.until(instance, lambda seen: seen.phase is InstancePhase.STOPPED, "stopped")
    (network,) = host.networks()
    docker("network", "disconnect", "--force", network, host.ids()[0])
    docker("network", "rm", network)
    host.want(instance)
    await host.running(instance)
    assert len(host.networks()) == 1 and len(host.ids()) == 1


async def test_a_network_somebody_uses_blocks_removal_until_they_leave(
    host: EngineHost, instance: str, tiny_image: str
) -> None:
    host.want(instance)
    await host.running(instance)
    guest = docker("run", "-d", "--network", host.names.network(instance, Egress.INTERNET), tiny_image, "sleep", "1000")
    try:
        with pytest.raises(RemovalBlocked):
            await host.engine.remove(instance)
        assert host.ids() == []
        assert docker("inspect", "--format", "{{.State.Running}}", guest) == "true"
    finally:
        docker("rm", "--force", guest)
    await host.engine.remove(instance)
    assert host.networks() == []


async def test_a_command_that_does_not_exist_is_a_failed_start(host: EngineHost, instance: str) -> None:
    host.want(instance, command=("no-such-program",))
    seen = await host.until(instance, lambda seen: seen.reason is InstanceReason.START_FAILED, "start failed")
    assert "no-such-program" in seen.message and "spec.command" in seen.message
    host.want(instance)
    await host.running(instance)


async def test_more_cpus_than_the_host_has_is_a_failed_create(host: EngineHost, instance: str) -> None:
    host.want(instance, limits={"cpu_millis": 900_000})
    seen = await host.until(instance, lambda seen: seen.phase is InstancePhase.ERROR, "error")
    assert seen.reason is InstanceReason.CREATE_FAILED and "CPUs" in seen.message
    host.want(instance)
    await host.running(instance)


async def test_a_name_taken_by_somebody_else_is_a_failed_create_and_their_container_stays(
    host: EngineHost, instance: str, tiny_image: str
) -> None:
    host.want(instance)
    seen = await host.running(instance)
    assert seen.container is not None
    name = seen.container.name
    await host.engine.remove(instance)
    theirs = docker("create", "--name", name, tiny_image)
    try:
        host.want(instance)
        failed = await host.until(instance, lambda seen: seen.reason is InstanceReason.CREATE_FAILED, "refused")
        assert name in failed.message
        assert docker("inspect", "--format", "{{.Id}}", name) == theirs
    finally:
        docker("rm", theirs)
    await host.running(instance)


async def test_an_invalid_image_name_is_reported_while_the_old_container_goes_on(
    host: EngineHost, instance: str
) -> None:
    host.want(instance)
    running = await host.running(instance)
    host.want(instance, image="Not/An/Image", generation=2)
    seen = await host.until(instance, lambda seen: seen.reason is InstanceReason.IMAGE_INVALID, "invalid")
    assert (seen.phase, seen.generation, seen.address) == (InstancePhase.ERROR, 2, running.address)
    host.want(instance, image="Not/An/Image", generation=3, state="Stopped")
    await host.until(instance, lambda seen: seen.phase is InstancePhase.STOPPED, "stopped")


async def test_an_image_that_is_not_there_is_told_and_found_once_it_is(
    host: EngineHost, instance: str, registry: Registry, tiny_image: str
) -> None:
    image = f"{registry.address}/late-{uuid.uuid4().hex}:1"
    host.want(instance, image=image)
    seen = await host.until(instance, lambda seen: seen.phase is InstancePhase.ERROR, "error")
    assert seen.reason is InstanceReason.IMAGE_NOT_FOUND and image in seen.message
    push(tiny_image, image)
    running = await host.running(instance)
    assert running.container is not None and running.container.image == image
    docker("rmi", "--force", "--no-prune", image)


async def test_an_unreachable_registry_is_told(host: EngineHost, instance: str) -> None:
    host.want(instance, image="127.0.0.1:1/nothing:1")
    seen = await host.until(instance, lambda seen: seen.phase is InstancePhase.ERROR, "error")
    assert seen.reason is InstanceReason.IMAGE_PULL_FAILED and "could not be reached" in seen.message


async def test_the_old_container_serves_on_while_the_new_image_cannot_be_had(
    host: EngineHost, instance: str, registry: Registry
) -> None:
    host.want(instance)
    before = await host.running(instance)
    host.want(instance, image=f"{registry.address}/missing:1", generation=2)
    seen = await host.until(instance, lambda seen: seen.phase is InstancePhase.ERROR, "error")
    assert (seen.reason, seen.address, seen.incarnation, seen.generation) == (
        InstanceReason.IMAGE_NOT_FOUND,
        before.address,
        before.incarnation,
        2,
    )


async def test_latest_is_pulled_once_per_generation(
    host: EngineHost, instance: str, registry: Registry, tiny_image: str
) -> None:
    image = f"{registry.address}/moving-{uuid.uuid4().hex}"
    draft = docker("create", tiny_image)
    variant = docker("commit", "--change", "LABEL variant=two", draft)
    docker("rm", draft)
    try:
        push(tiny_image, f"{image}:latest")
        host.want(instance, image=image)
        first = await host.running(instance)
        push(variant, f"{image}:latest")
        host.want(instance, image=image, inputs_hash="1" * 64)
        same = await host.until(instance, lambda s: s.inputs_hash == "1" * 64 and is_running(s), "same generation")
        assert same.incarnation == first.incarnation
        await host.stop()
        host.start()
        host.want(instance, image=image)
        adopted = await host.running(instance)
        assert adopted.incarnation == first.incarnation
        host.want(instance, image=image, generation=2)
        second = await host.until(
            instance, lambda s: is_running(s) and s.incarnation != first.incarnation, "the new image"
        )
        assert first.container is not None and second.container is not None
        assert second.container.image_digest != first.container.image_digest
    finally:
        await host.engine.remove(instance)
        docker("rmi", "--force", "--no-prune", f"{image}:latest", variant)


async def test_a_registry_that_asks_for_credentials(host: EngineHost, instance: str) -> None:
    async with fake_registry("401") as address:
        host.want(instance, image=f"{address}/app:1")
        seen = await host.until(instance, lambda seen: seen.phase is InstancePhase.ERROR, "error")
        assert seen.reason is InstanceReason.REGISTRY_UNAUTHORIZED and "imagePullSecrets" in seen.message
        wrong = ({"registry": address, "username": "someone", "password": "wrong-password"},)
        host.want(instance, image=f"{address}/app:1", registry_credentials=wrong)
        seen = await host.until(instance, lambda seen: "credentials were refused" in seen.message, "refused")
        assert seen.reason is InstanceReason.REGISTRY_UNAUTHORIZED
        assert not any("wrong-password" in repr(seen) for seen in host.seen)


async def test_a_silent_registry_is_given_up_and_a_new_want_ends_the_pull(
    tiny_image: str, tmp_path: Path, instance: str
) -> None:
    host = EngineHost(tmp_path, tiny_image, replace(FAST, pull_idle=1.0))
    async with fake_registry(None) as address:
        try:
            host.start()
            host.want(instance, image=f"{address}/app:1")
            seen = await host.until(instance, lambda seen: seen.phase is InstancePhase.ERROR, "given up")
            assert seen.reason is InstanceReason.IMAGE_PULL_FAILED
            await host.stop()
            host.timings = FAST
            host.start()
            host.want(instance, image=f"{address}/app:1")
            await host.until(instance, lambda seen: seen.reason is InstanceReason.PULLING, "pulling")
            host.want(instance)
            await host.running(instance)
            host.want(instance, image=f"{address}/app:1")
            await host.until(instance, lambda seen: seen.reason is InstanceReason.PULLING, "pulling")
            await host.engine.remove(instance)
        finally:
            await host.clean()


async def test_removal_while_the_engine_is_away_goes_on_when_it_is_back(
    tiny_image: str, tmp_path: Path, instance: str
) -> None:
    host = EngineHost(tmp_path, tiny_image, docker_url=f"unix://{tmp_path}/nothing.sock")
    host.start()
    with pytest.raises(EngineUnavailable):
        await host.engine.remove(instance)
    with pytest.raises(EngineUnavailable):
        await host.engine.sweep(frozenset())
    await host.stop()


def push(image: str, target: str) -> None:
    """Put an image into a registry under a name that the engine then forgets."""
    docker("tag", image, target)
    docker("push", "--quiet", target)
    docker("rmi", "--no-prune", target)


@asynccontextmanager
async def fake_registry(status: str | None) -> AsyncGenerator[str]:
    """A registry on loopback that answers one status to everything, or nothing at all."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # Docker tries TLS first; with the connection closed on it, it turns to plain HTTP.
            while status is None or await reader.read(1) != b"\x16":
                await reader.readuntil(b"\r\n\r\n")
                if status is None:
                    continue
                writer.write(
                    f"HTTP/1.1 {status} X\r\nWWW-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n"
                    "Docker-Distribution-Api-Version: registry/2.0\r\n\r\n".encode()
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
