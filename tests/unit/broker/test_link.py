"""What is told to workers of the version before, and how the parts' deadlines fit together."""

from __future__ import annotations

import json

from toolbox_dtma.broker.session import Patience
from toolbox_dtma.broker.sse import Deadlines
from toolbox_dtma.gateway.probe import MAX_START_SECONDS
from toolbox_dtma.link.broker import TO_BROKER, SessionOpened, Upstream
from toolbox_dtma.link.messages import InstanceRoute, ProbeRequest
from toolbox_dtma.sessions.records import PROBE_IDLE_SECONDS
from toolbox_dtma.settings import Timings


def test_a_worker_that_knows_no_bridge_is_told_of_none() -> None:
    route = InstanceRoute(id="i", incarnation="n", address="10.0.0.2", port=1, path="/mcp", state="running")
    probe = ProbeRequest(probe=1, address="10.0.0.2", port=1, path="/mcp", deadline=1)
    for message in (route, probe):
        assert not {"bridge", "ticket"} & set(json.loads(message.model_dump_json()))
        assert type(message).model_validate_json(message.model_dump_json()) == message
    bridged = probe.model_copy(update={"bridge": "/run/b.sock", "ticket": "t-1"})
    assert ProbeRequest.model_validate_json(bridged.model_dump_json()) == bridged
    assert "t-1" not in repr(bridged)


def test_a_session_with_a_stream_is_told_as_it_was_before_there_were_others() -> None:
    opened = SessionOpened(request=1, session="s", idle_seconds=60)
    assert "upstream" not in json.loads(opened.model_dump_json())
    pointed = opened.model_copy(update={"upstream": Upstream(address="10.0.0.2", port=3001, path="/sse")})
    assert TO_BROKER.validate_json(pointed.model_dump_json()) == pointed


def test_a_probe_that_waits_for_processes_is_told_as_it_was_before_any_did() -> None:
    probe = ProbeRequest(probe=1, address="", port=0, path="/mcp", deadline=10)
    assert "start" not in json.loads(probe.model_dump_json()) and probe.longest == 10
    waits = probe.model_copy(update={"start": 45.0})
    assert ProbeRequest.model_validate_json(waits.model_dump_json()) == waits and waits.longest == 55


def test_a_probe_outlives_the_patience_with_its_first_process_and_is_over_before_its_server_is_late() -> None:
    patience, timings = Patience(), Timings()
    assert patience.quiet + patience.present_probed < patience.probed
    # A second process gets at least as long as the first.
    assert 2 * patience.probed <= timings.probe_session_start <= MAX_START_SECONDS
    assert timings.probe_session_start + timings.probe_timeout < timings.probe_start_deadline
    assert timings.probe_session_start + timings.probe_timeout < PROBE_IDLE_SECONDS


def test_a_probe_has_the_time_to_tell_of_an_endpoint_that_never_comes() -> None:
    assert Deadlines().endpoint < Timings().probe_timeout - 1
    assert Deadlines().endpoint < Patience().input
