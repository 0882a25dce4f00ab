"""What is told to workers of the version before."""

from __future__ import annotations

import json

from toolbox_dtma.link.messages import InstanceRoute, ProbeRequest


def test_a_worker_that_knows_no_bridge_is_told_of_none() -> None:
    route = InstanceRoute(id="i", incarnation="n", address="10.0.0.2", port=1, path="/mcp", state="running")
    probe = ProbeRequest(probe=1, address="10.0.0.2", port=1, path="/mcp", deadline=1)
    for message in (route, probe):
        assert not {"bridge", "ticket"} & set(json.loads(message.model_dump_json()))
        assert type(message).model_validate_json(message.model_dump_json()) == message
    bridged = probe.model_copy(update={"bridge": "/run/b.sock", "ticket": "t-1"})
    assert ProbeRequest.model_validate_json(bridged.model_dump_json()) == bridged
    assert "t-1" not in repr(bridged)
