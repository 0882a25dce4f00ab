"""DTMA killed after each external write of everything an owner can want: the world ends as if nothing had happened.

The writes are those to the Docker Engine, the state and runtime folders, the firewall and the gateway's workers,
and the answers to calls. What is compared after each step: containers, networks, volumes and whose they are, firewall,
files, both lists, the workers' policy, and what calls with each token come to.
"""

from __future__ import annotations

import os

import pytest

from support.dtma_crashes.enumeration import Enumeration, Scene
from support.dtma_crashes.owner import CONNECTIONS, DEPLOYMENT, EGRESS

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(os.geteuid() != 0, reason="a toolbox host needs root"),
]


@pytest.mark.timeout(900)
async def test_deploying_ends_in_the_same_world_after_whichever_write_dtma_is_killed(crash_scene: Scene) -> None:
    with crash_scene.watched() as agents:
        enumeration = Enumeration(crash_scene, agents, DEPLOYMENT)
        await enumeration.run()
    print(enumeration.summary)


@pytest.mark.timeout(900)
async def test_a_change_of_egress_ends_in_the_same_world_after_whichever_write_dtma_is_killed(
    crash_scene: Scene,
) -> None:
    with crash_scene.watched() as agents:
        enumeration = Enumeration(crash_scene, agents, EGRESS, spared=frozenset({"create", "delete"}))
        await enumeration.run()
    assert {name for name, kills in enumeration.fatal.items() if kills} == {"egress None", "egress All"}
    print(enumeration.summary)


@pytest.mark.timeout(900)
async def test_connecting_and_disconnecting_ends_in_the_same_world_after_whichever_write_dtma_is_killed(
    crash_scene: Scene,
) -> None:
    with crash_scene.watched() as agents:
        enumeration = Enumeration(crash_scene, agents, CONNECTIONS, spared=frozenset({"create", "delete"}))
        await enumeration.run()
    print(enumeration.summary)
