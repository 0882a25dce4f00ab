"""The loop of one instance: observe, decide, act, until nothing is left to do; then wait for a reason to look."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable

import structlog

from toolbox_dtma.engine.api import EngineUnavailable, Holder, Seen, Wanted
from toolbox_dtma.engine.deployment import Deployment, decide_deployment, deployed, fits, has_sessions, prefix_for
from toolbox_dtma.engine.exits import explained
from toolbox_dtma.engine.failures import DockerRefused, Failure, create_failure, start_failure
from toolbox_dtma.engine.images import Reference
from toolbox_dtma.engine.memory import Memory, same_request
from toolbox_dtma.engine.models import Container
from toolbox_dtma.engine.observe import Observed, as_seen, deployment_seen, observe, without_sight
from toolbox_dtma.engine.plan import Do, Situation, Step, decide, newest, tidied
from toolbox_dtma.engine.spares import Spares
from toolbox_dtma.engine.spec import container_config, spec_hash
from toolbox_dtma.engine.world import World
from toolbox_dtma.wire import DesiredInstance, InstancePhase, InstanceReason, InstanceState

log = structlog.stdlib.get_logger(__name__)


class RemovalBlocked(EngineUnavailable):
    """The engine answers, but refuses to remove something; it is tried again in the background."""


class Converger:
    """Owns every write to one instance's container, network and volumes."""

    def __init__(self, instance_id: str, world: World) -> None:
        self.id = instance_id
        self._world = world
        self._memory = Memory(instance_id, world.ledger)
        self._spares = Spares(world.networks, world.timings.retry_max, world.clock)
        self._wanted: Wanted | None = None
        self._removing = False
        self._spent: Holder | None = None
        """Whose volumes go with the removal."""
        self._removals: list[asyncio.Future[None]] = []
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._seen: Seen | None = None
        self.deployment: Deployment | None = None
        """What sessions are made of now; none while there can be no sessions."""
        self._failure: Failure | None = None
        self._failures = 0
        self._retry_at = 0.0
        self._last_step: tuple[Do, str, str] | None = None
        self._idle_steps = 0
        self._following = False
        """Whether the engine was followed since the last look, so that an exit is seen when it happens."""

    @property
    def wanted(self) -> Wanted | None:
        """What was last asked for; none once removal was."""
        return self._wanted

    @property
    def busy(self) -> bool:
        """Whether there is anything to converge to."""
        return self._wanted is not None or self._removing

    def want(self, wanted: Wanted) -> None:
        """Replace what is desired. A change ends a pull it doesn't need and beats back-off."""
        if wanted != self._wanted:
            self._wanted = wanted
            if self.deployment is not None:
                self.deployment = self.deployment.under(wanted, self._world.spec_key)
            self._interrupt()

    def remove(self, volumes_of: Holder | None) -> asyncio.Future[None]:
        """Ask for removal, with that holder's volumes; the future ends with it, or with `EngineUnavailable`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._removals.append(future)
        self._removing, self._spent = True, volumes_of
        self._wanted = self.deployment = None
        self._interrupt()
        return future

    def wake(self) -> None:
        """Look again: the engine showed an event, or is back."""
        self._wake.set()

    def engine_lost(self, message: str) -> None:
        """Report at once that nothing is known; what is running may well go on."""
        self._following = False
        wanted, seen = self._wanted, self._seen
        if (
            wanted is not None
            and seen is not None
            and (seen.reason, seen.generation, seen.inputs_hash)
            == (InstanceReason.ENGINE_UNAVAILABLE, wanted.desired.generation, wanted.desired.inputs_hash)
        ):
            # Known already; the next error text is not news.
            return
        self._report_blind(InstanceReason.ENGINE_UNAVAILABLE, f"The host's Docker Engine does not answer: {message}")

    async def run(self) -> None:
        """Converge until the instance is removed."""
        self._seen, self._following = None, False
        while self.busy:
            self._wake.clear()
            self._changed.clear()
            try:
                delay = await self._round()
            except EngineUnavailable as error:
                delay = self._on_unavailable(str(error))
            except Failure as failure:
                delay = self._on_failure(failure)
            except DockerRefused as refused:
                delay = self._on_failure(Failure(InstanceReason.CREATE_FAILED, f"Docker refused: {refused.message}"))
            except Exception as error:
                # Worker boundary: one instance's surprise must not end its loop, nor anyone else's.
                log.exception("converging failed unexpectedly", instance=self.id)
                delay = self._on_failure(
                    Failure(InstanceReason.CREATE_FAILED, f"An internal error of DTMA: {type(error).__name__}.")
                )
            if delay != 0.0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._wake.wait()

    async def _round(self) -> float | None:
        """One step. How long to wait for a wake-up afterwards: 0 not at all, none for ever."""
        if self._removing:
            await self._remove_everything()
        wanted = self._wanted
        if wanted is None:
            return 0.0
        observed = await observe(self._world, wanted)
        reference = await self._reference(observed)
        await self._check_image(observed, reference)
        situation = self._situation(observed, reference)
        step = tidied(self._decided(observed, situation), situation)
        if step.do in (Do.SETTLE, Do.AWAIT_RESTART):
            return await self._settle(observed, step)
        shown = step.container or newest(observed.candidates)
        now = self._world.clock()
        if self._failure is not None and now < self._retry_at:
            failed = Step(Do.SETTLE, InstancePhase.ERROR, self._failure.reason, message=self._failure.message)
            await self._report(observed, failed, shown)
            return self._retry_at - now
        if self._failure is None:
            # While something fails over and over, the failure is the news, not the next try.
            await self._report(observed, step, shown)
        if self._changed.is_set():
            return 0.0
        await self._act(observed, reference, situation, step)
        return self._pace(step)

    async def _reference(self, observed: Observed) -> Reference | None:
        """The parsed image; none where a server is stopped whose image could not be used anyway."""
        desired = observed.wanted.desired
        try:
            return Reference.parse(desired.image)
        except Failure as failure:
            if desired.state is InstanceState.STOPPED:
                return None
            failed = Step(Do.SETTLE, InstancePhase.ERROR, failure.reason, message=failure.message)
            await self._report(observed, failed, newest(observed.candidates))
            raise

    async def _check_image(self, observed: Observed, reference: Reference | None) -> None:
        """No container keeps the image of a server with sessions from being removed by somebody."""
        if reference is None or not has_sessions(observed.wanted.desired):
            return
        image_id = self._memory.image(observed.wanted.desired, reference, observed.candidates)
        if image_id is not None and await self._world.client.image(image_id) is None:
            self._memory.forget_image()

    def _decided(self, observed: Observed, situation: Situation) -> Step:
        if not has_sessions(observed.wanted.desired):
            return decide(situation)
        step = decide_deployment(situation, fitting=fits(observed.network, observed.wanted.desired))
        now = deployed(step, observed.wanted, situation.resolved_image, observed.network, self._world.spec_key)
        self.deployment = now if self._wanted == observed.wanted else None
        return step

    async def _settle(self, observed: Observed, step: Step) -> float | None:
        self._failure, self._failures, self._retry_at, self._last_step = None, 0, 0.0, None
        if step.do is Do.SETTLE:
            await self._report(observed, step, step.container)
            return self._spares.pause(observed.spares)
        if step.container is not None:
            step = await explained(self._world.client, step, step.container)
        await self._report(observed, step, step.container)
        return max(0.001, self._memory.restart_at - self._world.clock())

    def _pace(self, step: Step) -> float:
        """No wait after progress. A step that changed nothing (a removal under way) is repeated ever slower."""
        target = step.container
        this = (step.do, target.id if target else "", target.state.status if target else "")
        self._idle_steps = self._idle_steps + 1 if this == self._last_step else 0
        self._last_step = this
        return (
            0.0 if self._idle_steps == 0 else min(self._world.timings.retry_max, 0.05 * 2 ** min(self._idle_steps, 12))
        )

    def _situation(self, observed: Observed, reference: Reference | None) -> Situation:
        desired, memory, now = observed.wanted.desired, self._memory, self._world.clock()
        names, key = self._world.names, self._world.spec_key
        memory.count(desired.state, observed.candidates, now, self._world.timings, witnessed=self._following)
        self._following = True
        image_id = memory.image(desired, reference, observed.candidates) if reference else None
        return Situation(
            state=desired.state,
            candidates=observed.candidates,
            floating=reference is not None and reference.floating,
            resolved_image=image_id,
            has_network=observed.network is not None,
            new_name=names.container(self.id, desired.name, spec_hash(desired, key), image_id) if image_id else None,
            stopped_by_us=memory.stopped_by_us,
            restart_at=memory.restart_at,
            now=now,
            spare_network=self._spares.due(observed.spares),
        )

    # Acting

    async def _act(self, observed: Observed, reference: Reference | None, situation: Situation, step: Step) -> None:
        client, target, actions = self._world.client, step.container, self._world.actions
        match step.do:
            case Do.PULL if reference is not None:
                await self._unless_outdated(self._pull(observed.wanted.desired, reference), observed.wanted, reference)
            case Do.MAKE_NETWORK:
                async with actions:
                    wanted, desired = observed.wanted, observed.wanted.desired
                    await self._world.networks.make(self.id, wanted.owner, desired.security.egress, prefix_for(desired))
            case Do.REPLACE_NETWORK:
                await self._world.sessions.clear(self.id)
                await self._world.networks.remove(self.id)
            case Do.CREATE:
                async with actions:
                    await self._create(observed, situation)
            case Do.START | Do.RESTART if target is not None:
                async with actions:
                    await self._start(target)
                if step.do is Do.RESTART:
                    self._memory.restarted(target)
            case Do.STOP if target is not None:
                await client.stop(target.id)
            case Do.UNPAUSE if target is not None:
                await client.unpause(target.id)
            case Do.REMOVE if target is not None:
                async with actions:
                    await client.remove(target.id)
            case Do.REMOVE_NETWORK:
                async with actions:
                    await self._spares.remove(observed.spares)
            case _:
                raise AssertionError(f"no action for {step.do}")

    async def _pull(self, desired: DesiredInstance, reference: Reference) -> None:
        images = self._world.images
        image = None if reference.floating else await images.local(reference)
        if image is None:
            image = await images.pull(reference, desired.registry_credentials)
        self._memory.remember_image(desired, reference, image.id)

    async def _unless_outdated(self, work: Awaitable[None], wanted: Wanted, reference: Reference) -> None:
        """Do the work, but give it up when something is desired that doesn't need it."""
        task = asyncio.ensure_future(work)
        changed = asyncio.ensure_future(self._changed.wait())
        try:
            while not task.done():
                await asyncio.wait({task, changed}, return_when=asyncio.FIRST_COMPLETED)
                if changed.done():
                    if self._outdated(wanted.desired, reference):
                        return
                    self._changed.clear()
                    changed = asyncio.ensure_future(self._changed.wait())
            await task
        finally:
            for pending in (task, changed):
                pending.cancel()
            await asyncio.gather(task, changed, return_exceptions=True)

    def _outdated(self, pulling: DesiredInstance, reference: Reference) -> bool:
        if self._removing or self._wanted is None:
            return True
        now = self._wanted.desired
        return (
            now.state is InstanceState.STOPPED
            or now.registry_credentials != pulling.registry_credentials
            or not same_request(pulling, now, reference)
        )

    async def _create(self, observed: Observed, situation: Situation) -> None:
        desired, network = observed.wanted.desired, observed.network
        if network is None or situation.new_name is None:
            raise AssertionError("a container is created only after its image and network")
        config = container_config(
            self._world.names,
            self.id,
            observed.wanted.owner,
            desired,
            self._world.spec_key,
            network.name,
            network.address,
        )
        await self._world.volumes.make(observed.wanted)
        try:
            await self._world.client.create(situation.new_name, config)
        except DockerRefused as refused:
            if refused.status == 404 and "image" in refused.message.lower():
                # Removed between pull and create.
                self._memory.forget_image()
            raise create_failure(refused) from refused

    async def _start(self, container: Container) -> None:
        if container.state.status == "created":
            # Nothing of it has run yet, and what it replaces has ended: nobody is in the volumes now.
            await self._world.volumes.hand_over(self.id, container)
        # No process of ours runs a moment without the firewall.
        await self._world.firewall.ensure()
        try:
            await self._world.client.start(container.id)
        except DockerRefused as refused:
            raise start_failure(refused) from refused

    async def _remove_everything(self) -> None:
        client, labels = self._world.client, self._world.names.labels(self.id)
        try:
            await self._world.sessions.clear(self.id)
            for summary in await client.containers(labels):
                if summary.state == "paused":
                    await client.unpause(summary.id)
                if summary.state in {"running", "paused", "restarting"}:
                    await client.stop(summary.id)
                await client.remove(summary.id)
            await self._world.networks.remove(self.id)
            await self._world.volumes.remove(self.id, self._spent)
        except DockerRefused as refused:
            self._answer_removals(RemovalBlocked(f"Docker refused to remove the instance: {refused.message}"))
            raise
        self._removing = False
        self._memory.forget()
        self._seen = None
        self._answer_removals(None)

    def _answer_removals(self, error: EngineUnavailable | None) -> None:
        waiting, self._removals = self._removals, []
        for future in waiting:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

    # When it goes wrong

    def _interrupt(self) -> None:
        self._failure, self._failures, self._retry_at = None, 0, 0.0
        self._changed.set()
        self._wake.set()

    def _on_failure(self, failure: Failure) -> float:
        if self._changed.is_set():
            return 0.0
        timings = self._world.timings
        self._failures += 1
        growing = min(timings.retry_max, timings.retry_first * 2 ** min(self._failures, 16))
        delay = max(timings.retry_first, self._world.jittered(growing))
        self._failure, self._retry_at = failure, self._world.clock() + delay
        self._report_blind(failure.reason, failure.message)
        return delay

    def _on_unavailable(self, message: str) -> float:
        self._answer_removals(EngineUnavailable(message))
        self.engine_lost(message)
        # The watch wakes everyone as soon as the engine is back; this is for an engine that hangs on one call.
        return self._world.jittered(self._world.timings.retry_max)

    # Reporting

    async def _report(self, observed: Observed, step: Step, container: Container | None) -> None:
        if has_sessions(observed.wanted.desired):
            self._emit(deployment_seen(observed.wanted, step, self.deployment))
            return
        restarts = self._memory.restarts(container.id) if container else 0
        self._emit(await as_seen(self._world, observed, step, container, restarts=restarts))

    def _report_blind(self, reason: InstanceReason, message: str) -> None:
        if self._wanted is not None:
            self._emit(without_sight(self._wanted, self._seen, reason, message))

    def _emit(self, seen: Seen) -> None:
        if seen != self._seen and not self._removing:
            self._seen = seen
            self._world.report(self.id, seen)
