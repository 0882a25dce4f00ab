"""The firewall, tried from inside containers on the real engine."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from support.engine.far_network import FarNetwork
from support.engine.host import EngineHost, eventually
from support.engine.images import command

pytestmark = pytest.mark.integration

PATIENCE = 30
"""Seconds in which a busy machine connects to what can be reached."""


async def reach(host: EngineHost, instance: str, address: str, port: int, seconds: int = 2) -> str:
    """What a connection from inside a container brings: some text, or `exit 1` if there is none within `seconds`."""
    shell = f"nc -w {seconds} {address} {port} </dev/null"
    return await asyncio.to_thread(host.execute, instance, "sh", "-c", shell)


async def test_a_container_reaches_the_internet_and_its_resolver_but_nothing_private(
    resolving: EngineHost, instance: str, far: FarNetwork
) -> None:
    resolving.want(instance)
    await resolving.running(instance)
    cases = {
        (far.public, 80): PATIENCE,
        (far.private, 53): PATIENCE,
        (far.private, 80): 2,
        (far.other_private, 80): 2,
        (far.other_private, 53): 2,
        (far.metadata, 80): 2,
        (far.metadata, 53): 2,
    }
    said = await asyncio.gather(*(reach(resolving, instance, *case, seconds) for case, seconds in cases.items()))
    reached = dict(zip(cases, said, strict=True))
    assert [case for case, said in reached.items() if said == "far"] == [(far.public, 80), (far.private, 53)]
    assert all("exit 1" in said for said in reached.values() if said != "far"), reached


async def test_the_hosts_own_ports_cannot_be_reached_while_the_host_reaches_the_container(
    host: EngineHost, instance: str
) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"host\n")
        writer.close()

    server = await asyncio.start_server(greet, "0.0.0.0", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        host.want(instance)
        seen = await host.running(instance)
        assert seen.address is not None
        gateway = f"{seen.address.rpartition('.')[0]}.{int(seen.address.rpartition('.')[2]) - 1}"
        outside = command("hostname", "-I").split()
        addresses = [gateway, "172.17.0.1", *(address for address in outside if "." in address)][:4]
        said = await asyncio.gather(*(reach(host, instance, address, port) for address in addresses))
        assert all("exit 1" in each for each in said), dict(zip(addresses, said, strict=True))

        reader, writer = await asyncio.open_connection(seen.address, 3001)
        async with asyncio.timeout(5):
            assert await reader.read() == b"hello\n"
        writer.close()
    finally:
        server.close()


async def test_containers_do_not_reach_each_other_nor_those_of_another_host(
    host: EngineHost, resolving: EngineHost, instance: str
) -> None:
    neighbour, stranger = str(uuid.uuid4()), str(uuid.uuid4())
    host.want(instance)
    host.want(neighbour)
    resolving.want(stranger)
    await host.running(instance)
    targets = [await host.running(neighbour), await resolving.running(stranger)]
    for target in targets:
        assert target.address is not None
        assert "exit 1" in await reach(host, instance, target.address, 3001)
    own = (await host.running(instance)).address
    assert own is not None
    assert await reach(host, instance, own, 3001, PATIENCE) == "hello"


async def test_a_container_has_no_ipv6_to_slip_out_by(host: EngineHost, instance: str) -> None:
    host.want(instance)
    await host.running(instance)
    assert "inet6" not in host.execute(instance, "ip", "addr", "show", "dev", "eth0")
    saved = command("ip6tables-save", "-t", "filter")
    prefix = host.names.bridge_prefix
    assert f"-A INPUT -i {prefix}+ -j {host.names.input_chain}" in saved
    assert f"-A {host.names.forward_chain} -d fd00:ec2::254/128 -j DROP" in saved


async def test_rules_removed_by_hand_come_back_and_teardown_removes_them(host: EngineHost, instance: str) -> None:
    host.want(instance)
    await host.running(instance)

    def saved() -> str:
        return command("iptables-save", "-t", "filter")

    jump = ("INPUT", "-i", f"{host.names.bridge_prefix}+", "-j", host.names.input_chain)
    command("iptables", "-w", "5", "-D", *jump)
    command("iptables", "-w", "5", "-F", host.names.forward_chain)
    await eventually(
        lambda: f"-A {' '.join(jump)}" in saved() and f"-A {host.names.forward_chain} -d 10.0.0.0/8" in saved(),
        lambda: f"rules back: {saved()}",
    )
    await host.clean()
    assert host.names.tag not in saved()
