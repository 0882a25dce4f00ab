"""A session of a stream, and the /mcp that it talks to."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
from aiohttp import web

from support.gateway.sse_session import QUICK, Client, Mcp
from toolbox_dtma.gateway.clients import Clients, Share
from toolbox_dtma.gateway.connection import Server
from toolbox_dtma.gateway.http_sse.outbox import Budget
from toolbox_dtma.gateway.http_sse.own import OwnClient
from toolbox_dtma.gateway.http_sse.session import (
    Session,
)
from toolbox_dtma.gateway.refusal import Refusal
from toolbox_dtma.gateway.settings import ClientBounds


@pytest.fixture
async def mcp() -> Mcp:
    return Mcp()


@pytest.fixture
async def client(mcp: Mcp) -> AsyncGenerator[Client]:
    def refused(_request: web.BaseRequest, refusal: Refusal) -> web.StreamResponse:
        return refusal.response()

    budget, clients, broken = Budget(), Clients(Share(100, 100)), list[BaseException]()
    server = Server(mcp.handle, ClientBounds(), Clients(Share(0, 0)), refused)
    own = OwnClient(server)
    session = Session(
        own,
        clients,
        budget,
        connection="c",
        instance="i",
        source="192.0.2.7",
        headers={"Host": "h", "Authorization": "Bearer t"},
        broken=broken.append,
        patience=QUICK,
    )
    yield Client(session, clients, broken)
    session.close()
    await session.ended(delete=False)
    await own.close()
    await server.shutdown(1)
    assert budget.held == 0, "everything that was held is given back"
    assert clients.connections == 0, "every place is given back"
