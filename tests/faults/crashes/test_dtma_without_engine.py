"""DTMA restarted while its Docker Engine is away: agents go on, orders are taken, and all is done when it is back."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial

import pytest

from support.dtma_crashes.enumeration import Scene, difference, settled
from support.dtma_crashes.owner import CREATE, NotYet, Owner
from support.dtma_crashes.world import Plain
from support.poll import until
from toolbox_dtma.engine.names import LABEL_INSTANCE
from toolbox_dtma.wire import EnvVar, InstancePhase, InstanceReason, ProblemCode
from toolbox_operator.hosts.api import HostProblem

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(os.geteuid() != 0, reason="a toolbox host needs root"),
]


def instances_of(scene: Scene) -> set[str]:
    """Instances that have a container, as the engine says."""
    return {item["Config"]["Labels"][LABEL_INSTANCE] for item in scene.onlooker.containers()}


async def told(owner: Owner, phase: InstancePhase, reason: InstanceReason) -> None:
    """The host says this of the present generation."""

    async def attempt() -> None:
        report = await owner.host.get_instance(owner.life.instance)
        seen = report.observed if report else None
        if seen is None or (seen.generation, seen.phase, seen.reason) != (owner.desired.generation, phase, reason):
            raise NotYet(f"{report!r}")

    await owner.until_done(attempt)


async def story(scene: Scene, *, away: bool) -> Plain:
    """Two instances; DTMA restarts; one is updated and its grant changed, the other deleted. The world at the end."""
    crash = scene.crash
    with scene.watched() as agents:
        await scene.at_rest()
        async with scene.owner() as kept, scene.owner() as gone:
            for owner in (gone, kept):
                CREATE.want(owner)
                await owner.until_done(partial(CREATE.attempt, owner))
            agents.begin(kept.life.instance, kept.life.tokens)
            with agents.uninterrupted([kept.life.tokens["a"]]):
                if away:
                    crash.engine_away()
                crash.end(signal.SIGKILL)
                crash.start()
                await kept.until_done(kept.introduce)
                if away:
                    await told(kept, InstancePhase.ERROR, InstanceReason.ENGINE_UNAVAILABLE)
                kept.grant(kept.life.connection, "a", "b")
                await kept.until_done(kept.put_grants)
                calls = agents.calls
                await asyncio.to_thread(until, "calls go on", lambda: agents.calls > calls + 10)
            kept.change(env=(EnvVar(name="VERSION", value="2"),))
            await kept.host.put_instance(kept.life.instance, kept.desired)
            if away:
                with pytest.raises(HostProblem) as refused:
                    await gone.remove()
                assert refused.value.code is ProblemCode.ENGINE_UNAVAILABLE
                assert instances_of(scene) == {kept.life.instance, gone.life.instance}
            else:
                await gone.remove()
            outcome = await asyncio.to_thread(scene.onlooker.call, gone.life.instance, gone.life.tokens["a"], "echo")
            assert outcome == "refused"
            if away:
                crash.engine_back()
            # The order to remove stands: nobody repeats it.
            await asyncio.to_thread(
                until, "removed", lambda: instances_of(scene), lambda seen: seen == {kept.life.instance}, seconds=60
            )
            # Its network and its volumes go after its container, and the record of it last.
            record = crash.host.state_dir / "instances" / f"{gone.life.instance}.json"
            await asyncio.to_thread(until, "forgotten", lambda: not record.exists(), seconds=60)
            await kept.until_done(kept.put_instance)
            return await settled(kept, None)


async def test_a_restart_without_an_engine_ends_as_one_with_it(crash_scene: Scene) -> None:
    expected = await story(crash_scene, away=False)
    seen = await story(crash_scene, away=True)
    assert not (told := difference(expected, seen)), told
