"""Whatever the order in which requests come, are answered and given up: nobody hears what is said to another."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.broker.client import unix_http
from support.broker.inside import inside
from support.broker.programs import Script, Scripted
from support.broker.stateless import LISTEN, SUBSCRIPTION, asking, post, served
from support.fuzz import examples
from support.gateway.mcp_http import messages

pytestmark = pytest.mark.component

CONNECTIONS = ("c-1", "c-2")
IDS: tuple[Any, ...] = (1, "1", "a")


@dataclass
class Asked:
    """One request under way, and what its client is to get."""

    answer: asyncio.Future[httpx.Response]
    id: Any
    token: Any
    number: int
    secret: str
    listens: bool
    due: list[Any] = field(default_factory=list[Any])


@dataclass
class Agents:
    """Clients of two connections, and their processes."""

    http: httpx.AsyncClient
    instance: str
    processes: dict[str, Scripted]
    chance: random.Random
    running: dict[str, list[Asked]] = field(default_factory=lambda: {name: [] for name in CONNECTIONS})
    given_up: dict[str, list[Asked]] = field(default_factory=lambda: {name: [] for name in CONNECTIONS})
    count: int = 0

    async def ask(self, connection: str) -> None:
        """Another request, with an id that others use too."""
        self.count += 1
        id_, token, secret = self.chance.choice(IDS), self.chance.choice((None, *IDS)), f"{connection}/{self.count}"
        listens = self.chance.random() < 0.3
        method = LISTEN if listens else "x/y"
        body = asking(method, id_, token, secret=secret)
        answer = asyncio.ensure_future(post(self.http, self.instance, body, connection))
        heard = await self.processes[connection].heard()
        assert heard["params"]["secret"] == secret
        self.running[connection].append(Asked(answer, id_, token, heard["id"], secret, listens))

    def say(self, connection: str) -> None:
        """A process says something about one of its requests, or about one that is over."""
        about = self.chance.choice(self.running[connection] + self.given_up[connection])
        kind = self.chance.choice(["progress", "change", "log", "ask"])
        extra = {"of": about.secret}
        shown: dict[str, Any] | None = None
        if kind == "progress":
            method, params = "notifications/progress", {"progressToken": about.number, **extra}
            if about.token is not None:
                shown = {"progressToken": about.token, **extra}
        elif kind == "change":
            method, params = "notifications/tools/list_changed", {"_meta": {SUBSCRIPTION: about.number}, **extra}
            if about.listens:
                shown = {"_meta": {SUBSCRIPTION: about.id}, **extra}
        else:
            method, params = "notifications/message", extra
        document = {"jsonrpc": "2.0", "method": method, "params": params}
        self.processes[connection].say(document if kind != "ask" else {**document, "id": about.number})
        if shown is not None and kind != "ask" and about in self.running[connection]:
            about.due.append({"jsonrpc": "2.0", "method": method, "params": shown})

    async def end(self, connection: str, *, hang_up: bool) -> None:
        """One request is answered, or given up."""
        asked = self.running[connection].pop(self.chance.randrange(len(self.running[connection])))
        process = self.processes[connection]
        if hang_up:
            asked.answer.cancel()
            told = await process.heard()
            assert (told["method"], told["params"]["requestId"]) == ("notifications/cancelled", asked.number)
            self.given_up[connection].append(asked)
            return
        process.say({"jsonrpc": "2.0", "id": asked.number, "result": {"of": asked.secret}})
        got = messages(await asked.answer)
        assert got == [*asked.due, {"jsonrpc": "2.0", "id": asked.id, "result": {"of": asked.secret}}]


@asynccontextmanager
async def agents(seed: int) -> AsyncGenerator[Agents]:
    """A broker, with a process for each connection."""
    async with AsyncExitStack() as stack:
        parts = await stack.enter_async_context(inside())
        http = await stack.enter_async_context(unix_http(parts.path))
        script = Script()
        stack.push_async_callback(script.close)
        instance = parts.dtma.instance(script)
        processes = {
            name: await served(http, instance, script, name, known=n > 0) for n, name in enumerate(CONNECTIONS)
        }
        yield Agents(http, instance, processes, random.Random(seed))


async def follow(plan: list[tuple[str, str]], seed: int) -> None:
    """One run, at the end of which every request that was not given up is answered."""
    async with agents(seed) as all_:
        for what, connection in plan:
            if what == "ask":
                await all_.ask(connection)
            elif what == "say" and all_.running[connection] + all_.given_up[connection]:
                all_.say(connection)
            elif what in ("answer", "hang up") and all_.running[connection]:
                await all_.end(connection, hang_up=what == "hang up")
        for connection in CONNECTIONS:
            while all_.running[connection]:
                await all_.end(connection, hang_up=False)


STEPS = st.tuples(st.sampled_from(["ask", "ask", "say", "say", "answer", "hang up"]), st.sampled_from(CONNECTIONS))


def test_nobody_hears_what_is_said_to_another() -> None:
    @examples(25)
    @given(st.lists(STEPS, min_size=5, max_size=60), st.integers(0, 2**16))
    def check(plan: list[tuple[str, str]], seed: int) -> None:
        asyncio.run(follow(plan, seed))

    check()
