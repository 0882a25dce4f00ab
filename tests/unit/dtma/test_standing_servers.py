"""The session manager and servers whose sessions share one container: nothing is made for them, all else is alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from support.dtma.managed import Managed, grant
from support.dtma.sessions import ScriptedBroker, until
from toolbox_dtma.link.broker import (
    Closing,
    Ended,
    Refused,
    SessionEnded,
    SessionOpened,
    Upstream,
)
from toolbox_dtma.link.messages import Change
from toolbox_dtma.sessions import admission
from toolbox_dtma.sessions.manager import BrokerAway
from toolbox_dtma.sessions.records import PROBE_IDLE_SECONDS
from toolbox_dtma.settings import Timings
from toolbox_dtma.wire import Sessions

HERE = Upstream(address="10.0.0.2", port=3001, path="/sse")
ELSEWHERE = HERE.model_copy(update={"path": "/events"})


@dataclass
class Bench(Managed):
    """With one server that stands, `i-1`."""

    timings: Timings = field(default_factory=lambda: Timings(broker_patience=0.05))

    @property
    def incarnation(self) -> str | None:
        bridge = self.manager.bridge("i-1")
        return bridge.incarnation if bridge is not None else None


@pytest.fixture
async def bench() -> AsyncGenerator[Bench]:
    bench = Bench()
    bench.manager.stand("i-1", HERE, "one")
    async with bench.running():
        yield bench
    assert not bench.engine.made, "a container was made for a session"


@pytest.fixture
async def broker(bench: Bench) -> AsyncGenerator[ScriptedBroker]:
    async with bench.broker() as broker:
        yield broker


async def test_a_session_is_told_where_the_server_is_and_for_how_long_it_may_be_silent(
    bench: Bench, broker: ScriptedBroker
) -> None:
    request = broker.ask("i-1", "c-1")
    answer = await broker.heard()
    assert isinstance(answer, SessionOpened) and answer.request == request
    assert (answer.upstream, answer.idle_seconds) == (HERE, admission.STANDING.idle_seconds)
    assert bench.manager.open_sessions == 1 and bench.manager.counts("i-1") is None
    broker.let_go(answer.session, Closing.ENDED)
    await until(lambda: bench.manager.open_sessions == 0, "it to be closed")


async def test_who_has_no_grant_for_it_gets_nothing(bench: Bench, broker: ScriptedBroker) -> None:
    bench.grants["c-3"] = grant("c-3", "i-2")
    for connection in ("stranger", "", "c-3"):
        assert (await broker.refused("i-1", connection)).why is Refused.UNKNOWN


async def test_no_more_sessions_than_a_server_may_have_and_a_closed_one_makes_room(
    bench: Bench, broker: ScriptedBroker
) -> None:
    sessions = [await broker.opened("i-1", "c-1") for _ in range(admission.STANDING.max_sessions)]
    refused = await broker.refused("i-1", "c-2")
    assert refused.why is Refused.FULL and refused.retry_seconds
    assert refused.message == f"All {len(sessions)} sessions of this server are in use."
    broker.let_go(sessions[0])
    await until(lambda: bench.manager.open_sessions < len(sessions), "it to be closed")
    await broker.opened("i-1", "c-2")


async def test_a_withdrawn_grant_ends_its_sessions_at_once_and_nobody_elses(
    bench: Bench, broker: ScriptedBroker
) -> None:
    one, _ = await broker.opened("i-1", "c-1"), await broker.opened("i-1", "c-2")
    del bench.grants["c-1"]
    bench.manager.policy_changed(Change(grants_gone=("c-1",)))
    ended = await broker.heard()
    assert isinstance(ended, SessionEnded) and (ended.session, ended.why) == (one, Ended.REVOKED)
    assert bench.manager.open_sessions == 1
    assert (await broker.refused("i-1", "c-1")).why is Refused.UNKNOWN


async def test_a_grant_that_ends_by_itself_ends_its_sessions(bench: Bench, broker: ScriptedBroker) -> None:
    bench.grants["c-1"] = grant("c-1", expires_at=datetime.now(UTC) + timedelta(seconds=2))
    session = await broker.opened("i-1", "c-1")
    ended = await broker.heard()
    assert isinstance(ended, SessionEnded) and (ended.session, ended.why) == (session, Ended.REVOKED)


@pytest.mark.parametrize(("upstream", "incarnation"), [(None, ""), (HERE, "two"), (ELSEWHERE, "one")])
async def test_a_server_that_stops_starts_anew_or_listens_elsewhere_ends_every_session(
    bench: Bench, broker: ScriptedBroker, upstream: Upstream | None, incarnation: str
) -> None:
    session, before = await broker.opened("i-1", "c-1"), bench.incarnation
    bench.manager.stand("i-1", upstream, incarnation)
    ended = await broker.heard()
    assert isinstance(ended, SessionEnded) and (ended.session, ended.why) == (session, Ended.STOPPED)
    if upstream is None:
        assert bench.incarnation is None and (await broker.refused("i-1", "c-1")).why is Refused.STOPPED
    else:
        assert bench.incarnation not in (None, before)
        assert broker.upstreams[await broker.opened("i-1", "c-1")] == upstream


async def test_what_changes_nothing_ends_nothing(bench: Bench, broker: ScriptedBroker) -> None:
    before = bench.incarnation
    await broker.opened("i-1", "c-1")
    bench.manager.stand("i-1", HERE, "one")
    assert (bench.manager.open_sessions, bench.incarnation, broker.ended) == (1, before, [])


async def test_another_broker_is_another_incarnation_without_the_sessions_of_before(bench: Bench) -> None:
    async with bench.broker() as broker:
        await broker.opened("i-1", "c-1")
        first = bench.incarnation
    assert bench.incarnation is None and bench.manager.open_sessions == 0
    async with bench.broker() as broker:
        assert bench.incarnation not in (None, first)
        await broker.opened("i-1", "c-1")


async def test_a_forgotten_server_has_no_sessions(bench: Bench, broker: ScriptedBroker) -> None:
    session = await broker.opened("i-1", "c-1")
    bench.manager.forget("i-1")
    ended = await broker.heard()
    assert isinstance(ended, SessionEnded) and ended.session == session
    assert (await broker.refused("i-1", "c-1")).why is Refused.UNKNOWN


async def test_a_server_that_speaks_stdio_from_now_on_has_nothing_of_before(
    bench: Bench, broker: ScriptedBroker
) -> None:
    session = await broker.opened("i-1", "c-1")
    bench.manager.deploy("i-1", Sessions(max_sessions=2), None)
    ended = await broker.heard()
    assert isinstance(ended, SessionEnded) and ended.session == session
    counts = bench.manager.counts("i-1")
    assert counts is not None and (counts.open, counts.max) == (0, 2)
    bench.manager.stand("i-1", HERE, "one")
    assert bench.manager.counts("i-1") is None
    assert broker.upstreams[await broker.opened("i-1", "c-1")] == HERE


async def test_a_ticket_opens_two_sessions_that_do_not_count(bench: Bench, broker: ScriptedBroker) -> None:
    async with bench.manager.trial("i-1") as trial:
        assert (await broker.refused("i-2", ticket=trial.ticket)).why is Refused.UNKNOWN
        broker.ask("i-1", ticket=trial.ticket)
        answer = await broker.heard()
        assert isinstance(answer, SessionOpened) and answer.session == trial.session
        assert (answer.upstream, answer.idle_seconds) == (HERE, PROBE_IDLE_SECONDS)
        second = await broker.opened("i-1", ticket=trial.ticket)
        assert second == trial.session != answer.session and bench.manager.open_sessions == 0
        assert (await broker.refused("i-1", ticket=trial.ticket)).why is Refused.UNKNOWN
    ended = [await broker.heard(), await broker.heard()]
    assert {each.session for each in ended if isinstance(each, SessionEnded)} == {answer.session, second}
    assert (await broker.refused("i-1", ticket=trial.ticket)).why is Refused.UNKNOWN


@pytest.mark.parametrize("why", [Closing.UNREACHABLE, Closing.PROTOCOL, Closing.ENDED])
async def test_a_trial_knows_at_once_whether_anything_listened(
    bench: Bench, broker: ScriptedBroker, why: Closing
) -> None:
    async with bench.manager.trial("i-1") as trial:
        broker.let_go(await broker.opened("i-1", ticket=trial.ticket), why)
        # No process ends there: whatever the broker says is the whole of it.
        async with asyncio.timeout(5):
            assert await trial.how_it_ended(60) is None
        assert trial.unreachable is (why is Closing.UNREACHABLE)


async def test_a_trial_of_a_server_that_has_stopped_meanwhile_gets_no_session(
    bench: Bench, broker: ScriptedBroker
) -> None:
    async with bench.manager.trial("i-1") as trial:
        bench.manager.stand("i-1", None, "")
        assert (await broker.refused("i-1", ticket=trial.ticket)).why is Refused.STOPPED


async def test_without_a_broker_there_is_no_trial(bench: Bench) -> None:
    with pytest.raises(BrokerAway):
        async with bench.manager.trial("i-1"):
            raise AssertionError


async def test_a_host_needs_a_broker_for_such_a_server_also_while_it_is_stopped() -> None:
    bench = Bench()
    assert not bench.needed
    bench.manager.stand("i-1", None, "")
    assert bench.needed
