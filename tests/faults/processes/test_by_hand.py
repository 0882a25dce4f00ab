"""Somebody at the host changes by hand what is not theirs: it is put back, and status tells the truth meanwhile."""

from __future__ import annotations

import contextlib
import subprocess

import pytest

from localstack.progress import SetupError
from localstack.quickstart import Target
from support.poll import until
from support.system import rig
from support.system.space import Space
from support.system.world import World
from toolbox_dtma.engine.names import LABEL_INSTANCE, HostNames

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def servers(space: Space) -> dict[str, Target]:
    """A running server for each thing that is done by hand."""
    names = ("removed", "stopped", "killed", "paused", "renamed", "doubled", "cut-off", "netless")
    found = {name: rig.server(space, name) for name in names}
    rig.ready(space, *found.values())
    return found


def docker(world: World, *arguments: str) -> str:
    return world.stack.parts.engine.docker(*arguments)


def running(world: World, server: Target) -> list[str]:
    """Ids of the running containers that carry the server's instance."""
    instance = world.status(server)["instanceId"]
    return docker(world, "ps", "--quiet", "--no-trunc", "--filter", f"label={LABEL_INSTANCE}={instance}").split()


def answers(world: World, server: Target) -> None:
    """It is Ready and its container is the one that runs."""
    world.await_condition(server, "Ready", "True", seconds=90)
    until(
        "status names what runs",
        lambda: (running(world, server), [rig.container(world, server)]),
        lambda seen: seen[0] == seen[1],
    )


def test_a_container_that_was_removed_is_made_again(space: Space, servers: dict[str, Target]) -> None:
    world, server = space.world, servers["removed"]
    before = rig.container(world, server)
    docker(world, "rm", "--force", before)
    until("another container", lambda: rig.container(world, server), lambda now: now not in ("", before))
    answers(world, server)


@pytest.mark.parametrize(("done", "code"), [("stopped", 143), ("killed", 137)])
def test_a_container_that_was_ended_is_an_error_until_it_is_started_again(
    space: Space, servers: dict[str, Target], done: str, code: int
) -> None:
    world, server = space.world, servers[done]
    before = rig.container(world, server)
    texts, times = list[str](), 0
    # An operator that is late finds the container started again, and has nothing to tell.
    while not texts:
        assert times < 4, "nobody was told"
        docker(world, {"stopped": "stop", "killed": "kill"}[done], before)
        times += 1
        until("started again", lambda: world.status(server)["container"]["restarts"], times.__eq__, seconds=60)
        answers(world, server)
        told = ("Warning", "ContainerExited")
        texts = [text for type_, reason, text in world.events(server) if (type_, reason) == told]
    assert all(f"exit code {code}" in text for text in texts)
    assert rig.container(world, server) == before
    assert world.status(server)["container"]["restarts"] == times


def test_a_paused_container_is_thawed(space: Space, servers: dict[str, Target]) -> None:
    world, server = space.world, servers["paused"]
    container = rig.container(world, server)
    docker(world, "pause", container)

    def paused() -> bool:
        found = rig.inspect(world, container)
        return found is not None and found["State"]["Paused"]

    until("thawed", paused, lambda seen: not seen)
    answers(world, server)
    assert rig.container(world, server) == container


def test_a_renamed_container_is_still_known_and_goes_with_its_object(space: Space, servers: dict[str, Target]) -> None:
    world, server = space.world, servers["renamed"]
    container = rig.container(world, server)
    docker(world, "rename", container, "somebody-elses-name")
    until("status follows", lambda: world.status(server)["container"]["name"], "somebody-elses-name".__eq__)
    answers(world, server)
    space.delete(server)
    assert rig.inspect(world, container) is None


def test_a_second_container_with_the_same_labels_is_removed(space: Space, servers: dict[str, Target]) -> None:
    world, server = space.world, servers["doubled"]
    container = rig.container(world, server)
    found = rig.inspect(world, container)
    assert found is not None
    labels = [part for key, value in found["Config"]["Labels"].items() for part in ("--label", f"{key}={value}")]
    twin = docker(world, "create", *labels, found["Config"]["Image"], "python3", "-c", "input()").strip()
    # It may be removed before it gets to run.
    with contextlib.suppress(SetupError):
        docker(world, "start", twin)
    until("the twin is gone", lambda: rig.inspect(world, twin), lambda seen: seen is None)
    answers(world, server)
    assert rig.container(world, server) == container, "the one that agents use was left alone"
    until("the witness saw its end", lambda: twin in space.witness.removed)
    # The person's own doing; that there was nothing else is checked at the end.
    space.witness.doubles[:] = [line for line in space.witness.doubles if twin not in line]


def test_lost_networks_and_firewall_rules_are_put_back_by_the_next_comparison(
    space: Space, servers: dict[str, Target]
) -> None:
    world, cut_off, netless = space.world, servers["cut-off"], servers["netless"]
    chains = HostNames(world.stack.host.host_id)
    subprocess.run(["iptables", "--flush", chains.input_chain], check=True, timeout=10)
    subprocess.run(["iptables", "--flush", chains.forward_chain], check=True, timeout=10)
    before = {server: rig.container(world, server) for server in (cut_off, netless)}
    for server, container in before.items():
        found = rig.inspect(world, container)
        assert found is not None
        (network,) = found["NetworkSettings"]["Networks"]
        docker(world, "network", "disconnect", "--force", network, container)
        if server == netless:
            docker(world, "network", "rm", network)
    for server, container in before.items():
        until(
            "made anew",
            lambda s=server: rig.container(world, s),
            lambda now, c=container: now not in ("", c),
            seconds=90,
        )
        answers(world, server)
    for chain in (chains.input_chain, chains.forward_chain):
        listed = subprocess.run(["iptables", "-S", chain], check=True, timeout=10, capture_output=True, text=True)
        assert "-j DROP" in listed.stdout
