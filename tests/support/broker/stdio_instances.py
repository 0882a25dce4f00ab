"""Instances on stdio behind a gateway."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from support.broker import stdio_server
from support.broker.programs import Spawned
from support.broker.world import Broker
from support.gateway.world import World
from toolbox_dtma.link.messages import Surface

TOOLS = ("echo", "remember", "pid", "crash", "count", "ask_model", "ask_person")
"""Of the SDK's server."""


def stdio_instance(gateway: World, broker: Broker, **more: Any) -> str:
    """An instance of the SDK's server on stdio."""
    argv = [sys.executable, str(Path(stdio_server.__file__))]
    instance = broker.dtma.instance(lambda _request: Spawned(argv))
    return gateway.bridged(instance, broker.path, surface=Surface(tools=TOOLS), **more)
