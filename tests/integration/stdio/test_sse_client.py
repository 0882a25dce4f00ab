"""An agent that only speaks HTTP+SSE and a server that only speaks stdio: gateway, session broker, DTMA and Docker."""

from __future__ import annotations

import ssl

import pytest

from support.gateway.sse_client import sdk_sse_client
from support.hosts.stdio_host import StdioHost, told
from support.poll import until

pytestmark = pytest.mark.integration


async def test_a_stream_is_a_session_with_a_container_which_ends_with_it(stdio_host: StdioHost, instance: str) -> None:
    _, token = stdio_host.grant(instance)
    context = ssl.create_default_context(cafile=str(stdio_host.host.ca_file))
    async with sdk_sse_client(f"{stdio_host.url}/servers/{instance}/sse", token, context) as client:
        mine = await told(client, "whoami")
        assert mine in stdio_host.sessions(instance)
        assert [await told(client, "count") for _ in range(3)] == ["1", "2", "3"]
    until("its container is gone", lambda: mine not in stdio_host.sessions(instance))
