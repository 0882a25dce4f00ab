"""Renews the keys that sign session and event ids, on disk and at the workers."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from toolbox_dtma.link.messages import Change
from toolbox_dtma.policy.server import AckPending, PolicyServer
from toolbox_dtma.settings import Timings
from toolbox_dtma.state.keyring import Announce, Drop, Promote, Rest, announced, decide, promoted, without
from toolbox_dtma.state.records import KeyRingRecord
from toolbox_dtma.state.store import State

log = structlog.get_logger("toolbox_dtma")


class Keys:
    """Renews the key ring on disk and at the workers."""

    def __init__(self, state: State, policy: PolicyServer, timings: Timings) -> None:
        self._state = state
        self._policy = policy
        self._timings = timings

    async def run(self) -> None:
        """Take one step after the other, for ever."""
        lifetime, kept = timedelta(seconds=self._timings.key_lifetime), timedelta(seconds=self._timings.key_kept)
        while True:
            record, now = self._state.keyring, self._state.now()
            match decide(record, now, lifetime=lifetime, kept=kept):
                case Announce():
                    await self._replace(announced(record))
                case Promote(kid):
                    if await self._is_known():
                        await self._replace(promoted(record, kid, now))
                        log.info("session ids are signed by a new key", kid=kid)
                case Drop(kids):
                    await self._replace(without(record, kids))
                case Rest(duration):
                    await asyncio.sleep(duration.total_seconds())

    async def _is_known(self) -> bool:
        """Whether every worker has what was published so far; waits for it, with a bound."""
        try:
            await self._policy.settled(self._policy.revision, somewhere=False)
        except AckPending:
            return False
        return True

    async def _replace(self, record: KeyRingRecord) -> None:
        try:
            async with self._state.committing() as commit:
                await commit.put_keyring(record)
        except OSError as error:
            # A full disk keeps the ring as it was, which is no worse than before.
            log.warning("the key ring could not be written", error=error.strerror)
            await asyncio.sleep(self._timings.key_retry)
            return
        self._policy.publish(Change(keyring=record.keyring))
