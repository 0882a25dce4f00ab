"""What servers may take of their host."""

from __future__ import annotations

from typing import Any

from toolbox_dtma.management.reserved import reserved
from toolbox_dtma.wire import DesiredInstance, Reserved

MIB = 1 << 20


def desired(memory: int, cpu: int, **more: Any) -> DesiredInstance:
    """An instance with these limits, in MiB and thousandths."""
    limits = {"memory_bytes": memory * MIB, "cpu_millis": cpu}
    common = {"uid": "u", "namespace": "n", "name": "s", "generation": 1, "inputs_hash": "0" * 64, "image": "i:1"}
    listening = {"transport": "streamable-http", "port": 80, "path": "/mcp"}
    return DesiredInstance.model_validate({**common, **listening, "limits": limits, **more})


def on_stdio(memory: int, cpu: int, sessions: int, **more: Any) -> DesiredInstance:
    """The same for each session of a server on stdio."""
    without = {"transport": "stdio", "port": None, "path": None, "sessions": {"max_sessions": sessions}}
    return desired(memory, cpu, **without, **more)


def test_a_server_on_stdio_counts_as_often_as_it_may_have_sessions_and_others_once() -> None:
    found = reserved([desired(100, 500), on_stdio(64, 250, 10)])
    assert found == Reserved(memory_bytes=(100 + 640) * MIB, cpu_millis=3000)


def test_what_is_stopped_takes_nothing() -> None:
    stopped = [desired(100, 500, state="Stopped"), on_stdio(64, 250, 10, state="Stopped")]
    assert reserved(stopped) == reserved([]) == Reserved(memory_bytes=0, cpu_millis=0)
