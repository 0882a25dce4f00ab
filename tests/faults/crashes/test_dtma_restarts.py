"""DTMA that dies over and over, with half-written files, or is started beside another one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import chain, repeat

import pytest

from localstack.kubernetes import REPOSITORY
from support.dtma_crashes.agents import Agents
from support.dtma_crashes.enumeration import Scene, settled
from support.dtma_crashes.host import CrashHost
from support.dtma_crashes.owner import CREATE, DEPLOYMENT, Owner, Step
from support.dtma_crashes.world import Plain

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(os.geteuid() != 0, reason="a toolbox host needs root"),
]


async def take(owner: Owner, step: Step, agents: Agents) -> None:
    """One step of an owner, to its end."""
    step.want(owner)
    agents.begin(owner.life.instance, owner.life.tokens)
    await owner.until_done(lambda: step.attempt(owner))
    for name in step.ends:
        agents.ended(owner.life.tokens[name])


@asynccontextmanager
async def deployed(scene: Scene, agents: Agents) -> AsyncGenerator[tuple[Owner, Plain]]:
    """An instance with one connection, and the world with them; both gone at the end."""
    await scene.at_rest()
    async with scene.owner() as owner:
        await take(owner, CREATE, agents)
        yield owner, await settled(owner, None)
        await take(owner, DEPLOYMENT[-1], agents)
        await owner.stays_deleted()


def serve(crash: CrashHost) -> subprocess.CompletedProcess[str]:
    """`toolbox-dtma serve` until it ends."""
    return subprocess.run(
        [sys.executable, "-m", "toolbox_dtma", "serve", "--state-dir", str(crash.host.state_dir)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "dtma")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def kept(owner: Owner) -> list[str]:
    return [owner.life.tokens["a"]]


@pytest.mark.timeout(600)
async def test_whatever_is_under_way_ends_although_each_successor_dies_too(crash_scene: Scene) -> None:
    crash = crash_scene.crash
    worlds: dict[str, Plain] = {}
    with crash_scene.watched() as agents:
        for stormy in (False, True):
            await crash_scene.at_rest()
            async with crash_scene.owner() as owner:
                for step in DEPLOYMENT:
                    if stormy:
                        crash.journal.arm(1)
                        # Some that do not get beyond their first write, then each comes one write further.
                        crash.traps = chain(repeat(1, 3), range(2, 60))
                    before = crash.deaths
                    await take(owner, step, agents)
                    assert crash.deaths > before + 3 if stormy else crash.deaths == before
                    print(f"{step.name}: {crash.deaths - before} deaths")
                    crash.calm()
                    worlds[step.name] = await settled(owner, worlds.get(step.name))
                await owner.stays_deleted()


async def test_files_that_a_crash_left_half_written_are_harmless(crash_scene: Scene) -> None:
    crash = crash_scene.crash
    state = crash.host.state_dir
    with crash_scene.watched() as agents:
        async with deployed(crash_scene, agents) as (owner, expected):
            assert crash.end(signal.SIGKILL).signal == signal.SIGKILL
            # Call records are appended to their files; no other file is ever written there.
            folders = [state, *(path for path in state.iterdir() if path.is_dir() and path.name != "calls")]
            assert len(folders) > 5
            for folder in folders:
                record = next(folder.glob("*.json"), state / "host.json").read_bytes()
                (folder / ".new-empty").touch()
                (folder / ".new-half").write_bytes(record[: len(record) // 2])
            (crash.host.runtime_dir / "engine.tmp").write_bytes(b'{"instances": {"')
            crash.start()
            await settled(owner, expected)
            assert not list(state.rglob(".new-*"))


async def test_a_second_dtma_on_the_same_folder_refuses_and_the_first_serves_on(crash_scene: Scene) -> None:
    crash = crash_scene.crash
    with crash_scene.watched() as agents:
        async with deployed(crash_scene, agents) as (owner, expected):
            with agents.uninterrupted(kept(owner)):
                boot = (await owner.host.facts()).boot_id
                second = await asyncio.to_thread(serve, crash)
                assert second.returncode == 2
                assert f"another DTMA runs on {crash.host.state_dir}" in second.stderr
                assert second.stderr.count("\n") == 1
                assert crash.death() is None
                await settled(owner, expected)
                assert (await owner.host.facts()).boot_id == boot
