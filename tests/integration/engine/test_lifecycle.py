"""Instances on the real engine: made, stopped, started, replaced, removed."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest

from support.engine.host import FAST, EngineHost, eventually, is_running
from support.engine.images import command, docker
from toolbox_dtma.engine.api import Engine
from toolbox_dtma.engine.names import LABEL_HOST, LABEL_INSTANCE
from toolbox_dtma.wire import InstancePhase, InstanceReason

pytestmark = pytest.mark.integration

GRACE = 60


@pytest.fixture
async def unhurried(tiny_image: str, tmp_path: Path) -> AsyncGenerator[EngineHost]:
    """A host that waits long for a server's end, and learns of it from the engine's events alone."""
    host = EngineHost(tmp_path, tiny_image, replace(FAST, stop_grace=GRACE, resync=600))
    host.start()
    try:
        yield host
    finally:
        await host.clean()


async def answer(address: str, port: int = 3001) -> bytes:
    """What the server says to a connection from the host."""
    deadline = time.monotonic() + 20
    while True:
        try:
            async with asyncio.timeout(5):
                reader, writer = await asyncio.open_connection(address, port)
                data = await reader.read(100)
                writer.close()
                return data
        except (OSError, TimeoutError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.02)


async def test_a_wanted_instance_runs_hardened_and_answers_the_host(host: EngineHost, instance: str) -> None:
    engine: Engine = host.engine
    assert (await engine.facts()).available
    host.want(
        instance,
        limits={"memory_bytes": 64 * 1024 * 1024, "cpu_millis": 250, "pids": 40},
        env=({"name": "GREETING", "value": "hi"},),
        security={"run_as_user": 12345},
    )
    seen = await host.running(instance)
    assert seen.address is not None
    assert await answer(seen.address) == b"hello\n"

    (shown,) = host.inspect(instance)
    config = shown["HostConfig"]
    assert (config["Memory"], config["NanoCpus"], config["PidsLimit"]) == (64 * 1024 * 1024, 250_000_000, 40)
    assert config["CapDrop"] == ["ALL"] and config["ReadonlyRootfs"] and config["Init"]
    assert not config["PortBindings"] and not config["Binds"] and not shown["Mounts"]
    assert shown["Name"] != "/time" and shown["Name"].startswith("/mtb-time-")
    assert seen.container is not None
    assert (seen.container.id, seen.container.name) == (shown["Id"], shown["Name"].lstrip("/"))
    assert seen.container.image_digest is not None and seen.container.image_digest.startswith("sha256:")

    assert "exit" in host.execute(instance, "touch", "/file")
    assert "exit" not in host.execute(instance, "touch", "/tmp/file")
    assert "uid=12345" in host.execute(instance, "id")
    assert "GREETING=hi" in host.execute(instance, "env")
    status = host.execute(instance, "cat", "/proc/self/status")
    assert "NoNewPrivs:\t1" in status and "CapEff:\t0000000000000000" in status and "Seccomp:\t2" in status


async def test_a_server_that_ends_when_asked_is_stopped_before_its_grace_period_is_over_and_comes_back(
    unhurried: EngineHost, instance: str
) -> None:
    host = unhurried
    host.want(instance)
    first = await host.running(instance)
    assert first.address is not None
    # It listens once it has said what it does when it is asked to end.
    assert await answer(first.address) == b"hello\n"
    host.want(instance, state="Stopped", generation=2)
    stopped = await host.until(instance, lambda seen: seen.phase is InstancePhase.STOPPED, "stopped", GRACE / 2)
    assert (stopped.generation, stopped.address, stopped.incarnation) == (2, None, None)
    assert stopped.container is not None
    assert (stopped.container.state, stopped.container.exit_code) == ("exited", 0), "it was killed"

    host.want(instance, generation=3)
    second = await host.running(instance)
    assert second.container is not None and first.container is not None
    assert second.container.id == first.container.id and second.container.restarts == 0
    assert second.incarnation != first.incarnation
    assert InstancePhase.ERROR not in {seen.phase for _, seen in host.seen}


async def test_a_server_that_ignores_its_signal_is_killed_after_the_grace_period(
    host: EngineHost, instance: str
) -> None:
    deaf = ("sh", "-c", "trap '' TERM; echo deaf; while true; do sleep 1; done")
    host.want(instance, command=deaf)
    await host.running(instance)
    (container,) = host.ids()
    await eventually(lambda: docker("logs", container) == "deaf", lambda: "it ignores the signal")
    host.want(instance, command=deaf, state="Stopped")
    await host.until(instance, lambda seen: seen.phase is InstancePhase.STOPPED, "stopped")
    assert host.inspect(instance)[0]["State"]["ExitCode"] == 137


async def test_an_edit_replaces_the_container_and_never_runs_two(host: EngineHost, instance: str) -> None:
    # With what happened before the subscription is in force.
    since = ("--since", f"{time.time():.9f}")
    watching = await asyncio.create_subprocess_exec(
        *("docker", "events", *since, "--format", "{{json .}}", "--filter", f"label={LABEL_INSTANCE}={instance}"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert watching.stdout is not None
    events: list[dict[str, str]] = []
    try:
        host.want(instance)
        old = await host.running(instance)
        for generation in (2, 3, 4):
            host.want(instance, generation=generation, env=({"name": "N", "value": str(generation)},))
            await host.until(
                instance,
                lambda seen, g=generation: is_running(seen) and seen.generation == g,
                f"generation {generation}",
            )
        # Only the last of a burst of edits has to be seen.
        for generation in range(5, 15):
            host.want(instance, generation=generation, env=({"name": "N", "value": str(generation)},))
            await asyncio.sleep(0.01)

        def replaced() -> bool:
            shown = host.inspect(instance)
            return len(shown) == 1 and shown[0]["State"]["Running"] and "N=14" in shown[0]["Config"]["Env"]

        await eventually(replaced, lambda: f"one container of the last generation: {host.inspect(instance)}")
        new = await host.until(instance, lambda seen: is_running(seen) and seen.generation == 14, "generation 14")
        assert new.container is not None
        last = ("start", new.container.id)
        async with asyncio.timeout(20):
            while not events or (events[-1]["status"], events[-1]["id"]) != last:
                events.append(json.loads(await watching.stdout.readline()))
    finally:
        watching.terminate()
        await watching.communicate()
    assert new.incarnation != old.incarnation and new.address == old.address
    running: set[str] = set()
    starts = 0
    for event in events:
        if event["status"] == "start":
            running.add(event["id"])
            starts += 1
        # What was removed does not run either, should its death be told late or not at all.
        elif event["status"] in {"die", "destroy"}:
            running.discard(event["id"])
        assert len(running) <= 1, f"two containers of one instance ran: {running}"
    assert starts >= 5


async def test_a_change_that_does_not_shape_the_container_keeps_it(host: EngineHost, instance: str) -> None:
    host.want(instance)
    before = await host.running(instance)
    host.want(instance, generation=2, expose={"tools": {"allow": ["get_*"]}}, port=3002, path="/other")
    after = await host.until(instance, lambda seen: seen.generation == 2 and is_running(seen), "generation 2")
    assert after.incarnation == before.incarnation


async def test_a_restart_token_replaces_the_container(host: EngineHost, instance: str) -> None:
    host.want(instance)
    before = await host.running(instance)
    host.want(instance, restart_token="again")
    await host.until(instance, lambda seen: is_running(seen) and seen.incarnation != before.incarnation, "restarted")


async def test_removal_leaves_no_container_and_no_network_and_may_be_repeated(host: EngineHost, instance: str) -> None:
    host.want(instance)
    await host.running(instance)
    assert len(host.networks()) == 1
    await host.engine.remove(instance)
    assert host.ids() == [] and host.networks() == []
    await host.engine.remove(instance)
    await host.engine.remove("never-heard-of-it")
    host.want(instance)
    await host.running(instance)


async def test_removal_and_stop_work_on_a_paused_container(host: EngineHost, instance: str) -> None:
    other = str(uuid.uuid4())
    host.want(instance)
    host.want(other)
    for key in (instance, other):
        await host.running(key)
    await host.stop()
    docker("pause", *host.ids())
    host.start()
    host.want(other, state="Stopped")
    await asyncio.gather(
        host.engine.remove(instance),
        host.until(other, lambda seen: seen.phase is InstancePhase.STOPPED, "stopped"),
    )
    assert host.inspect(instance) == []


async def test_a_new_dtma_adopts_its_containers_without_touching_them(host: EngineHost, instance: str) -> None:
    host.want(instance)
    before = await host.running(instance)
    await host.stop()
    host.start()
    host.want(instance)
    after = await host.running(instance)
    assert (after.incarnation, after.address, after.container) == (before.incarnation, before.address, before.container)
    assert [seen.phase for _, seen in host.seen] == [InstancePhase.STARTING]


async def test_a_container_left_half_way_through_a_replacement_is_finished(host: EngineHost, instance: str) -> None:
    host.want(instance)
    await host.running(instance)
    await host.stop()
    (old,) = host.ids()
    docker("stop", old)
    host.start()
    host.want(instance, args=("changed",))
    await host.running(instance)
    assert old not in host.ids() and len(host.ids()) == 1


async def test_orphans_of_this_host_are_swept_and_known_or_foreign_ones_are_not(
    host: EngineHost, instance: str, tiny_image: str
) -> None:
    kept, foreign_host = str(uuid.uuid4()), str(uuid.uuid4())
    for key in (instance, kept):
        host.want(key)
    for key in (instance, kept):
        await host.running(key)
    await host.stop()
    foreign = docker(
        *("run", "-d", "--network=none", "--label", f"{LABEL_HOST}={foreign_host}"),
        *("--label", f"{LABEL_INSTANCE}={instance}", tiny_image, "sleep", "1000"),
    )
    try:
        host.start()
        host.want(kept)
        await host.running(kept)
        assert await host.engine.sweep(frozenset({kept})) == (instance,)
        assert host.inspect(instance) == [] and len(host.networks()) == 1
        await host.engine.remove(instance)
        assert docker("inspect", "--format", "{{.State.Running}}", foreign) == "true"
    finally:
        docker("rm", "--force", foreign)


async def test_several_instances_get_networks_of_their_own(host: EngineHost) -> None:
    keys = [str(uuid.uuid4()) for _ in range(4)]
    for key in keys:
        host.want(key)
    addresses = {(await host.running(key)).address for key in keys}
    assert len(addresses) == len(keys) == len(host.networks())


async def test_output_is_given_bounded_in_order_and_followed(host: EngineHost, instance: str) -> None:
    host.want(instance, command=("sh", "-c", "seq 1 50; while true; do echo tick; echo tock >&2; sleep 0.1; done"))
    await host.running(instance)

    async def history(tail: int) -> bytes:
        return b"".join([c async for c in host.engine.logs(instance, tail=tail, since=None, follow=False)])

    (container,) = host.ids()
    await eventually(lambda: "tick" in docker("logs", container), lambda: "it has counted")
    # The engine copies the two streams of a container side by side: each is in order, the mixture is not.
    counted = [line for line in (await history(1000)).splitlines() if line not in {b"tick", b"tock"}]
    assert counted == [b"%d" % number for number in range(1, 51)]
    assert len((await history(2)).splitlines()) == 2
    assert await history(0) == b""
    followed = b""
    stream = host.engine.logs(instance, tail=0, since=None, follow=True)
    async with asyncio.timeout(30):
        async for chunk in stream:
            followed += chunk
            if followed.count(b"tick") >= 3 and b"tock" in followed:
                break
    await stream.aclose()
    since = [c async for c in host.engine.logs(instance, tail=1000, since=time.time() + 60, follow=False)]
    assert since == []
    with pytest.raises(KeyError):
        await anext(host.engine.logs("unknown", tail=1, since=None, follow=False))


async def test_the_pool_of_a_host_survives_as_long_as_its_networks(
    host: EngineHost, instance: str, tiny_image: str, tmp_path: Path
) -> None:
    host.want(instance)
    first = await host.running(instance)
    await host.stop()
    other = str(uuid.uuid4())
    host.start()
    host.want(instance)
    host.want(other)
    second = await host.running(other)
    assert first.address is not None and second.address is not None
    assert first.address.rpartition(".")[0] == second.address.rpartition(".")[0]


async def test_the_engine_being_away_is_reported_and_survived(tiny_image: str, tmp_path: Path, instance: str) -> None:
    """A relay in front of the real engine is taken away and brought back."""
    relay = Relay(tmp_path / "docker.sock")
    # Without a resync in between, what is repaired was repaired by the reconnect.
    host = EngineHost(tmp_path, tiny_image, replace(FAST, resync=600), docker_url=f"unix://{relay.path}")
    try:
        assert not (await host.engine.facts()).available
        host.start()
        host.want(instance)
        await host.until(
            instance, lambda seen: seen.reason is InstanceReason.ENGINE_UNAVAILABLE, "engine away at the start"
        )
        await relay.open()
        before = await host.running(instance)
        await relay.close()
        away = await host.until(
            instance, lambda seen: seen.reason is InstanceReason.ENGINE_UNAVAILABLE, "engine away later"
        )
        assert (away.phase, away.address) == (InstancePhase.ERROR, before.address)
        (container,) = host.ids()
        docker("kill", container)
        command("iptables", "-w", "5", "-F", host.names.forward_chain)
        await relay.open()
        after = await host.until(
            instance, lambda seen: is_running(seen) and seen.incarnation != before.incarnation, "running again"
        )
        assert after.container is not None and after.container.restarts == 1
        assert InstanceReason.CONTAINER_EXITED not in {seen.reason for _, seen in host.seen}
        assert f"-A {host.names.forward_chain} -d 169.254.0.0/16" in command("iptables-save", "-t", "filter")
    finally:
        await relay.open()
        await host.clean()
        await relay.close()


class Relay:
    """Passes connections on a socket of its own to the real engine, while it is open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
            self.path.unlink()
            for writer in tuple(self._writers):
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_unix_connection("/var/run/docker.sock")
        self._writers |= {writer, up_writer}
        try:
            await asyncio.gather(self._copy(reader, up_writer), self._copy(up_reader, writer))
        finally:
            self._writers -= {writer, up_writer}

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()
