"""What containers of each egress reach, tried from inside them on the real engine."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest

from support.engine.far_network import RESOLVED, FarNetwork
from support.engine.host import FAST, SERVER, EngineHost, eventually, is_running
from support.engine.images import command, docker
from toolbox_dtma.engine.egress import NO_RESOLVER
from toolbox_dtma.wire import Egress, InstancePhase, InstanceReason

pytestmark = pytest.mark.integration

EVERYTHING, OUTSIDE, NOTHING = {Egress.INTERNET, Egress.ALL}, {Egress.ALL}, frozenset[Egress]()


@dataclass(frozen=True, slots=True)
class Destination:
    """Something that answers every connection with a word."""

    address: str
    port: int
    says: str


@pytest.fixture
async def stranger(tiny_image: str, tmp_path: Path, far: FarNetwork) -> AsyncGenerator[EngineHost]:
    """Another host on the same machine."""
    folder = tmp_path / "stranger"
    folder.mkdir()
    host = EngineHost(folder, tiny_image, FAST)
    host.start()
    try:
        yield host
    finally:
        await host.clean()


@asynccontextmanager
async def on_the_host() -> AsyncGenerator[int]:
    """A port of the host's own, on all its addresses, as DTMA and the gateway have one."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"host\n")
        writer.close()

    server = await asyncio.start_server(greet, "0.0.0.0", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def neighbour(image: str) -> AsyncGenerator[tuple[Destination, Destination]]:
    """A container of somebody else's on Docker's default network: itself, and the port it publishes."""
    container = docker("run", "-d", "-p", "0.0.0.0::3001", image, *SERVER)
    try:
        address = docker("inspect", "--format", "{{.NetworkSettings.IPAddress}}", container)
        gateway = docker("inspect", "--format", "{{.NetworkSettings.Gateway}}", container)
        port = int(docker("port", container, "3001/tcp").splitlines()[0].rpartition(":")[2])
        yield Destination(address, 3001, "hello"), Destination(gateway, port, "hello")
    finally:
        docker("rm", "--force", "--volumes", container)


async def said(destination: Destination) -> str:
    """What the host itself hears from there: a destination that nobody answers at would prove nothing."""

    async def ask() -> str:
        try:
            async with asyncio.timeout(5):
                reader, writer = await asyncio.open_connection(destination.address, destination.port)
                heard = (await reader.read(100)).decode().strip()
                writer.close()
                return heard
        except (OSError, TimeoutError) as error:
            return repr(error)

    heard = ""
    for _ in range(200):
        if (heard := await ask()) == destination.says:
            break
        await asyncio.sleep(0.1)
    return heard


async def assert_reached(
    host: EngineHost, instance: str, destinations: dict[str, Destination], expected: set[str], when: str
) -> None:
    """A container reaches the destinations `expected` by their names and no other; all are tried at once.

    The first have the time that a busy machine may need to connect; what is dropped on its way only wastes it.
    """
    tries = [
        f'(echo "{number} $(nc -w {30 if name in expected else 2} {there.address} {there.port} </dev/null 2>&1)") &'
        for number, (name, there) in enumerate(destinations.items())
    ]
    output = await asyncio.to_thread(host.execute, instance, "sh", "-c", "\n".join([*tries, "wait"]))
    heard = dict(line.split(" ", 1) for line in output.splitlines())
    found: set[str] = set()
    for number, (name, there) in enumerate(destinations.items()):
        words = heard[str(number)]
        assert words == there.says or words.startswith(("nc: can't connect", "nc: timed out")), (when, name, words)
        if words == there.says:
            found.add(name)
    assert found == expected, when


def gateway_of(address: str) -> str:
    return str(ip_address(address) - 1)


async def running(host: EngineHost, instance: str, egress: Egress, generation: int = 1) -> str:
    """Want an instance with an egress, and wait until that runs; its address."""
    host.want(instance, generation=generation, security={"egress": egress.value})
    seen = await host.until(
        instance, lambda seen: is_running(seen) and seen.generation == generation, f"{instance} with {egress}"
    )
    assert seen.address is not None
    return seen.address


async def test_what_each_egress_reaches_and_what_none_of_them_does(
    resolving: EngineHost, stranger: EngineHost, far: FarNetwork, tiny_image: str
) -> None:
    instances = {egress: str(uuid.uuid4()) for egress in Egress}
    others = {egress: str(uuid.uuid4()) for egress in Egress}
    addresses = {egress: await running(resolving, instances[egress], egress) for egress in Egress}
    targets = {f"instance with {egress}": await running(resolving, others[egress], egress) for egress in Egress}
    elsewhere = {egress: str(uuid.uuid4()) for egress in Egress}
    targets |= {
        f"another host's with {egress}": await running(stranger, elsewhere[egress], egress) for egress in Egress
    }
    outside = next(address for address in command("hostname", "-I").split() if "." in address)
    async with on_the_host() as port, neighbour(tiny_image) as (theirs, published):
        table: dict[str, tuple[Destination, set[Egress] | frozenset[Egress]]] = {
            "public": (Destination(far.public, 80, "far"), EVERYTHING),
            "the resolver": (Destination(far.private, 53, "far"), EVERYTHING),
            "private, 172.16/12": (Destination(far.private, 80, "far"), OUTSIDE),
            "private, 192.168/16": (Destination(far.other_private, 80, "far"), OUTSIDE),
            "private, DNS that is not ours": (Destination(far.other_private, 53, "far"), OUTSIDE),
            "shared, 100.64/10": (Destination(far.shared, 80, "far"), OUTSIDE),
            "metadata, 169.254/16": (Destination(far.metadata, 80, "far"), NOTHING),
            "metadata, DNS": (Destination(far.metadata, 53, "far"), NOTHING),
            "metadata, 192.0.0/24": (Destination(far.assigned, 80, "far"), NOTHING),
            "the host on a private network": (Destination(far.near, port, "host"), NOTHING),
            "the host outside": (Destination(outside, port, "host"), NOTHING),
            "the host on Docker's network": (Destination(published.address, port, "host"), NOTHING),
            "another container": (theirs, NOTHING),
            "a port that another container publishes": (published, NOTHING),
            "the same on a private network": (Destination(far.near, published.port, "hello"), NOTHING),
        }
        table |= {name: (Destination(address, 3001, "hello"), NOTHING) for name, address in targets.items()}
        for name, (there, _) in table.items():
            assert await said(there) == there.says, f"{name} does not answer the host itself"
        for egress, instance in instances.items():
            own = Destination(gateway_of(addresses[egress]), port, "host")
            destinations = {name: there for name, (there, _) in table.items()} | {"the host on its own network": own}
            expected = {name for name, (_, reachable) in table.items() if egress in reachable}
            await assert_reached(resolving, instance, destinations, expected, egress)
            # The other way: gateway and host reach it, whatever it may reach.
            assert await said(Destination(addresses[egress], 3001, "hello")) == "hello"


@pytest.mark.parametrize("egress", list(Egress))
async def test_no_egress_comes_with_ipv6(host: EngineHost, instance: str, egress: Egress) -> None:
    await running(host, instance, egress)
    assert "inet6" not in host.execute(instance, "ip", "addr", "show", "dev", "eth0")
    assert host.execute(instance, "ip", "-6", "route") == ""


async def test_names_are_resolved_with_internet_and_all_and_by_nobody_with_none(
    resolving: EngineHost, far: FarNetwork
) -> None:
    async def look_up(instance: str, *server: str) -> str:
        return await asyncio.to_thread(resolving.execute, instance, "nslookup", "-type=a", "mcp.example.com", *server)

    for egress in (Egress.INTERNET, Egress.ALL):
        instance = str(uuid.uuid4())
        await running(resolving, instance, egress)
        assert RESOLVED in await look_up(instance, far.private), egress
    without = str(uuid.uuid4())
    await running(resolving, without, Egress.NONE)
    for server in ((), (far.private,)):
        assert RESOLVED not in (answer := await look_up(without, *server)) and "exit 1" in answer
    resolver = resolving.execute(without, "cat", "/etc/resolv.conf")
    assert not any(line.startswith("search") for line in resolver.splitlines()), "nothing of the host's"
    assert "timeout:1" in resolver and "attempts:1" in resolver
    (shown,) = resolving.inspect(without)
    assert shown["HostConfig"]["Dns"] == [NO_RESOLVER]


async def test_a_connection_is_refused_at_once_where_nothing_can_be_reached(
    host: EngineHost, instance: str, far: FarNetwork
) -> None:
    await running(host, instance, Egress.NONE)
    shell = f"nc -w 30 {far.public} 80 </dev/null"
    said = await asyncio.to_thread(host.execute, instance, "sh", "-c", shell)
    # Not "timed out".
    assert said.startswith("nc: can't connect") and "exit 1" in said


async def test_an_egress_that_changes_takes_effect_and_leaves_nothing_of_the_former(
    resolving: EngineHost, instance: str, far: FarNetwork
) -> None:
    destinations = {
        "public": Destination(far.public, 80, "far"),
        "private": Destination(far.private, 80, "far"),
    }
    expected = {Egress.NONE: set[str](), Egress.INTERNET: {"public"}, Egress.ALL: {"public", "private"}}
    order = [Egress.INTERNET, Egress.NONE, Egress.ALL, Egress.INTERNET, Egress.ALL, Egress.NONE, Egress.INTERNET]
    rules: set[str] = set()
    for generation, egress in enumerate(order, start=1):
        address = await running(resolving, instance, egress, generation)
        await assert_reached(resolving, instance, destinations, expected[egress], egress)
        assert await said(Destination(address, 3001, "hello")) == "hello"
        await eventually(
            lambda: len(resolving.networks()) == 1 and len(resolving.ids()) == 1,
            lambda: f"one network and one container: {resolving.networks()}, {resolving.ids()}",
        )
        (shown,) = resolving.inspect(instance)
        assert list(shown["NetworkSettings"]["Networks"]) == [resolving.names.network(instance, egress)]
        saved = command("iptables-save", "-t", "filter")
        rules.add("\n".join(line for line in saved.splitlines() if f"MTB-{resolving.names.tag}" in line))
    assert len(rules) == 1, "rules do not come and go with instances"
    assert InstancePhase.ERROR not in {seen.phase for _, seen in resolving.seen}
    await resolving.engine.remove(instance)
    assert resolving.ids() == [] and resolving.networks() == []
    assert resolving.names.bridge_prefix not in command("ip", "-o", "link")


async def test_an_egress_that_changes_back_before_it_took_effect_leaves_the_container(
    host: EngineHost, instance: str
) -> None:
    await running(host, instance, Egress.INTERNET)
    before = host.ids()
    host.want(instance, generation=2, state="Stopped", security={"egress": "None"})
    await host.until(instance, lambda seen: seen.phase is InstancePhase.STOPPED, "stopped")
    assert len(host.networks()) == 1, "no network before it is needed, and none taken from a container"
    await running(host, instance, Egress.INTERNET, 3)
    assert host.ids() == before


async def test_whoever_gets_the_address_of_another_does_not_inherit_its_connections(
    host: EngineHost, far: FarNetwork
) -> None:
    allowed, later = str(uuid.uuid4()), str(uuid.uuid4())
    address = await running(host, allowed, Egress.ALL)
    assert await asyncio.to_thread(datagram, host, allowed, far.private, "30") == RESOLVED
    await host.engine.remove(allowed)
    assert await running(host, later, Egress.INTERNET) == address
    # The kernel remembers the flow for half a minute at least.
    assert await asyncio.to_thread(datagram, host, later, far.private, "2") == "nothing"


async def test_a_restarted_dtma_keeps_what_each_reaches_and_touches_no_container(
    resolving: EngineHost, far: FarNetwork
) -> None:
    destinations = {
        "public": Destination(far.public, 80, "far"),
        "private": Destination(far.private, 80, "far"),
    }
    expected = {Egress.NONE: set[str](), Egress.INTERNET: {"public"}, Egress.ALL: {"public", "private"}}
    instances = {egress: str(uuid.uuid4()) for egress in Egress}
    addresses = {egress: await running(resolving, instances[egress], egress) for egress in Egress}
    networks = sorted(resolving.networks())
    before = {egress: resolving.last(instance) for egress, instance in instances.items()}
    await resolving.stop()
    for egress, instance in instances.items():
        await assert_reached(resolving, instance, destinations, expected[egress], f"{egress} while DTMA is away")
    resolving.start()
    for egress, instance in instances.items():
        assert await running(resolving, instance, egress) == addresses[egress]
        await assert_reached(resolving, instance, destinations, expected[egress], f"{egress} afterwards")
    assert sorted(resolving.networks()) == networks
    assert {egress: resolving.last(instance) for egress, instance in instances.items()} == before


async def test_containers_and_rules_of_an_older_release_go_on_as_internet(
    resolving: EngineHost, instance: str, far: FarNetwork
) -> None:
    destinations = {
        "public": Destination(far.public, 80, "far"),
        "private": Destination(far.private, 80, "far"),
        "metadata": Destination(far.metadata, 80, "far"),
    }
    resolving.want(instance)
    before = await resolving.running(instance)
    await resolving.stop()
    chain = resolving.names.forward_chain
    old = [f":{chain} - [0:0]", f"-A {chain} -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN"]
    old += [f"-A {chain} -d {refused} -j DROP" for refused in ("169.254.0.0/16", "10.0.0.0/8", "172.16.0.0/12")]
    restore("*filter", *old, "COMMIT")
    resolving.start()
    resolving.want(instance)
    after = await resolving.running(instance)
    assert (after.incarnation, after.address) == (before.incarnation, before.address)
    await eventually(
        lambda: f"-A {chain} -d 192.168.0.0/16 -j DROP" in command("iptables-save", "-t", "filter"),
        lambda: f"rules of this release: {command('iptables-save', '-t', 'filter')}",
    )
    await assert_reached(resolving, instance, destinations, {"public"}, "as before")


async def test_without_a_firewall_nothing_starts_and_the_reason_is_told(
    host: EngineHost, instance: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.environ["PATH"]
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "docker").symlink_to(command("which", "docker").strip())
    monkeypatch.setenv("PATH", str(tools))
    for egress in Egress:
        other = str(uuid.uuid4())
        host.want(other, security={"egress": egress.value})
        seen = await host.until(other, lambda seen: seen.reason is InstanceReason.NETWORK_FAILED, "refused")
        assert "iptables-save cannot be run on the host" in seen.message
        assert [shown["State"]["Status"] for shown in host.inspect(other)] == ["created"]
    monkeypatch.setenv("PATH", whole)
    await running(host, instance, Egress.NONE)


async def test_a_network_that_was_put_in_the_place_of_an_internal_one_is_not_used(
    host: EngineHost, instance: str, far: FarNetwork
) -> None:
    await running(host, instance, Egress.NONE)
    host.want(instance, state="Stopped", generation=2, security={"egress": "None"})
    await host.until(instance, lambda seen: seen.phase is InstancePhase.STOPPED, "stopped")
    await host.stop()
    (network,) = host.networks()
    docker("network", "rm", network)
    labels = [f"--label={key}={value}" for key, value in host.names.labels(instance).items()]
    bridge = f"--opt=com.docker.network.bridge.name={host.names.bridge(0, Egress.NONE)}"
    open_network = docker("network", "create", *labels, bridge, host.names.network(instance, Egress.NONE))
    host.start()
    await running(host, instance, Egress.NONE, 3)
    await assert_reached(host, instance, {"public": Destination(far.public, 80, "far")}, set(), "with None")
    assert open_network not in docker("network", "ls", "--quiet", "--no-trunc").split()


async def test_a_guest_on_the_former_network_holds_up_its_removal_and_nothing_else(
    host: EngineHost, instance: str, tiny_image: str
) -> None:
    await running(host, instance, Egress.INTERNET)
    guest = docker("run", "-d", "--network", host.names.network(instance, Egress.INTERNET), tiny_image, "sleep", "1000")
    try:
        await running(host, instance, Egress.NONE, 2)
        assert len(host.networks()) == 2
        assert InstancePhase.ERROR not in {seen.phase for _, seen in host.seen}
        assert docker("inspect", "--format", "{{.State.Running}}", guest) == "true"
    finally:
        docker("rm", "--force", guest)
    await eventually(lambda: len(host.networks()) == 1, lambda: f"the former network gone: {host.networks()}")


DATAGRAM = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("", 40000))
    sock.connect((sys.argv[1], 53))
    sock.settimeout(float(sys.argv[2]))
    sock.send(bytes.fromhex("000101000001000000000000036d637000") + bytes([0, 1, 0, 1]))
    try:
        print(socket.inet_ntoa(sock.recv(512)[-4:]))
    except (TimeoutError, ConnectionRefusedError):
        print("nothing")
"""


def datagram(host: EngineHost, instance: str, address: str, seconds: str) -> str:
    """What a DNS query from one fixed port of the container brings within `seconds`."""
    pid = host.inspect(instance)[0]["State"]["Pid"]
    return command("nsenter", f"--net=/proc/{pid}/ns/net", sys.executable, "-c", DATAGRAM, address, seconds).strip()


def restore(*lines: str) -> None:
    """Replace what the lines name, in one transaction."""
    subprocess.run(
        ["iptables-restore", "--noflush", "-w", "5"],
        input="\n".join([*lines, ""]),
        text=True,
        check=True,
        capture_output=True,
        timeout=20,
    )
