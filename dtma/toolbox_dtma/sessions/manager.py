"""Every session of this host: opened for who may have one, ended with whatever it depends on.

The broker asks by ids. What they name is looked up here, in what DTMA itself was told: which connections may use which
instance, whether that is meant to run, and how many sessions it may have.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Callable, Mapping
from datetime import datetime, timedelta

import structlog

from toolbox_dtma.engine.api import EngineUnavailable, NotDeployed, SessionExit, SessionStream
from toolbox_dtma.engine.failures import Failure
from toolbox_dtma.link.broker import (
    CloseSession,
    Closing,
    Ended,
    OpenSession,
    SessionEnded,
    SessionRefused,
    Upstream,
)
from toolbox_dtma.link.messages import Change, GrantPolicy
from toolbox_dtma.sessions import admission, spares
from toolbox_dtma.sessions.admission import Refusal
from toolbox_dtma.sessions.exits import exit_message
from toolbox_dtma.sessions.keeper import SessionEngine, SpareKeeper
from toolbox_dtma.sessions.link import ControlLink
from toolbox_dtma.sessions.records import Bridge, BrokerAway, Instance, Session, Spare, new_name
from toolbox_dtma.sessions.trials import Trial, Trials
from toolbox_dtma.settings import Timings
from toolbox_dtma.wire import SessionCounts, Sessions

log = structlog.get_logger("toolbox_dtma.sessions")

_LONGEST_SLEEP = 3600.0
_STOPPED = "The server was stopped or changed."
_REVOKED = "This connection may not use the server any more."


class SessionManager:
    """Sessions, spares and trials of all bridged servers; `broker_*` are for the broker's supervisor to call."""

    def __init__(
        self,
        *,
        engine: SessionEngine,
        socket_path: str,
        grants: Callable[[], Mapping[str, GrantPolicy]],
        need_broker: Callable[[], None],
        timings: Timings,
        now: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        """`grants` by connection UID, as they are now; `clock` gives monotonic seconds."""
        self._engine = engine
        self.socket_path = socket_path
        self._grants = grants
        self._need_broker = need_broker
        self._timings = timings
        self._now = now
        self._clock = clock
        self._link: ControlLink | None = None
        self._down_since = clock()
        self._instances: dict[str, Instance] = {}
        self._sessions: dict[str, Session] = {}
        self._exits: dict[str, asyncio.TimerHandle] = {}
        """Sessions whose process has ended, and that the broker was told of."""
        self._trials = Trials()
        self._wake = asyncio.Event()
        self._spares = SpareKeeper(engine, timings, clock, self._wake.set)
        self.on_change: Callable[[str], None] = lambda instance: None
        """Called with an instance whose route or whose counts have changed; never out of a call to this object."""
        self.on_new_broker: Callable[[str], None] = lambda instance: None
        """Called with an instance that another broker serves now, and that should be tried again."""
        engine.follow_sessions(self._exited)

    # ---------------------------------------------------------------- instances
    def deploy(self, instance_id: str, terms: Sessions, deployed: str | None) -> None:
        """How a stdio server is deployed; with another `deployed` than before, its sessions end."""
        instance = self._deployed(instance_id, terms, deployed, stands=False)
        if instance.told is None or instance.told.max != terms.max_sessions:
            instance.told, instance.told_at = instance.counts, self._clock()
        self._wake.set()

    def stand(self, instance_id: str, upstream: Upstream | None, incarnation: str) -> None:
        """Where the container of a server is that has one for all sessions; None while it is not to be used."""
        deployed = None if upstream is None else f"{incarnation} {upstream.model_dump_json()}"
        self._deployed(instance_id, admission.STANDING, deployed, stands=True).upstream = upstream

    def _deployed(self, instance_id: str, terms: Sessions, deployed: str | None, *, stands: bool) -> Instance:
        self._need_broker()
        known = self._instances.get(instance_id)
        if known is not None and known.stands is not stands:
            self.forget(instance_id)
        instance = self._instances.setdefault(instance_id, Instance(terms, None, stands))
        instance.terms = terms
        if instance.deployed != deployed:
            self._end_all(instance_id, Ended.STOPPED, _STOPPED)
            instance.deployed, instance.incarnation = deployed, new_name()
            instance.back_off = spares.BackOff()
        return instance

    def forget(self, instance_id: str) -> None:
        """An instance is removed, or not bridged any more."""
        if instance_id in self._instances:
            self._end_all(instance_id, Ended.STOPPED, _STOPPED)
            del self._instances[instance_id]

    def bridge(self, instance_id: str) -> Bridge | None:
        """How the sessions of an instance are reached; None while none can be opened."""
        instance = self._instances.get(instance_id)
        if instance is None or instance.deployed is None or self._link is None:
            return None
        return Bridge(self.socket_path, instance.incarnation)

    def counts(self, instance_id: str) -> SessionCounts | None:
        """What is to be reported; None for what is no stdio server."""
        instance = self._instances.get(instance_id)
        return instance.told if instance is not None else None

    @property
    def open_sessions(self) -> int:
        """Of connections, on the whole host."""
        return sum(instance.open for instance in self._instances.values())

    # ------------------------------------------------------------------- broker
    def broker_up(self, link: ControlLink) -> None:
        """A broker serves."""
        self._link = link
        for instance_id, instance in tuple(self._instances.items()):
            instance.incarnation = new_name()
            self.on_new_broker(instance_id)
            self.on_change(instance_id)

    def broker_down(self) -> None:
        """It is gone, and every session with it."""
        self._link, self._down_since = None, self._clock()
        for session in tuple(self._sessions.values()):
            self._drop(session, grace=0)
        for instance_id in tuple(self._instances):
            self.on_change(instance_id)

    def broker_said(self, message: OpenSession | CloseSession) -> None:
        """It asks for a session, or lets go of one."""
        match message:
            case OpenSession():
                if message.ticket:
                    self._open_for_probe(message)
                else:
                    self._open(message)
            case CloseSession():
                self._let_go(message.session)
                session = self._sessions.get(message.session)
                if session is not None and self._trials.let_go(session.name, message.why):
                    # Not ended by us yet: how it ended by itself is what the probe is about to report.
                    self._forget_session(session)
                elif session is not None:
                    hostile = message.why is Closing.PROTOCOL
                    self._drop(session, grace=0 if hostile else self._timings.session_grace)

    # ------------------------------------------------------------------ opening
    def _open(self, message: OpenSession) -> None:
        instance = self._instances.get(message.instance)
        refusal = admission.admit(
            allowed=instance is not None and self._may_use(message.connection, message.instance) is not None,
            deployed=instance is not None and instance.serves(message.route),
            open_sessions=instance.open if instance is not None else 0,
            max_sessions=instance.terms.max_sessions if instance is not None else 0,
        )
        if refusal is not None or instance is None:
            self._refuse(message.request, refusal or admission.UNKNOWN)
            return
        spare, instance.spare = instance.spare, None
        name = spare.name if spare is not None else new_name()
        session = self._sessions[name] = Session(name, message.instance, message.connection, message.request)
        instance.open += 1
        instance.last_used = self._clock()
        self._wake.set()
        if instance.stands:
            self._give(session, instance, None)
            return
        ready = spare.ready if spare is not None else None
        if ready is not None:
            self._hand_over(session, instance, ready)
        else:
            instance.awaited += 1
            session.opening = asyncio.create_task(self._begin(session, instance, spare), name="open session")
            session.opening.add_done_callback(lambda _: self._made(instance))

    def _made(self, instance: Instance) -> None:
        instance.awaited -= 1
        instance.spare_after = self._clock() + self._timings.spare_after
        self._wake.set()

    async def _begin(self, session: Session, instance: Instance, spare: Spare | None) -> None:
        try:
            async with asyncio.timeout(self._timings.session_open):
                opened = (
                    await self._engine.open_session(session.instance, session.name)
                    if spare is None
                    # A spare that is on its way is of no use to anybody else.
                    else await spare.task
                )
        except NotDeployed:
            self._give_up(session, admission.STOPPED)
        except (Failure, EngineUnavailable, TimeoutError) as error:
            log.warning("a session could not be opened", instance=session.instance, why=str(error) or "it took long")
            self._give_up(session, admission.FAILED)
        except asyncio.CancelledError:
            if spare is not None:
                spare.discard()
            raise
        else:
            # Without an await since: nobody can have ended the session in between.
            self._hand_over(session, instance, opened)

    def _give_up(self, session: Session, refusal: Refusal) -> None:
        if self._forget_session(session):
            self._refuse(session.request, refusal)

    def _hand_over(self, session: Session, instance: Instance, opened: SessionStream) -> None:
        if opened.incarnation != instance.deployed or self._link is None:
            # Deployed anew while it was made, which `deploy` will be told of in a moment.
            opened.stream.close()
            self._engine.end_session(session.name)
            self._give_up(session, admission.STOPPED)
            return
        self._give(session, instance, opened.stream)

    def _give(self, session: Session, instance: Instance, stream: socket.socket | None, of: str = "") -> None:
        """`of`: the incarnation, where it is not the present one."""
        session.opened = True
        if self._link is not None:
            self._link.send(session.answer(instance, of or instance.incarnation), stream)

    def _refuse(self, request: int, refusal: Refusal) -> None:
        if self._link is not None:
            answer = SessionRefused(
                request=request, why=refusal.why, message=refusal.message, retry_seconds=refusal.retry_seconds
            )
            self._link.send(answer)

    def _may_use(self, connection: str, instance: str) -> datetime | None:
        return admission.allowed_until(self._grants().get(connection), instance, self._now())

    # ------------------------------------------------------------------- ending
    def policy_changed(self, change: Change) -> None:
        """Grants were changed or withdrawn: sessions of those who lost theirs end at once."""
        if change.grants or change.grants_gone:
            self._review()

    def _review(self) -> float:
        """End what is not allowed any more; seconds until the next grant ends."""
        soonest = _LONGEST_SLEEP
        now = self._now()
        for session in tuple(self._sessions.values()):
            if not session.connection:
                continue
            until = self._may_use(session.connection, session.instance)
            if until is None:
                self._end(session, Ended.REVOKED, _REVOKED)
            elif until - now < timedelta(seconds=soonest):
                soonest = (until - now).total_seconds()
        return soonest

    def _end_all(self, instance_id: str, why: Ended, message: str) -> None:
        for session in tuple(self._sessions.values()):
            if session.instance == instance_id:
                self._end(session, why, message)
        instance = self._instances[instance_id]
        self._spares.discard(instance)

    def _end(self, session: Session, why: Ended, message: str) -> None:
        opened = session.opened
        self._drop(session, grace=0)
        if self._link is None:
            return
        if opened:
            self._link.send(SessionEnded(session=session.name, why=why, message=message))
        else:
            self._refuse(session.request, admission.UNKNOWN if why is Ended.REVOKED else admission.STOPPED)

    def _drop(self, session: Session, *, grace: int) -> None:
        """Without a word to the broker."""
        self._forget_session(session)
        if session.opening is not None:
            session.opening.cancel()
        self._engine.end_session(session.name, grace=grace)

    def _forget_session(self, session: Session) -> bool:
        """Whether it was still there."""
        if self._sessions.pop(session.name, None) is None:
            return False
        instance = self._instances.get(session.instance)
        if instance is not None and session.connection:
            instance.open -= 1
            instance.last_used = self._clock()
        self._wake.set()
        return True

    def _exited(self, name: str, exit_: SessionExit) -> None:
        """`ExitListener` of the engine."""
        self._trials.exited(name, exit_)
        session = self._sessions.get(name)
        if session is not None and session.opened:
            self._forget_session(session)
            # The broker still reads what the process wrote last; its container goes after that.
            wait = self._timings.session_last_words
            self._exits[name] = asyncio.get_running_loop().call_later(wait, self._let_go, name)
            if self._link is not None:
                self._link.send(SessionEnded(session=name, why=Ended.EXITED, message=exit_message(exit_)))
            return
        self._spares.exited(name, exit_, self._instances.values())

    def _let_go(self, name: str) -> None:
        timer = self._exits.pop(name, None)
        if timer is not None:
            timer.cancel()
            self._engine.end_session(name)

    # ------------------------------------------------------------------- trials
    @contextlib.asynccontextmanager
    async def trial(self, instance_id: str) -> AsyncGenerator[Trial]:
        """A session for one probe, which gets it from the broker for the trial's ticket; gone at the end.

        Raises `NotDeployed`, `BrokerAway`, `EngineUnavailable`, `Failure`, `TimeoutError`.
        """
        if self._link is None:
            raise BrokerAway(lately=self._clock() - self._down_since < self._timings.broker_patience)
        names, opened = [new_name()], None
        instance = self._instances.get(instance_id)
        incarnation = "" if instance is None else instance.incarnation
        if instance is None or not instance.stands:
            async with asyncio.timeout(self._timings.session_open):
                opened = await self._engine.open_session(instance_id, names[0])
        try:
            async with self._trials.holding(instance_id, names, opened, incarnation) as trial:
                yield trial
        finally:
            for name in names:
                session = self._sessions.get(name)
                if session is not None:
                    self._end(session, Ended.STOPPED, "The probe is over.")
                self._engine.end_session(name)

    def _open_for_probe(self, message: OpenSession) -> None:
        trial, instance = self._trials.of(message.ticket, message.instance), self._instances.get(message.instance)
        if trial is None or instance is None or self._link is None:
            self._refuse(message.request, admission.UNKNOWN)
            return
        if trial.stream is None and instance.upstream is None:
            self._refuse(message.request, admission.STOPPED)
            return
        if trial.taken and trial.session not in self._sessions:
            self._engine.end_session(trial.session)
        name = trial.again() if trial.taken else trial.session
        session = self._sessions[name] = Session(name, trial.instance, "", message.request)
        if trial.taken and not instance.stands:
            session.opening = asyncio.create_task(self._begin(session, instance, None), name="open session of a probe")
        else:
            self._give(session, instance, trial.take(), trial.incarnation)

    # ------------------------------------------------------------------ tending
    async def run(self) -> None:
        """Keep spares, end what has expired and tell of counts, until cancelled."""
        try:
            while True:
                self._wake.clear()
                pause = min([self._review(), *(self._tend(*item) for item in tuple(self._instances.items()))])
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.001, pause)):
                        await self._wake.wait()
        finally:
            for session in tuple(self._sessions.values()):
                self._drop(session, grace=0)
            for name in tuple(self._exits):
                self._let_go(name)
            for instance in self._instances.values():
                self._spares.discard(instance)

    def _tend(self, instance_id: str, instance: Instance) -> float:
        """What is due for an instance; seconds until something is again."""
        if instance.stands:
            return _LONGEST_SLEEP
        now = self._clock()
        self._spares.tend(instance_id, instance, now)
        dues = [instance.may_have_spare, spares.unwanted_at(instance.use)]
        if instance.counts != instance.told:
            due = instance.told_at + self._timings.sessions_told
            if now >= due:
                instance.told, instance.told_at = instance.counts, now
                self.on_change(instance_id)
            dues.append(due)
        return min((due - now for due in dues if due is not None and due > now), default=_LONGEST_SLEEP)
