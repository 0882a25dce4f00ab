"""Headers that repeat the arguments of a call without a session, against what the process lists."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from support.broker.programs import Script
from support.broker.stateless import (
    answers,
    asking,
    changed,
    lists,
    post,
    result,
    stateless_process,
    streaming_listen,
)
from support.broker.world import Broker

pytestmark = pytest.mark.component


REGION = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}


def routed(region: str = "eu") -> dict[str, Any]:
    """A call with an argument that its header repeats."""
    return asking("tools/call", name="route", arguments={"region": region})


async def test_a_header_that_repeats_an_argument_must_say_the_same(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    right = asyncio.ensure_future(post(http, instance, routed(), headers={"Mcp-Param-Region": "eu"}))
    process = await stateless_process(script)
    first = await process.heard()
    assert first["method"] == "tools/list" and "cursor" not in first["params"]
    process.say(result(first["id"], tools=[{"name": "other", "inputSchema": {}}], nextCursor="2"))
    assert (await lists(process, [{"name": "route", "inputSchema": REGION}]))["params"]["cursor"] == "2"
    assert (await answers(process, {}))["params"]["name"] == "route"
    assert (await right).status_code == 200
    for headers in ({}, {"Mcp-Param-Region": "us"}, {"Mcp-Param-Region": "=?base64?!?="}):
        answer = await post(http, instance, routed(), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"], answer.json()["id"]) == (400, -32020, 1)
        assert "Mcp-Param-Region" in answer.json()["error"]["message"]
    # A tool without marks, and a header without a mark, are no matter.
    plain = asking("tools/call", name="other", arguments={"region": "eu"})
    asked = asyncio.ensure_future(post(http, instance, plain, headers={"Mcp-Param-Region": "us"}))
    assert (await answers(process, {}))["params"]["name"] == "other"
    assert (await asked).status_code == 200


async def test_what_is_compared_follows_the_lists_that_clients_get(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    asked = asyncio.ensure_future(post(http, instance, routed()))
    process = await stateless_process(script, tools=[{"name": "route", "inputSchema": {}}])
    await answers(process, {})
    assert (await asked).status_code == 200
    listing = asyncio.ensure_future(post(http, instance, asking("tools/list")))
    await lists(process, [{"name": "route", "inputSchema": REGION}])
    await listing
    assert (await post(http, instance, routed())).json()["error"]["code"] == -32020
    async with streaming_listen(http, instance, process, "a") as (events, number):
        process.say(changed(number))
        await events.next()
        asked = asyncio.ensure_future(post(http, instance, routed()))
        await lists(process, [{"name": "route", "inputSchema": {}}])
        await answers(process, {})
        assert (await asked).status_code == 200


async def test_a_server_that_lists_no_tools_is_called_without_a_comparison(
    http: httpx.AsyncClient, broker: Broker, script: Script
) -> None:
    instance = broker.dtma.instance(script)
    asked = asyncio.ensure_future(post(http, instance, routed()))
    process = await stateless_process(script)
    heard = await process.heard()
    process.say({"jsonrpc": "2.0", "id": heard["id"], "error": {"code": -32601, "message": "no"}})
    assert (await answers(process, {}))["method"] == "tools/call"
    assert (await asked).status_code == 200
