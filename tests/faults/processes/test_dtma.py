"""The agent of a host (DTMA) ends by force: what runs goes on, what is asked for meanwhile waits and says so."""

from __future__ import annotations

import json

import pytest

from localstack.host import Host
from localstack.processes import Child
from localstack.quickstart import Target
from support.kubernetes.api import path_of
from support.manifests import QUICK_SERVER
from support.poll import until
from support.system import rig
from support.system.space import SYSTEM, Space

pytestmark = pytest.mark.faults

RIG = Target("Toolbox", SYSTEM, "tbx-rig")
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + QUICK_SERVER
"""Ends only when it is killed, ten seconds after it was asked to: time to do things during its removal."""


def dtma_of(host: Host) -> Child:
    assert host.dtma is not None
    return host.dtma


def test_agents_go_on_and_a_revocation_waits_and_says_so_while_dtma_is_dead(space: Space) -> None:
    world, host = space.world, space.world.stack.host
    server = rig.server(space, "held")
    bot, closed = space.connection("held-bot", "held"), space.connection("held-closed", "held")
    rig.ready(space, server, bot, closed)
    open_, shut = space.secret("held-bot"), space.secret("held-closed")
    container = rig.container(world, server)
    dtma_of(host).kill()

    assert world.refusal(open_, "echo", {}) is None, "the gateway serves what it knows"
    world.await_condition(RIG, "Reachable", "False", "HostUnreachable")
    text = world.await_event(RIG, "HostUnreachable")
    assert "cannot be reached" in text
    world.patch(closed, {"spec": {"active": False}})
    pending = world.await_condition(closed, "Programmed", "False", "RevocationPending")
    assert "not known to have taken this over" in pending["message"]
    assert world.status(closed)["phase"] == "Disconnected"
    assert world.condition(server, "Ready")["status"] == "True", "nothing is known to have changed within the lease"

    host.start_dtma()
    world.await_condition(closed, "Programmed", "True")
    assert world.refusal(shut, "echo", {}) is not None
    rig.ready(space, RIG, server, bot)
    assert world.refusal(open_, "echo", {}) is None
    assert rig.container(world, server) == container
    assert world.status(server)["container"]["restarts"] == 0


def test_a_deploy_and_a_removal_go_on_after_dtma_was_killed_in_the_middle_of_both(space: Space) -> None:
    world, host = space.world, space.world.stack.host
    stubborn = rig.server(space, "stubborn", command=["python3", "-S", "-c", STUBBORN])
    rig.ready(space, stubborn)
    file, container = rig.instance_file(world, stubborn), rig.container(world, stubborn)
    assert file is not None
    fresh = rig.server(space, "fresh")
    # Not by kubectl, which may take so long that the one is there, or the other gone, before DTMA is killed.
    world.api.request("DELETE", path_of(stubborn.kind, stubborn.namespace, stubborn.name))
    until("its removal began", lambda: json.loads(file.read_text())["deleting"])
    until("the host was told", lambda: rig.instance_file(world, fresh))
    dtma_of(host).kill()
    assert world.find(stubborn) is not None, "its finalizer waits for the host"
    host.start_dtma()
    rig.ready(space, fresh)
    until("gone", lambda: world.find(stubborn), lambda found: found is None, seconds=60)
    assert rig.inspect(world, container) is None
    assert rig.instance_file(world, stubborn) is None


def test_a_host_that_lost_records_and_went_back_in_time_is_told_again(space: Space) -> None:
    world, host = space.world, space.world.stack.host
    kept, lost = rig.server(space, "kept"), rig.server(space, "lost")
    bot, forgotten = space.connection("lost-bot", "lost"), space.connection("kept-bot", "kept")
    rig.ready(space, kept, lost, bot, forgotten)
    instance, before = rig.instance_file(world, lost), rig.container(world, kept)
    grant = host.state_dir / "grants" / f"{world.status(forgotten)['connectionId']}.json"
    assert instance is not None
    old = rig.container(world, lost)
    boot = json.loads((host.state_dir / "boot.json").read_text())
    dtma_of(host).kill()
    # As a copy of some days ago would have it.
    (host.state_dir / "boot.json").write_text(json.dumps({**boot, "boot_id": boot["boot_id"] - 100_000}))
    instance.unlink()
    grant.unlink()
    host.start_dtma()

    until("its container was made anew", lambda: rig.container(world, lost), lambda found: found not in ("", old))
    rig.ready(space, RIG, lost, kept, bot, forgotten)
    for connection in ("lost-bot", "kept-bot"):
        assert world.refusal(space.secret(connection), "echo", {}) is None
    assert rig.container(world, kept) == before
    new = rig.container(world, lost)
    query = f"SELECT container->>'id', status_on_toolbox FROM account_tool_instances WHERE id = '{instance.stem}'"  # noqa: S608 -- a name of ours
    until("the record follows", lambda: world.rows(query), lambda rows: rows == [(new, "active")])
