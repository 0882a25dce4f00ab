"""One process that all stateless requests of a connection share (design §6)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from toolbox_dtma.broker import param_headers
from toolbox_dtma.broker.calls import Call, Calls, Delivery
from toolbox_dtma.broker.eras import own_request
from toolbox_dtma.broker.messages import NotAMessage
from toolbox_dtma.broker.outlets import Outlet, Said
from toolbox_dtma.broker.param_headers import Param
from toolbox_dtma.broker.peer import Over
from toolbox_dtma.broker.pipe import InputFull, Pipe
from toolbox_dtma.broker.rewriting import Mark, Marked, read
from toolbox_dtma.broker.session import Owner, Patience, SessionOver
from toolbox_dtma.broker.streams import ProcessStreams
from toolbox_dtma.broker.turns import Turns
from toolbox_dtma.gateway.parsing import SERVER_ERROR, Kind
from toolbox_dtma.gateway.skimming import Steps, T, is_quick, run
from toolbox_dtma.link.broker import Closing, SessionOpened

LIST_TOOLS = "tools/list"
LIST_CHANGED = "notifications/tools/list_changed"
LISTING_SECONDS = 5.0
"""For all pages of a list of tools that the broker reads for itself."""
MAX_PAGES = 100
MAX_HUNG_UP = 64
"""Requests whose clients hung up, and that the process could not be told of yet."""


@dataclass(frozen=True, slots=True)
class Stated(Said):
    """A message, with the HTTP status that it has if it is all of an answer."""

    status: int = 200


class SharedProcess:
    """Reads what the process writes until it ends, and writes what clients say. Methods run in one event loop."""

    def __init__(
        self,
        opened: SessionOpened,
        instance: str,
        owner: Owner,
        pipe: Pipe[ProcessStreams],
        *,
        patience: Patience,
        turns: Turns,
        over: Callable[[SharedProcess, Closing | None], None],
    ):
        """`over` is called once, when it has ended; its reason is for DTMA, None where that said so itself."""
        self.opened = opened
        self.instance = instance
        self.owner = owner
        self._pipe = pipe
        self._patience = patience
        self._turns = turns
        self._tell_over = over
        self._loop = asyncio.get_running_loop()
        self._calls = Calls()
        self._outlets: dict[int, Outlet] = {}
        self._own: dict[int, asyncio.Future[Marked]] = {}
        """Requests of the broker's own."""
        self._params: dict[str, tuple[Param, ...]] = {}
        """Marked parameters of tools, as the process listed them last."""
        self._listed = False
        self._listing = asyncio.Lock()
        self.over: str | None = None
        """Why it has ended, in words for clients; None while it has not."""
        self._farewell: str | None = None
        self.ended_itself = False
        """Whether it has ended without anybody's having wanted it."""
        self._telling: set[asyncio.Task[None]] = set()
        self._touched = self._loop.time()
        self._idle = self._loop.call_later(opened.idle_seconds, self._check_idle)
        self._reading = asyncio.create_task(self._read())

    @property
    def name(self) -> str:
        """DTMA's word for it."""
        return self.opened.session

    @property
    def owes(self) -> bool:
        """Whether it has not answered what the broker asked it."""
        return bool(self._own)

    @property
    def dropped(self) -> int:
        """Messages that nobody got."""
        return self._calls.dropped

    # The clients' side.

    async def begin(self, asked: Marked) -> tuple[Call, Outlet]:
        """Give a request to the process; what comes for it is put into the outlet.

        Raises `SessionOver`, `InputFull`, `TooMany`; then nothing of it has reached the process.
        """
        self._check()
        call, message = self._calls.begin(asked)
        outlet = self._outlets[call.number] = Outlet()
        try:
            await self._write(message)
        except BaseException:
            self._calls.leave(call)
            self._outlets.pop(call.number, None)
            raise
        return call, outlet

    def leave(self, call: Call) -> None:
        """Nobody waits for a request any more. If it is not answered, that is its cancellation (2026-07-28)."""
        outlet = self._outlets.pop(call.number, None)
        if outlet is not None:
            outlet.desert()
        if self._calls.leave(call):
            self._cancel(call)
        self._touch()

    async def notify(self, said: Marked) -> None:
        """Pass a notification on. Raises `SessionOver`, `InputFull`."""
        self._check()
        await self._write(said.raw)

    async def mismatch(self, asked: Marked, headers: Mapping[str, Sequence[str]]) -> str | None:
        """What is wrong with the headers that repeat arguments of a tools/call; None if nothing is.

        What the process cannot list in time is not compared: a call that works must not fail for that.
        """
        name = asked.values.get(Mark.NAME)
        arguments = (asked.written(Mark.ARGUMENTS) or b"").translate(None, b" \t\r\n")
        repeats = any(header.startswith(param_headers.PREFIX.lower()) for header in headers)
        if not isinstance(name, str) or (arguments in (b"", b"{}", b"null") and not repeats):
            return None
        async with self._listing:
            if not self._listed:
                await self._list_once()
        params = self._params.get(name)
        if not params:
            return None
        return await self._read_in_turn(param_headers.mismatch(asked.raw, params, headers), asked.raw)

    async def ask(self, method: str, **params: Any) -> asyncio.Future[Marked]:
        """A request of the broker's own, written; its answer fails with `SessionOver`. Raises as `begin` does."""
        self._check()
        number = self._calls.number()
        answer = self._own[number] = self._loop.create_future()
        answer.add_done_callback(lambda done: self._answered(number, done))
        try:
            await self._write(own_request(number, method, **params))
        except BaseException:
            answer.cancel()
            raise
        return answer

    def _answered(self, number: int, answer: asyncio.Future[Marked]) -> None:
        self._own.pop(number, None)
        if not answer.cancelled():
            # Looked at: whoever asked may be gone.
            answer.exception()

    async def _list_once(self) -> None:
        # Before, not after: what changes meanwhile is listed again.
        self._listed = True
        try:
            with suppress(TimeoutError, InputFull, SessionOver):
                async with asyncio.timeout(LISTING_SECONDS):
                    await self._list_tools()
        except asyncio.CancelledError:
            self._listed = False
            raise

    async def _list_tools(self) -> None:
        """Read all pages, as any client could."""
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            answer = await (await self.ask(LIST_TOOLS, **({} if cursor is None else {"cursor": cursor})))
            cursor = await self._learn(answer)
            if cursor is None:
                return

    async def _learn(self, answer: Marked) -> str | None:
        """Remember what a page of tools says of their parameters; where the next page is."""
        listed = await self._read_in_turn(param_headers.page(answer.raw), answer.raw)
        for name, params in listed.tools.items():
            self._params.pop(name, None)
            if params and len(self._params) < param_headers.MAX_TOOLS:
                self._params[name] = params
        return listed.cursor

    def _check(self) -> None:
        if self.over is not None:
            raise SessionOver(self.over)

    async def _write(self, message: bytes) -> None:
        """Raises `SessionOver`, `InputFull`."""
        try:
            await self._pipe.write(len(message), lambda streams: streams.say(message))
        except Over as over:
            raise SessionOver(self.over or over.message) from None
        self._touch()

    def _cancel(self, call: Call) -> None:
        """Over a pipe it takes a message, which may have to wait for others. Its answer is nobody's from now on."""
        if self.over is not None or len(self._telling) >= MAX_HUNG_UP:
            return
        params = b'{"requestId":%d,"reason":"its client hung up"}' % call.number
        message = b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":%b}' % params
        task = asyncio.create_task(self._tell(message))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self, message: bytes) -> None:
        # A process that takes no input learns it of nobody, and refuses the next request for the same reason.
        with suppress(SessionOver, InputFull):
            await self._write(message)

    # Its end.

    def end(self, why: Closing | None, message: str) -> None:
        """End it now: whoever waits for an answer gets an error."""
        if self.over is not None:
            return
        self._finish(message)
        self._pipe.streams.abort()
        self._tell_over(self, why)

    async def exited(self, message: str) -> None:
        """The process is gone: what it wrote before is still passed on."""
        self._farewell, self.ended_itself = message, True
        await asyncio.wait({self._reading}, timeout=self._patience.last_words)
        self.end(None, message)

    async def release(self) -> ProcessStreams | None:
        """Give its streams to somebody else, who begins anew with them; None if it has ended.

        Nobody but the broker must have said anything to it, and it must owe nothing.
        """
        self._reading.cancel()
        await self.ended()
        if self.over is not None:
            return None
        self._finish("It is used in another way")
        return self._pipe.streams

    def _finish(self, message: str) -> None:
        self.over = message
        self._idle.cancel()
        for call in self._calls.running:
            self._calls.leave(call)
            outlet = self._outlets.pop(call.number, None)
            if outlet is not None:
                outlet.put(Stated(call.error(SERVER_ERROR, message), last=True, failed=True))
        for outlet in self._outlets.values():
            # Its answer was being read.
            outlet.close()
        self._outlets.clear()
        for answer in tuple(self._own.values()):
            if not answer.done():
                answer.set_exception(SessionOver(message))
        for task in tuple(self._telling):
            task.cancel()
        self._reading.cancel()
        self._pipe.leave()

    async def ended(self) -> None:
        """Wait until nothing of it runs any more."""
        await asyncio.gather(self._reading, *self._telling, return_exceptions=True)

    # The process's side.

    async def _read(self) -> None:
        why: Closing | None = Closing.PROTOCOL
        try:
            await self._pipe.read(self._deliver, self._held)
        except NotAMessage as error:
            message = f"{self._pipe.streams.not_a_message}: {error}"
        except Over as over:
            why, message = over.why, over.message
            if why is Closing.ENDED and self._farewell is not None:
                why, message = None, self._farewell
        self.ended_itself = True
        self.end(why, message)

    def _held(self) -> int:
        return sum(outlet.held for outlet in self._outlets.values())

    async def _deliver(self, line: bytes) -> None:
        said = await self._read_in_turn(read(line, of_client=False), line)
        if said.kind is Kind.RESPONSE and self._answers_us(said):
            return
        if said.method == LIST_CHANGED:
            self._listed = False
        delivery = self._calls.place(said)
        if delivery is None:
            return
        if delivery.last and delivery.call.method == LIST_TOOLS:
            # Before its client has it: the next call has the headers that this list asks for.
            await self._learn(said)
        outlet = self._put(delivery, said)
        if outlet is not None:
            await outlet.room()

    def _answers_us(self, said: Marked) -> bool:
        number = said.number(Mark.ID)
        answer = None if number is None else self._own.get(number)
        if answer is None or answer.done():
            return False
        answer.set_result(said)
        return True

    def _put(self, delivery: Delivery, said: Marked) -> Outlet | None:
        number = delivery.call.number
        outlet = self._outlets.pop(number, None) if delivery.last else self._outlets.get(number)
        if outlet is None:
            return None
        if delivery.raw is None:
            outlet.close()
        else:
            # A carriage return is white space in JSON, and ends the line of an event.
            raw = delivery.raw.replace(b"\r", b" ")
            outlet.put(Stated(raw, delivery.last, said.failed, delivery.status))
        self._touch()
        return outlet

    async def _read_in_turn(self, work: Steps[T], raw: bytes) -> T:
        return run(work) if is_quick(raw) else await self._turns.run(work)

    # Time.

    def _touch(self) -> None:
        self._touched = self._loop.time()

    def _check_idle(self) -> None:
        left = self._touched + self.opened.idle_seconds - self._loop.time()
        if self._calls.attended:
            left = self.opened.idle_seconds
        if left <= 0:
            self.end(Closing.IDLE, "The server's process was idle for too long")
        else:
            self._idle = self._loop.call_later(left, self._check_idle)
