"""One host, one Toolbox: an endpoint that leads elsewhere, and two Toolboxes on one host."""

from __future__ import annotations

import pytest

from localstack.quickstart import Target
from support.hosts import tiny_server
from support.hosts.far_toolbox import FarToolbox
from support.poll import until

pytestmark = pytest.mark.faults


def test_an_endpoint_edited_to_another_host_is_refused_until_it_is_edited_back(far: FarToolbox) -> None:
    server = far.ready_server("time")
    connection = far.ready_connection("bot", server)
    before = far.container(server)
    own = far.world.find(far.target)
    assert own is not None
    # The other host with its own Secrets, so that nothing but its identity speaks against it.
    elsewhere = far.world.stack.host
    other = next(document for document in elsewhere.manifests if document["kind"] == "Toolbox")["spec"]
    namespace = {"namespace": far.space.namespace}
    secrets = [document for document in elsewhere.manifests if document["kind"] == "Secret"]
    far.space.apply(*({**document, "metadata": {**document["metadata"], **namespace}} for document in secrets))
    fields = ("endpoint", "authSecretRef", "caSecretRef")
    far.world.patch(far.target, {"spec": {field: other[field] for field in fields}})
    stalled = far.world.await_condition(far.target, "Stalled", "True", "HostChanged")
    assert far.host.host_id in stalled["message"] and elsewhere.host_id in stalled["message"]
    assert far.world.status(far.target)["phase"] == "Stalled"
    assert far.world.status(far.target)["hostId"] == far.host.host_id
    far.world.await_event(far.target, "HostChanged")
    # What runs on the old host is not known any more after the lease, and is not put on the new one.
    far.world.await_condition(server, "Ready", "Unknown", seconds=90)
    assert far.call(connection) == before
    assert far.world.containers_of(far.space.namespace) == []
    assert far.host.containers(running_only=True) == [before]
    far.world.patch(far.target, {"spec": {field: own["spec"][field] for field in fields}})
    for target in (far.target, server, connection):
        far.world.await_condition(target, "Ready", "True", seconds=60)
    assert far.container(server) == before


def test_of_two_toolboxes_on_one_host_the_second_takes_over_when_the_first_goes(far: FarToolbox) -> None:
    server = far.ready_server("time")
    before = far.container(server)
    second = Target("Toolbox", far.space.namespace, "second")
    far.space.apply(*far.host.documents(far.space.namespace, second.name))
    stalled = far.world.await_condition(second, "Stalled", "True", "HostClaimed")
    assert str(far.target.name) in stalled["message"] and "delete one of the two" in stalled["message"]
    far.world.await_event(second, "HostClaimed")
    reference = {"name": second.name, "namespace": second.namespace}
    late = far.space.server("late", image=far.host.image, toolboxRef=reference, **tiny_server.spec())
    far.world.await_condition(late, "Ready", "False", "ToolboxNotReady")
    assert far.world.condition(far.target, "Ready")["status"] == "True"
    assert far.host.containers() == [before]
    far.space.delete(server)
    far.space.delete(far.target)
    until("taken over", lambda: far.world.status(second)["phase"], lambda phase: phase == "Ready", seconds=60)
    far.world.await_condition(second, "Ready", "True")
    far.world.await_condition(late, "Ready", "True", seconds=60)
    assert far.host.containers(running_only=True) == [far.container(late)]
