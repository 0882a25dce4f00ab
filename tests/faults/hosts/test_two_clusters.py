"""Two clusters that share a host without knowing of each other."""

from __future__ import annotations

import pytest

from localstack.quickstart import Target
from support import manifests
from support.hosts import tiny_server
from support.hosts.far_toolbox import FarToolbox, attached
from support.poll import until
from support.system.space import Space
from toolbox_operator.api.meta import ANNOTATION_INSTANCE_ID

pytestmark = [pytest.mark.faults, pytest.mark.timeout(420)]


def test_two_clusters_on_one_host_neither_see_nor_touch_each_others_objects(
    far: FarToolbox, second_space: Space
) -> None:
    ours = far.ready_server("time")
    our_bot = far.ready_connection("bot", ours)
    our_container = far.container(ours)
    since = {target: far.world.condition(target, "Ready") for target in (far.target, ours, our_bot)}
    with attached(second_space, far.host) as second:
        theirs = second.ready_server("time")
        their_bot = second.ready_connection("bot", theirs)
        their_container = second.container(theirs)
        assert our_container != their_container
        assert far.world.status(far.target)["servers"] == second.world.status(second.target)["servers"] == 1
        assert far.call(our_bot) == our_container
        assert second.call(their_bot) == their_container
        crossed = {**far.space.secret("bot"), "url": second.space.secret("bot")["url"]}
        assert far.world.refusal(crossed, "whoami", {}) is not None

        copied = copy_of(second, far.instance(ours))
        stalled = second.world.await_condition(copied, "Stalled", "True", "InstanceIdInUse")
        assert "another cluster" in stalled["message"]
        second.world.await_event(copied, "InstanceIdInUse")
        second.space.delete(copied)

        # A new process lists the host and sweeps what is not its own cluster's any more: not what never was.
        operator = second.world.stack.operator
        assert operator.child is not None
        operator.child.kill()
        operator.start()
        edit = {"spec": {"env": [{"name": "VERSION", "value": "2"}]}}
        second.world.patch(theirs, edit)
        until("edited", lambda: second.world.status(theirs)["serverInfo"]["version"], lambda seen: seen == "2")
        assert far.call(our_bot) == our_container
    assert far.host.containers(running_only=True) == [our_container]
    assert list(far.host.instances()) == [far.instance(ours)]
    assert len(far.host.grants()) == 1
    assert far.call(our_bot) == our_container
    assert {target: far.world.condition(target, "Ready") for target in since} == since


def copy_of(second: FarToolbox, instance: str) -> Target:
    """A server that was exported with its instance id from the other cluster."""
    namespace = second.space.namespace
    reference = {"name": second.target.name, "namespace": second.target.namespace}
    document = manifests.server(namespace, "copied", second.host.image, **tiny_server.spec(toolboxRef=reference))
    document["metadata"]["annotations"] = {ANNOTATION_INSTANCE_ID: instance}
    second.space.apply(document)
    return Target("MCPServer", namespace, "copied")
