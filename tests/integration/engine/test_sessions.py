"""Sessions of stdio instances on the real engine: a container each, and none that outlives its session."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from support.engine.host import EngineHost, eventually
from support.engine.images import docker
from toolbox_dtma.engine.api import NotDeployed, SessionExit
from toolbox_dtma.engine.failures import Failure
from toolbox_dtma.engine.names import LABEL_HOST, LABEL_INSTANCE, LABEL_SESSION
from toolbox_dtma.engine.sessions import SessionContainers
from toolbox_dtma.wire import InstancePhase, InstanceReason

pytestmark = pytest.mark.integration

STDOUT, STDERR = 1, 2


async def frame(stream: socket.socket) -> tuple[int, bytes]:
    """The next piece of output; (0, nothing) at the end."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(30):
        head = b""
        while len(head) < 8:
            piece = await loop.sock_recv(stream, 8 - len(head))
            if not piece:
                return 0, head
            head += piece
        body = b""
        while len(body) < int.from_bytes(head[4:], "big"):
            body += await loop.sock_recv(stream, int.from_bytes(head[4:], "big") - len(body))
    return head[0], body


async def say(stream: socket.socket, line: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(stream, line)


def containers(host: EngineHost, instance: str) -> dict[str, dict[str, Any]]:
    """What Docker shows of an instance's sessions."""
    return {shown["Config"]["Labels"][LABEL_SESSION]: shown for shown in host.inspect(instance)}


async def gone(host: EngineHost, *sessions: str) -> None:
    """Wait until these sessions have no container."""

    def none_left() -> bool:
        return not any(host.ids(f"{LABEL_SESSION}={session}") for session in sessions)

    await eventually(none_left, lambda: f"the containers of {sessions} gone", 30)


async def told_exit(
    host: EngineHost, instance: str, session: str, end: Callable[[socket.socket], Awaitable[None]]
) -> SessionExit:
    """How a new session ended by itself after `end` was done to its stream, as the engine tells it."""
    exits: dict[str, SessionExit] = {}
    host.engine.follow_sessions(lambda session, exit_: exits.update({session: exit_}))
    opened = await host.engine.open_session(instance, session)
    with opened.stream:
        await end(opened.stream)
        await eventually(lambda: exits, lambda: "an exit")
    host.engine.end_session(session)
    await gone(host, session)
    return exits[session]


async def hang_up(stream: socket.socket) -> None:
    stream.close()


async def test_every_session_is_a_hardened_container_of_its_own(host: EngineHost, instance: str) -> None:
    host.want_sessions(
        instance,
        limits={"memory_bytes": 64 * 1024 * 1024, "cpu_millis": 250, "pids": 40},
        env=({"name": "GREETING", "value": "hi"},),
        security={"run_as_user": 12345},
    )
    seen = await host.deployed(instance)
    assert seen.container is None and seen.address is None and host.ids() == []

    one, two = await host.engine.open_session(instance, "s-1"), await host.engine.open_session(instance, "s-2")
    with one.stream, two.stream:
        assert one.incarnation == two.incarnation == seen.incarnation
        await say(one.stream, b"first\n")
        await say(two.stream, b"second\n")
        assert await frame(one.stream) == (STDOUT, b"first\n") and await frame(two.stream) == (STDOUT, b"second\n")

        shown = containers(host, instance)
        assert shown.keys() == {"s-1", "s-2"}
        for container in shown.values():
            config = container["HostConfig"]
            assert (config["Memory"], config["NanoCpus"], config["PidsLimit"]) == (64 * 1024 * 1024, 250_000_000, 40)
            assert config["CapDrop"] == ["ALL"] and config["ReadonlyRootfs"] and config["Init"]
            assert config["SecurityOpt"] == ["no-new-privileges"] and not config["AutoRemove"]
            assert config["LogConfig"]["Type"] == "none" and config["RestartPolicy"]["Name"] == "no"
            assert not config["PortBindings"] and not config["Binds"] and not container["Mounts"]
            assert container["Config"]["User"] == "12345" and "GREETING=hi" in container["Config"]["Env"]
            assert not container["Config"]["Tty"]


async def test_sessions_of_a_server_do_not_reach_each_other(host: EngineHost, instance: str) -> None:
    host.want_sessions(instance, command=("sh", "-c", "nc -ll -p 3001 -e echo hello & cat"))
    await host.deployed(instance)
    one, two = await host.engine.open_session(instance, "s-1"), await host.engine.open_session(instance, "s-2")
    with one.stream, two.stream:
        shown = containers(host, instance)

        def address(session: str) -> str:
            (end,) = shown[session]["NetworkSettings"]["Networks"].values()
            return str(end["IPAddress"])

        def asked(who: str, whom: str) -> str:
            # One that answers itself answers whoever reaches it.
            shell = f"nc -w {30 if who == whom else 2} {address(whom)} 3001 </dev/null 2>&1; true"
            return docker("exec", shown[who]["Id"], "sh", "-c", shell)

        assert address("s-1") != address("s-2")
        for session in shown:
            await eventually(lambda who=session: asked(who, who) == "hello", lambda: "it listens")
        for who, whom in (("s-1", "s-2"), ("s-2", "s-1")):
            assert asked(who, whom).startswith(("nc: can't connect", "nc: timed out"))


async def test_what_a_process_writes_at_its_start_arrives_whole_with_both_streams_apart(
    host: EngineHost, instance: str
) -> None:
    host.want_sessions(instance, command=("sh", "-c", "echo out; echo err >&2; seq 1 20000; cat"))
    await host.deployed(instance)
    opened = await host.engine.open_session(instance, "s-1")
    with opened.stream:
        output = {STDOUT: b"", STDERR: b""}
        while not output[STDOUT].endswith(b"20000\n") or not output[STDERR]:
            stream, piece = await frame(opened.stream)
            output[stream] += piece
    assert output[STDERR] == b"err\n"
    assert output[STDOUT].split() == [b"out", *(str(number).encode() for number in range(1, 20001))]


async def test_an_ended_session_is_killed_without_being_asked(host: EngineHost, instance: str) -> None:
    stubborn = "trap 'echo asked' TERM INT HUP; echo up; while true; do sleep 0.1; done"
    host.want_sessions(instance, command=("sh", "-c", stubborn))
    await host.deployed(instance)
    opened = await host.engine.open_session(instance, "s-1")
    with opened.stream:
        assert await frame(opened.stream) == (STDOUT, b"up\n")
        host.engine.end_session("s-1")
        assert await frame(opened.stream) == (0, b"")
    await gone(host, "s-1")


async def test_a_process_whose_client_has_gone_sees_the_end_of_its_input(host: EngineHost, instance: str) -> None:
    host.want_sessions(instance, command=("sh", "-c", "cat; exit 7"))
    await host.deployed(instance)
    assert await told_exit(host, instance, "s-1", hang_up) == SessionExit(7)


async def test_an_exit_of_which_docker_sends_no_event_is_told_with_its_code_too(
    host: EngineHost, instance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def left_out(_self: SessionContainers, _session: str, _action: str, _attributes: dict[str, str]) -> None:
        pass

    monkeypatch.setattr(SessionContainers, "happened", left_out)
    host.want_sessions(instance, command=("sh", "-c", "cat; exit 7"))
    await host.deployed(instance)
    assert await told_exit(host, instance, "s-1", hang_up) == SessionExit(7)


async def test_an_exit_is_told_with_its_code_and_whether_memory_was_the_reason(host: EngineHost, instance: str) -> None:
    hungry = "read line; [ $line = exit ] && exit 3; exec tail /dev/zero"
    host.want_sessions(instance, command=("sh", "-c", hungry), limits={"memory_bytes": 16 * 1024 * 1024})
    await host.deployed(instance)
    assert await told_exit(host, instance, "exit", lambda stream: say(stream, b"exit\n")) == SessionExit(3)
    # Of one kill in fifty Docker 20.10 does not tell that it was for memory, hence four of them.
    kills = [await told_exit(host, instance, f"eat-{n}", lambda stream: say(stream, b"eat\n")) for n in range(4)]
    assert all(exit_.code == 137 for exit_ in kills) and any(exit_.out_of_memory for exit_ in kills)


async def test_a_command_that_is_not_in_the_image_ends_its_session(host: EngineHost, instance: str) -> None:
    async def complaint(stream: socket.socket) -> None:
        text = b""
        while b"no-such-program" not in text:
            kind, more = await frame(stream)
            assert kind == STDERR, text
            text += more

    host.want_sessions(instance, command=("no-such-program",))
    await host.deployed(instance)
    assert (await told_exit(host, instance, "s-1", complaint)).code == 127


async def test_sessions_of_an_engine_that_was_killed_go_when_the_next_one_starts(
    host: EngineHost, instance: str
) -> None:
    host.want_sessions(instance)
    await host.deployed(instance)
    mine = await host.engine.open_session(instance, "s-1")
    with mine.stream:
        await host.stop()
        assert containers(host, instance) == {}, "an orderly end leaves none"
    # As of a run that was killed: nobody holds it.
    labels = [f"--label={key}={value}" for key, value in host.names.labels(instance).items()]
    arguments = ("--interactive", *labels, f"--label={LABEL_SESSION}=old", "--entrypoint", "cat", host.image)
    docker("start", docker("create", *arguments))
    stranger = docker("create", f"--label={LABEL_HOST}=another", f"--label={LABEL_SESSION}=x", host.image)
    try:
        host.want_sessions(instance)
        host.start()
        await gone(host, "old")
        again = await host.deployed(instance)
        assert again.incarnation == mine.incarnation, "nothing about it has changed"
        assert docker("ps", "--all", "--quiet", "--filter", f"label={LABEL_SESSION}=x")
    finally:
        docker("rm", "--force", stranger)


async def test_a_container_that_somebody_took_away_is_an_exit(host: EngineHost, instance: str) -> None:
    exits: dict[str, SessionExit] = {}
    host.engine.follow_sessions(lambda session, exit_: exits.update({session: exit_}))
    host.want_sessions(instance)
    await host.deployed(instance)
    opened = await host.engine.open_session(instance, "s-1")
    with opened.stream:
        docker("rm", "--force", containers(host, instance)["s-1"]["Id"])
        await eventually(lambda: exits, lambda: "an exit")
        assert (await frame(opened.stream))[0] == 0


async def test_no_session_of_a_server_that_is_stopped_changing_or_unknown(host: EngineHost, instance: str) -> None:
    with pytest.raises(NotDeployed):
        await host.engine.open_session(instance, "s-1")
    host.want_sessions(instance)
    first = await host.deployed(instance)
    host.want_sessions(instance, generation=2, env=({"name": "A", "value": "1"},))
    with pytest.raises(NotDeployed):
        await host.engine.open_session(instance, "s-2")
    second = await host.deployed(instance, generation=2)
    assert first.incarnation != second.incarnation
    # What shapes no container changes nothing, not for a moment.
    host.want_sessions(instance, generation=3, env=({"name": "A", "value": "1"},), sessions={"max_sessions": 5})
    opened = await host.engine.open_session(instance, "s-3")
    opened.stream.close()
    assert (await host.deployed(instance, generation=3)).incarnation == second.incarnation == opened.incarnation

    host.want_sessions(instance, generation=4, state="Stopped")
    stopped = await host.until(instance, lambda seen: seen.phase is InstancePhase.STOPPED, "stopped")
    assert stopped.incarnation is None
    with pytest.raises(NotDeployed):
        await host.engine.open_session(instance, "s-4")


async def test_a_network_grows_with_the_sessions_that_are_allowed(host: EngineHost, instance: str) -> None:
    def subnet() -> str:
        (network,) = host.networks()
        return docker("network", "inspect", "--format", "{{(index .IPAM.Config 0).Subnet}}", network)

    host.want_sessions(instance)
    first = await host.deployed(instance)
    assert subnet().endswith("/28")
    opened = await host.engine.open_session(instance, "s-1")
    with opened.stream:
        host.want_sessions(instance, generation=2, sessions={"max_sessions": 40})
        second = await host.deployed(instance, generation=2)
        assert subnet().endswith("/26") and second.incarnation != first.incarnation
        assert (await frame(opened.stream))[0] == 0, "its network is gone, and so is it"
    again = await host.engine.open_session(instance, "s-2")
    again.stream.close()


async def test_removal_takes_sessions_and_network_along(host: EngineHost, instance: str) -> None:
    host.want_sessions(instance)
    await host.deployed(instance)
    streams = [(await host.engine.open_session(instance, f"s-{number}")).stream for number in range(4)]
    try:
        await host.engine.remove(instance)
        assert host.ids() == [] and host.networks() == []
    finally:
        for stream in streams:
            stream.close()


async def test_sessions_share_their_servers_volumes_and_its_user_may_write_to_them(
    host: EngineHost, instance: str
) -> None:
    members: dict[str, Any] = {
        "command": ("sh", "-c", 'while read -r line; do eval "$line"; done'),
        "security": {"run_as_user": 12345},
        "volumes": ({"name": "data", "mount_path": "/data"},),
    }
    host.want_sessions(instance, **members)
    await host.deployed(instance)
    opened = await asyncio.gather(*(host.engine.open_session(instance, f"s-{number}") for number in range(3)))
    try:
        await say(opened[0].stream, b"echo kept > /data/note && echo written\n")
        assert await frame(opened[0].stream) == (STDOUT, b"written\n")
        await say(opened[1].stream, b"cat /data/note\n")
        assert await frame(opened[1].stream) == (STDOUT, b"kept\n")
        held = {mount["Name"] for shown in containers(host, instance).values() for mount in shown["Mounts"]}
        (name,) = held
        await host.engine.remove(instance, volumes_of=host.wanted(instance).holder)
        assert name not in docker("volume", "ls", "--quiet").split()
        assert host.ids() == []
    finally:
        for each in opened:
            each.stream.close()


async def test_a_server_that_listened_under_this_id_makes_way(host: EngineHost, instance: str) -> None:
    host.want(instance)
    await host.running(instance)
    host.want_sessions(instance, uid="another-uid")
    await host.deployed(instance, container=None)
    assert host.ids() == []
    opened = await host.engine.open_session(instance, "s-1")
    opened.stream.close()
    host.want(instance, uid="a-third-uid")
    host.engine.end_session("s-1")
    await host.running(instance)
    await gone(host, "s-1")


async def test_an_image_that_was_removed_is_noticed_and_looked_for_again(host: EngineHost, instance: str) -> None:
    # Of a registry that refuses at once.
    reference = f"127.0.0.1:9/mtb-test-vanishing:{uuid.uuid4().hex[:12]}"

    def build() -> None:
        text = f"FROM {host.image}\nENV UNIQUE={reference}\n"
        docker("build", "--quiet", "--tag", reference, "-", stdin=text.encode())

    build()
    try:
        host.want_sessions(instance, image=reference)
        await host.deployed(instance)
        docker("rmi", "--force", reference)
        with pytest.raises(Failure):
            await host.engine.open_session(instance, "s-1")
        seen = await host.until(instance, lambda seen: seen.phase is InstancePhase.ERROR, "an error")
        assert seen.reason in {InstanceReason.IMAGE_NOT_FOUND, InstanceReason.REGISTRY_UNAUTHORIZED} or (
            seen.reason is InstanceReason.IMAGE_PULL_FAILED
        )
        with pytest.raises(NotDeployed):
            await host.engine.open_session(instance, "s-2")
        build()
        await host.deployed(instance)
    finally:
        docker("rmi", "--force", reference)


async def test_a_session_that_nobody_waits_for_any_more_leaves_no_container(host: EngineHost, instance: str) -> None:
    host.want_sessions(instance)
    await host.deployed(instance)
    for number in range(6):
        opening = asyncio.create_task(host.engine.open_session(instance, f"s-{number}"))
        # Each at another point of its way.
        await asyncio.sleep(number * 0.06)
        if opening.done():
            opening.result().stream.close()
            host.engine.end_session(f"s-{number}")
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
    await gone(host, *(f"s-{number}" for number in range(6)))


async def test_fifty_sessions_leave_no_container_network_descriptor_or_thread(host: EngineHost, instance: str) -> None:
    host.want_sessions(instance)
    await host.deployed(instance)

    async def one(number: int) -> None:
        opened = await host.engine.open_session(instance, f"s-{number}")
        with opened.stream:
            await say(opened.stream, b"hello\n")
            assert await frame(opened.stream) == (STDOUT, b"hello\n")
        host.engine.end_session(f"s-{number}", grace=2)

    await one(0)
    await gone(host, "s-0")
    networks = host.networks()
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for batch in range(10):
        await asyncio.gather(*(one(1 + batch * 5 + number) for number in range(5)))
    await eventually(lambda: host.ids() == [], lambda: f"no container: {host.ids(f'{LABEL_INSTANCE}={instance}')}")
    assert host.networks() == networks

    def opened_since() -> int:
        return len(os.listdir("/proc/self/fd")) - before[0]

    # Connections to Docker are kept for some seconds: never more than there were calls at a time.
    await eventually(lambda: opened_since() <= 10, lambda: f"{opened_since()} descriptors more")
    assert threading.active_count() <= before[1] + 1
