"""Contact with one host: claim, identify, configure, list, watch, and again when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from typing import NoReturn

import structlog

from toolbox_dtma.wire import (
    DeletedInstance,
    GatewayFacts,
    GrantProgrammed,
    GrantReport,
    HostConfig,
    HostFacts,
    InstanceReason,
    InstanceReport,
    OwnerClaimed,
    ProblemCode,
)
from toolbox_operator.api.conditions import Reason
from toolbox_operator.api.meta import Key, Kind
from toolbox_operator.domain.host import HostFailure, HostState, HostView
from toolbox_operator.hosts.api import (
    HostError,
    HostEvent,
    HostProblem,
    HostSettings,
    HostUnauthorized,
    HostUnreachable,
    HostUntrusted,
    WatchableHost,
)
from toolbox_operator.runtime import Clock, Fenced, Leadership, Requeue, Timings

log = structlog.get_logger(__name__)

CALL_FAILURES_TO_BREAK = 3
"""So many calls in a row without an answer end a contact that still looks alive."""

_MUTATIONS_AT_ONCE = 4

_CONTACTS = itertools.count(1)


class Contact:
    """One host of one Toolbox. Everything here runs in one event loop; snapshots are replaced, never changed."""

    def __init__(
        self,
        *,
        key: Key,
        uid: str,
        settings: HostSettings,
        lease: float,
        host: WatchableHost,
        leadership: Leadership,
        queue: Requeue,
        clock: Clock,
        timings: Timings,
        rng: random.Random,
    ):
        self.key = key
        self.uid = uid
        self.settings = settings
        self.lease = lease
        self.slots = asyncio.Semaphore(_MUTATIONS_AT_ONCE)
        self._host = host
        self._leadership = leadership
        self._queue = queue
        self._clock = clock
        self._timings = timings
        self._rng = rng
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._admitted: str | None = None
        self._changed: HostFailure | None = None
        self._host_id: str | None = None
        self._facts: HostFacts | None = None
        self._ahead = 0.0
        self._boot_id = 0
        self._instances: dict[str, InstanceReport] = {}
        self._grants: dict[str, GrantReport] = {}
        self._synced = False
        self._contact = 0
        self._live = False
        self._failure: HostFailure | None = None
        self._failed_calls = 0
        self._heard = clock.monotonic()
        self._since = self._heard
        self._cursor = ""

    def start(self) -> None:
        """Begin to connect."""
        self._task = asyncio.create_task(self._run(), name=f"host {self.key}")

    async def aclose(self) -> None:
        """Stop, and close connections."""
        await self._stop()
        await self._host.aclose()

    async def replace(self, settings: HostSettings, host: WatchableHost) -> None:
        """Go on with other settings for the same endpoint: another token, CA or gateway URL."""
        await self._stop()
        await self._host.aclose()
        self.settings = settings
        self._host = host
        self.start()

    def admit(self, host_id: str) -> None:
        """Use the host as long as it says it is this one."""
        if self._admitted != host_id:
            self._admitted, self._changed = host_id, None
            self._wake.set()

    def refuse(self, changed: HostFailure | None = None) -> None:
        """Do not use the host. `changed`: it is another one than before, with which contact is lost by that."""
        self._admitted, self._changed = None, changed
        if self._live:
            self._lose(HostFailure(Reason.TOOLBOX_NOT_READY, "the host is not this Toolbox's"))
            self._restart()

    @property
    def host(self) -> WatchableHost:
        """The host, for calls. Raises `HostUnreachable` while the circuit is open."""
        if not self._live:
            failure = self._failure or self._changed
            raise HostUnreachable(failure.message if failure else "no contact with the host yet")
        return self._host

    def view(self) -> HostView:
        """What is known now."""
        state, lost_in = self._state()
        return HostView(
            state=state,
            synced=self._synced,
            host_id=self._host_id,
            facts=self._facts,
            boot_id=self._boot_id,
            instances=self._instances,
            grants=self._grants,
            failure=self._failure or self._changed,
            contact=self._contact,
            ahead=self._ahead,
            lost_in=lost_in,
        )

    def learn(self, report: InstanceReport | GrantReport) -> None:
        """Take over what a call answered, without waiting for the event that says the same."""
        if isinstance(report, InstanceReport):
            self._take_instance(report)
        else:
            self._grants = {**self._grants, report.uid: report}

    def forget_grant(self, uid: str) -> None:
        """A grant was removed."""
        self._grants = {key: grant for key, grant in self._grants.items() if key != uid}

    def forget_instance(self, instance_id: str) -> None:
        """An instance and its grants were removed."""
        self._instances = {key: item for key, item in self._instances.items() if key != instance_id}
        self._grants = {key: grant for key, grant in self._grants.items() if grant.instance != instance_id}

    def answered(self) -> None:
        """A call was answered, whatever the answer."""
        self._failed_calls = 0
        self._heard = self._clock.monotonic()

    def unanswered(self) -> None:
        """A call got no answer."""
        self._failed_calls += 1
        if self._failed_calls >= CALL_FAILURES_TO_BREAK and self._live:
            self._lose(HostFailure(Reason.HOST_UNREACHABLE, "several calls in a row were not answered"))
            self._restart()

    def _state(self) -> tuple[HostState, float | None]:
        if self._live:
            return HostState.REACHABLE, None
        failure = self._failure or self._changed
        if self._host_id is not None and failure is None:
            return HostState.IDENTIFIED, None
        silent = self._clock.monotonic() - self._heard
        if silent >= self.lease:
            return HostState.LOST, None
        state = HostState.NEW if failure is None else HostState.UNREACHABLE
        return state, self.lease - silent

    async def _run(self) -> None:
        attempt = 0
        while True:
            self._wake.clear()
            try:
                await self._identify()
                if self._admitted == self._host_id:
                    await self._synchronise()
                    await self._follow()
                else:
                    # Not ours, or not decided yet: the Toolbox's reconciler admits it, or its spec changes.
                    self._queue.add(Kind.TOOLBOX, self.key)
                    with contextlib.suppress(TimeoutError):
                        # Asked again now and then: the endpoint may lead to the right one without an edit.
                        async with asyncio.timeout(self._timings.backoff_max):
                            await self._wake.wait()
                    continue
            except (HostError, Fenced) as error:
                failure = _failure(error)
            except Exception as error:
                # The boundary of this worker: a defect met with one host must not end the contact with it for good.
                log.exception("host.contact_failed", toolbox=str(self.key))
                failure = HostFailure(Reason.INTERNAL_ERROR, f"Contact failed for an internal reason: {error!r}.")
            lasted = self._clock.monotonic() - self._since if self._live else 0.0
            if lasted >= self._timings.backoff_max:
                attempt = 0
            if lasted >= self._timings.backoff_first:
                # A stream that ended proves nothing yet: one attempt at once, before anybody is told.
                self._live = False
                continue
            self._lose(failure)
            delay = min(self._timings.backoff_first * 2.0**attempt, self._timings.backoff_max)
            attempt = min(attempt + 1, 16)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay * (0.5 + self._rng.random() / 2)):
                    await self._wake.wait()

    async def _identify(self) -> None:
        claimed = await self._claim()
        facts = await self._host.facts()
        # Not contact yet: of a host that cannot be listed nothing is known, however often it says who it is.
        self._facts, self._host_id, self._failure = facts, claimed.host_id, None
        self._ahead = 0.0 if facts.time is None else (facts.time - self._clock.now()).total_seconds()

    async def _claim(self) -> OwnerClaimed:
        """Announce our epoch. Whoever holds the Lease goes above a higher one, which an earlier Lease left behind."""
        try:
            return await self._host.claim(self._leadership.epoch)
        except HostProblem as problem:
            if problem.code is not ProblemCode.FENCED_EPOCH or problem.current is None:
                raise
            self._leadership.check()
            if problem.current >= self._leadership.epoch:
                await self._leadership.raise_epoch(problem.current)
        return await self._host.claim(self._leadership.epoch)

    async def _synchronise(self) -> None:
        await self._host.configure(HostConfig(gateway_url=self.settings.gateway_url))
        listed = await self._host.list_instances()
        # Again, now that the cursor is known: what the host said of itself before may have changed unheard.
        self._facts = await self._host.facts()
        grants = await self._host.list_grants()
        before_instances, before_grants = self._instances, self._grants
        self._boot_id = listed.boot_id
        self._instances = {report.id: report for report in listed.items}
        self._grants = {grant.uid: grant for grant in grants}
        self._cursor = listed.cursor
        self._heard = self._since = self._clock.monotonic()
        self._synced, self._live, self._failed_calls = True, True, 0
        self._contact = next(_CONTACTS)
        self._queue.add(Kind.TOOLBOX, self.key)
        for report in {**before_instances, **self._instances}.values():
            if before_instances.get(report.id) != self._instances.get(report.id):
                self._queue.add(Kind.MCP_SERVER, Key(report.namespace, report.name))
        for grant in {**before_grants, **self._grants}.values():
            if before_grants.get(grant.uid) != self._grants.get(grant.uid):
                self._queue.add(Kind.CONNECTION, Key(grant.namespace, grant.name))

    async def _follow(self) -> NoReturn:
        async with contextlib.aclosing(self._host.watch(self._cursor)) as events:
            async for event in events:
                self._heard = self._clock.monotonic()
                await self._apply(event)
        raise HostUnreachable("the event stream ended")

    async def _apply(self, event: HostEvent) -> None:
        match event.data:
            case InstanceReport() as report:
                if self._take_instance(report):
                    self._queue.add(Kind.MCP_SERVER, Key(report.namespace, report.name))
                if self._engine_is_up() is (report.observed.reason is InstanceReason.ENGINE_UNAVAILABLE):
                    await self._look_again()
            case DeletedInstance(id=instance_id):
                gone = self._instances.get(instance_id)
                self.forget_instance(instance_id)
                if gone is not None:
                    self._queue.add(Kind.MCP_SERVER, Key(gone.namespace, gone.name))
            case GatewayFacts() as gateway:
                if self._facts is not None:
                    self._facts = self._facts.model_copy(update={"gateway": gateway})
                    self._queue.add(Kind.TOOLBOX, self.key)
            case GrantProgrammed() as programmed:
                await self._take_grant(programmed)
            case None:
                if not self._engine_is_up():
                    await self._look_again()
        if event.cursor:
            self._cursor = event.cursor

    def _engine_is_up(self) -> bool:
        return self._facts is None or self._facts.engine.available

    async def _look_again(self) -> None:
        """What the host said of itself when it was found is old: its engine went, or may have come back."""
        was_up = self._engine_is_up()
        self._facts = await self._host.facts()
        if self._engine_is_up() is not was_up:
            self._queue.add(Kind.TOOLBOX, self.key)

    def _take_instance(self, report: InstanceReport) -> bool:
        known = self._instances.get(report.id)
        if known is not None and known.uid == report.uid and known.observed.seq > report.observed.seq:
            return False
        if known == report:
            return False
        self._instances = {**self._instances, report.id: report}
        return True

    async def _take_grant(self, programmed: GrantProgrammed) -> None:
        known = self._grants.get(programmed.uid)
        if known is None or known.content_hash != programmed.content_hash:
            # Put by a call whose answer is still on its way, or lost: the list says whose it is.
            self._grants = {grant.uid: grant for grant in await self._host.list_grants()}
        else:
            update = {"generation": programmed.generation, "programmed": programmed.programmed}
            self._grants = {**self._grants, programmed.uid: known.model_copy(update=update)}
        if (grant := self._grants.get(programmed.uid)) is not None and grant != known:
            self._queue.add(Kind.CONNECTION, Key(grant.namespace, grant.name))

    def _lose(self, failure: HostFailure) -> None:
        changed = self._live or self._failure is None or self._failure.reason is not failure.reason
        self._live = False
        self._failure = failure
        if changed:
            log.warning("host.contact_lost", toolbox=str(self.key), reason=failure.reason, detail=failure.message)
            self._queue.add(Kind.TOOLBOX, self.key)

    def _restart(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self.start()

    async def _stop(self) -> None:
        task, self._task = self._task, None
        self._live = False
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _failure(error: HostError | Fenced) -> HostFailure:
    match error:
        case HostUntrusted():
            return HostFailure(
                Reason.HOST_TLS_FAILED,
                f"The host's certificate is not trusted ({error}): check caSecretRef and the name in endpoint.",
            )
        case HostUnauthorized():
            return HostFailure(
                Reason.HOST_UNAUTHORIZED,
                f"The host refused the token of authSecretRef ({error}): put its current one there.",
            )
        case HostUnreachable():
            return HostFailure(
                Reason.HOST_UNREACHABLE,
                f"The host cannot be reached: {error}. Check spec.endpoint of the Toolbox, and that toolbox-dtma runs"
                " there.",
            )
        case Fenced():
            return HostFailure(Reason.HOST_UNREACHABLE, "Another operator is ahead at the host.")
        case _:
            return HostFailure(Reason.HOST_REJECTED, f"The host refused a call: {error}.")
