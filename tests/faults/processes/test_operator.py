"""The operator's process ends, by force or on request, while people go on applying and deleting."""

from __future__ import annotations

import os
import signal

import pytest

from localstack.quickstart import Target
from support.poll import until
from support.system import rig
from support.system.space import Space
from support.system.world import World
from toolbox_operator.api.meta import ANNOTATION_INSTANCE_ID

pytestmark = pytest.mark.faults

PATIENT = ("--timing=host_connect=60", "--timing=host_call=60", "--timing=host_silence=90")
"""Longer than a busy machine takes to show that a call is under way."""


def annotations_of(world: World, target: Target) -> dict[str, str]:
    found = world.find(target)
    return {} if found is None else found["metadata"].get("annotations") or {}


def test_what_people_did_while_two_operators_in_a_row_were_killed_is_done_by_the_third(space: Space) -> None:
    world, operator = space.world, space.world.stack.operator
    kept, edited, removed = (rig.server(space, name) for name in ("kept", "edited", "removed"))
    bot, gone = space.connection("bot", "kept"), space.connection("gone", "removed")
    rig.ready(space, kept, edited, removed, bot, gone)
    secret, closed, before = space.secret("bot"), space.secret("gone"), rig.container(world, kept)
    assert operator.child is not None
    operator.child.kill()

    created = rig.server(space, "created")
    world.patch(edited, {"spec": {"env": [{"name": "VERSION", "value": "2"}]}})
    space.delete(removed, wait=False)
    space.delete(gone, wait=False)
    late = space.connection("late", "created")
    assert world.call(secret, "echo", {"a": 1}).text == '{"a": 1}', "agents need no operator"
    body = world.find(edited)
    assert body is not None
    assert body["status"]["observedGeneration"] < body["metadata"]["generation"], "status does not pretend to know"
    assert world.find(removed) is not None, "its finalizer waits"
    assert world.find(gone) is not None

    operator.start().kill()  # in the middle of all that
    assert world.call(secret, "echo", {"a": 2}).text == '{"a": 2}'
    operator.start()
    rig.ready(space, kept, edited, created, bot, late)
    until("removed is gone", lambda: world.find(removed), lambda found: found is None)
    until("gone is gone", lambda: world.find(gone), lambda found: found is None)
    assert world.status(edited)["serverInfo"]["version"] == "2"
    assert world.call(space.secret("late"), "echo", {}).text == "{}"
    assert world.refusal(closed, "echo", {}) is not None
    assert world.call(secret, "echo", {}).text == "{}", "the same Secret as before"
    assert rig.container(world, kept) == before, "what nobody changed was left alone"
    names = {"kept", "edited", "created", "bot", "late"}
    until("rows as the world is", lambda: {name for _, name in world.open_rows(space.namespace)}, names.__eq__)


def test_an_operator_that_is_stopped_during_a_reconcile_ends_it_and_hands_over_at_once(space: Space) -> None:
    world, operator, dtma = space.world, space.world.stack.operator, space.world.stack.host.dtma
    assert operator.child is not None
    assert dtma is not None
    operator.child.stop()
    operator.start(*PATIENT)
    rig.ready(space, rig.server(space, "quick"))  # it is in contact with the host
    child, transitions = operator.child, world.api.lease()["leaseTransitions"]
    os.kill(dtma.pid, signal.SIGSTOP)
    try:
        slow = rig.server(space, "slow")
        # Whoever has written its instance id goes on to tell the host in the same breath.
        until("its instance id written", lambda: annotations_of(world, slow).get(ANNOTATION_INSTANCE_ID))
        until(
            "a reconcile under way",
            lambda: rig.metric(world, "magic_toolbox_reconciles_running", kind="MCPServer"),
        )
        os.kill(child.pid, signal.SIGTERM)
    finally:
        os.kill(dtma.pid, signal.SIGCONT)
    until("the process ended", lambda: not child.running())
    assert child.exit_code == 0
    assert rig.instance_file(world, slow) is not None, "the call under way was not left behind"
    assert world.api.lease()["holderIdentity"] == ""
    operator.start()
    rig.ready(space, slow)
    assert world.api.lease()["leaseTransitions"] == transitions + 1
