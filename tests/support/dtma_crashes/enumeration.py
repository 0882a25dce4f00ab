"""Lives through what an owner can want, each killed at one more write than the life before."""

from __future__ import annotations

import asyncio
import difflib
import json
from collections import defaultdict
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import count

from localstack.docker import Engine
from support.dtma_crashes.agents import Agents, calling
from support.dtma_crashes.host import CrashHost
from support.dtma_crashes.journal import Write
from support.dtma_crashes.owner import Images, Owner, Step, new_life
from support.dtma_crashes.world import Onlooker, Plain
from support.system.witness import witness
from toolbox_dtma.state.files import TEMPORARY_PREFIX
from toolbox_operator.hosts.api import HostUnreachable

REST = 1.0
"""Seconds between two equal looks at a world that rests."""


Deadly = tuple[int | None, str | None]
"""A write by its number, or by its number among those of one kind."""
NEVER: Deadly = (None, None)


@dataclass
class Scene:
    """A host to crash, and who looks at it."""

    crash: CrashHost
    onlooker: Onlooker
    images: Images
    engine: Engine
    foreign: str
    """A container of somebody else, whose labels name an instance, but another host."""

    @asynccontextmanager
    async def owner(self) -> AsyncGenerator[Owner]:
        """Somebody who never asked this host for anything; at the end nothing of theirs is left, whatever failed."""
        for image in (self.images.first, self.images.second):
            # So that every life pulls.
            if self.engine.docker("images", "--quiet", image).strip():
                self.engine.docker("rmi", image)
        owner = Owner(self.crash, self.onlooker, self.images, new_life())
        try:
            yield owner
        finally:
            self.crash.calm()
            await owner.until_done(owner.leave)
            await owner.host.aclose()

    async def at_rest(self) -> None:
        """Every worker of the gateway is there and nothing is under way."""
        async with self.owner() as owner:
            await owner.until_done(owner.introduce)
            await settled(owner, None)

    @contextmanager
    def watched(self) -> Generator[Agents]:
        """Agents at work; at the end nothing has happened that must never happen."""
        before = self._foreign_state()

        def call(instance: str, token: str) -> str:
            return self.onlooker.call(instance, token, "echo")

        with witness(("docker",), self.crash.names.host_id) as seen, calling(call) as agents:
            yield agents
        assert not seen.doubles, seen.doubles
        assert not agents.revived, agents.revived
        assert not agents.interrupted, agents.interrupted
        assert agents.answered, "no call of any agent was ever answered"
        assert self._foreign_state() == before, "somebody else's container was touched"

    def _foreign_state(self) -> Plain:
        seen = self.onlooker.inspect(self.foreign)
        return {"id": seen["Id"], "state": seen["State"], "networks": seen["NetworkSettings"]["Networks"]}


def difference(expected: Plain | None, seen: Plain | None) -> str:
    """What differs, a line each."""
    before, after = (json.dumps(world, indent=1, sort_keys=True).splitlines() for world in (expected, seen))
    return "\n".join(difflib.unified_diff(before, after, "expected", "seen", lineterm="", n=2))


async def settled(owner: Owner, expected: Plain | None, *, seconds: float = 60.0) -> Plain:
    """The world once it is as expected; without expectation, once it rests."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    before: Plain | None = None
    while True:
        try:
            seen = await owner.world()
            if seen == expected or (expected is None and seen == before and _rests(seen)):
                return seen
            before = seen
        except HostUnreachable:
            owner.crash.revive()
        if loop.time() > deadline:
            raise AssertionError("the world does not come to rest as expected:\n" + difference(expected, before))
        await asyncio.sleep(0.05 if expected is not None else REST)


def _rests(seen: Plain) -> bool:
    return seen["workers current"] and not any(TEMPORARY_PREFIX in name for name in seen["files"])


@dataclass
class Enumeration:
    """One route of steps, lived as often as it takes for every step to survive."""

    scene: Scene
    agents: Agents
    route: Sequence[Step]
    spared: frozenset[str] = frozenset()
    """Steps that are only the way there."""
    expected: dict[str, Plain] = field(default_factory=dict[str, Plain])
    """The world after each step of the undisturbed life."""
    writes: dict[str, list[Write]] = field(default_factory=dict[str, list[Write]])
    """What each step of the undisturbed life wrote."""
    fatal: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict[str, list[str]](list))
    """After which kinds of write each step was killed."""

    async def run(self) -> None:
        """Live undisturbed, then killed after the first write of each step, after the second, and so on."""
        await self.scene.at_rest()
        await self._live({})
        open_steps = {step.name for step in self.route} - self.spared
        for after in count(1):
            open_steps &= await self._live(dict.fromkeys(open_steps, (after, None)))
            if not open_steps:
                break
        # Writes that are made side by side may have changed places from life to life, so that one was skipped.
        while missed := self.missed:
            traps = {name: (1, kinds[0]) for name, kinds in missed.items()}
            killed = await self._live(traps)
            assert killed == set(traps), f"not made again: {[traps[name] for name in set(traps) - killed]}"

    @property
    def missed(self) -> dict[str, list[str]]:
        """Kinds of write that the undisturbed life had, and after which no step was killed yet."""
        kinds = {name: {write.kind for write in written} for name, written in self.writes.items()}
        left = {name: sorted(kinds[name] - set(self.fatal[name])) for name in kinds if name not in self.spared}
        return {name: found for name, found in left.items() if found}

    @property
    def summary(self) -> str:
        """Writes and kills of each step."""
        return ", ".join(
            f"{name}: {len(self.writes[name])} writes, {len(kills)} kills" for name, kills in self.fatal.items()
        )

    async def _live(self, traps: Mapping[str, Deadly]) -> set[str]:
        """One life, with the fatal write by step; the steps that were killed."""
        killed: set[str] = set()
        async with self.scene.owner() as owner:
            for step in self.route:
                trap = traps.get(step.name, NEVER)
                try:
                    if await self._step(owner, step, trap):
                        killed.add(step.name)
                except Exception as error:
                    raise AssertionError(f"{step.name}, killed after write {trap}: {error}") from error
            await owner.stays_deleted()
        return killed

    async def _step(self, owner: Owner, step: Step, trap: Deadly) -> bool:
        crash = self.scene.crash
        step.want(owner)
        self.agents.begin(owner.life.instance, owner.life.tokens)
        with self.agents.uninterrupted([owner.life.tokens[name] for name in step.keeps]):
            serial = crash.journal.arm(*trap)
            await owner.until_done(lambda: step.attempt(owner))
            for name in step.ends:
                self.agents.ended(owner.life.tokens[name])
            seen = await settled(owner, self.expected.get(step.name))
        written = crash.journal.writes(serial)
        crash.calm()
        self.expected.setdefault(step.name, seen)
        self.writes.setdefault(step.name, written)
        kills = [write.kind for write in written if write.fatal]
        self.fatal[step.name] += kills
        return bool(kills)
