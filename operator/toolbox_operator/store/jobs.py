"""Work that somebody waits for, done by the writer between its rows: on its connection, under its fence."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")
Work = Callable[[AsyncConnection], Awaitable[T]]


class Away(Exception):
    """PostgreSQL cannot be reached, or cannot take anything, now: nothing was kept."""


class Job(Generic[T]):
    """One piece of work, and who waits for it."""

    def __init__(self, work: Work[T], future: asyncio.Future[T]) -> None:
        self._work = work
        self._future = future
        self._result: list[T] = []

    @property
    def over(self) -> bool:
        """Whether nobody waits any more."""
        return self._future.done()

    async def do(self, connection: AsyncConnection) -> None:
        """Do it, in a transaction; may be repeated."""
        self._result = [await self._work(connection)]

    def committed(self) -> None:
        """The transaction was."""
        if not self.over:
            self._future.set_result(self._result[0])

    def failed(self, error: BaseException) -> None:
        """It was not. The first word counts."""
        if not self.over:
            self._future.set_exception(error)


class Jobs:
    """Queue of jobs in the order they came. As long as the number of those who wait: each waits for one at a time."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: deque[Job[Any]] = deque()

    async def do(self, work: Work[T]) -> T:
        """The result of `work`, which is committed then. Raises `Away`, or the error that refuses the data."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(Job(work, future))
        self._wake()
        return await future

    def next(self) -> Job[Any] | None:
        """The oldest job that somebody still waits for."""
        while self._waiting:
            job = self._waiting.popleft()
            if not job.over:
                return job
        return None

    def give_up(self) -> None:
        """Nothing is kept now: whoever waits is told."""
        while (job := self.next()) is not None:
            job.failed(Away())
