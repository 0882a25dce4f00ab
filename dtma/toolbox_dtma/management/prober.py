"""Runs the probes that fall due, through the gateway's workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from toolbox_dtma.link.messages import ProbeResult
from toolbox_dtma.management.instances import Instances
from toolbox_dtma.management.reports import bridged_path
from toolbox_dtma.management.session_probe import NotRun, probe_session
from toolbox_dtma.policy.server import Conversation, PolicyServer
from toolbox_dtma.policy.worker import NoWorker
from toolbox_dtma.readiness import Failure, Probed, Target
from toolbox_dtma.sessions.manager import SessionManager
from toolbox_dtma.settings import Bounds, Timings
from toolbox_dtma.wire import InstanceReason

log = structlog.get_logger("toolbox_dtma.prober")

MAX_MESSAGE = 500


def judge(result: ProbeResult, *, surface_bytes: int) -> Probed | Failure:
    """What a worker's answer means."""
    message = (result.report.message or "the MCP conversation failed")[:MAX_MESSAGE]
    if result.refused:
        return Failure(InstanceReason.PORT_NOT_LISTENING, message)
    if not result.report.ok:
        return Failure(InstanceReason.PROBE_FAILED, message)
    if result.surface.size() > surface_bytes:
        what = "tools, prompts and resources"
        return Failure(InstanceReason.PROBE_FAILED, f"the names of its {what} take more than {surface_bytes} bytes")
    return Probed(result.report, result.surface)


class Prober:
    """One loop; every probe a task of its own, up to a number."""

    def __init__(
        self,
        policy: PolicyServer,
        sessions: SessionManager,
        timings: Timings,
        bounds: Bounds,
        clock: Callable[[], float],
    ):
        self._policy = policy
        self._sessions = sessions
        self._timings = timings
        self._bounds = bounds
        self._clock = clock
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(timings.probe_concurrency)
        self._session_slots = asyncio.Semaphore(timings.probe_concurrency)
        """Processes that take long to start keep nobody waiting but each other."""

    def wake(self) -> None:
        """Something changed that may make a probe due."""
        self._wake.set()

    async def run(self, instances: Instances) -> None:
        """Probe until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                for instance_id, target in instances.due():
                    group.create_task(self._probe(instances, instance_id, target))
                due = instances.next_due()
                try:
                    async with asyncio.timeout(None if due is None else max(0.01, due - self._clock())):
                        await self._wake.wait()
                except TimeoutError:
                    continue

    async def _probe(self, instances: Instances, instance_id: str, target: Target) -> None:
        async with self._session_slots if target.has_sessions else self._slots:
            try:
                result = await (self._in_a_session(instance_id, target) if target.bridged else self._standing(target))
            except NotRun as error:
                log.debug("probe was not run", instance=instance_id, why=str(error))
                result = None
        try:
            await instances.probe_ended(instance_id, target, result)
        except OSError as error:
            # What was probed could not be remembered on disk; only the next start would miss it.
            log.warning("probe could not be written", instance=instance_id, error=error.strerror)
        self._wake.set()

    async def _standing(self, target: Target) -> Probed | Failure:
        return await self._ask(Conversation(target.path, target.address, target.port))

    async def _in_a_session(self, instance_id: str, target: Target) -> Probed | Failure:
        path = bridged_path(instance_id)
        start = self._timings.probe_session_start if target.has_sessions else 0.0
        return await probe_session(
            self._sessions,
            instance_id,
            lambda bridge, ticket: self._ask(Conversation(path, bridge=bridge, ticket=ticket, start=start)),
        )

    async def _ask(self, conversation: Conversation) -> Probed | Failure:
        try:
            answer = await self._policy.probe(conversation)
        except NoWorker as error:
            raise NotRun(str(error)) from error
        return judge(answer, surface_bytes=self._bounds.surface_bytes)
