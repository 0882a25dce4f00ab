"""Trials: sessions of probes, which a ticket opens, beside those of connections."""

from __future__ import annotations

import asyncio

import pytest

from support.dtma.managed import TIMINGS, Bench
from support.dtma.sessions import ScriptedBroker, until
from toolbox_dtma.engine.api import SessionExit
from toolbox_dtma.engine.failures import Failure
from toolbox_dtma.link.broker import (
    Closing,
    Refused,
    SessionEnded,
)
from toolbox_dtma.sessions.manager import BrokerAway
from toolbox_dtma.wire import InstanceReason


async def test_a_ticket_opens_two_sessions_that_do_not_count(bench: Bench, broker: ScriptedBroker) -> None:
    bench.deploy(max_sessions=1)
    await broker.opened("i-1", "c-1")
    async with bench.manager.trial("i-1") as trial:
        assert (await broker.refused("i-2", ticket=trial.ticket)).why is Refused.UNKNOWN
        first = await broker.opened("i-1", ticket=trial.ticket)
        assert first == trial.session and bench.manager.open_sessions == 1
        second = await broker.opened("i-1", ticket=trial.ticket)
        assert second == trial.session != first and bench.manager.open_sessions == 1
        assert (await broker.refused("i-1", ticket=trial.ticket)).why is Refused.UNKNOWN
        # Both go on: a server may be talked to in two ways.
        assert {first, second} <= bench.engine.processes.keys()
        bench.engine.exit(second, SessionExit(3))
        assert await trial.how_it_ended(1.0) == SessionExit(3)
    assert not {first, second} & bench.engine.processes.keys()
    ended = [await broker.heard(), await broker.heard()]
    assert {each.session for each in ended if isinstance(each, SessionEnded)} == {first, second}
    assert (await broker.refused("i-1", ticket=trial.ticket)).why is Refused.UNKNOWN


async def test_a_process_that_ends_when_it_is_asked_is_replaced_and_only_the_next_ones_end_counts(
    bench: Bench, broker: ScriptedBroker
) -> None:
    async with bench.manager.trial("i-1") as trial:
        first = await broker.opened("i-1", ticket=trial.ticket)
        bench.engine.exit(first, SessionExit(1))
        assert isinstance(await broker.heard(), SessionEnded)
        assert await trial.how_it_ended(1.0) == SessionExit(1)
        second = await broker.opened("i-1", ticket=trial.ticket)
        assert first not in bench.engine.processes and second in bench.engine.processes
        assert await trial.how_it_ended(0.01) is None


async def test_a_second_process_of_a_probe_that_cannot_be_made_is_refused(bench: Bench, broker: ScriptedBroker) -> None:
    async with bench.manager.trial("i-1") as trial:
        await broker.opened("i-1", ticket=trial.ticket)
        bench.engine.failure = Failure(InstanceReason.START_FAILED, "no")
        assert (await broker.refused("i-1", ticket=trial.ticket)).why is Refused.FAILED


async def test_a_probe_that_is_over_leaves_no_process_on_its_way(bench: Bench, broker: ScriptedBroker) -> None:
    async with bench.manager.trial("i-1") as trial:
        await broker.opened("i-1", ticket=trial.ticket)
        bench.engine.makes.clear()
        broker.ask("i-1", ticket=trial.ticket)
        await until(lambda: len(bench.engine.made) == 2, "it is being made")
    answers = [await broker.heard(), await broker.heard()]
    assert {each.kind for each in answers} == {"ended", "refused"}
    bench.engine.makes.set()


async def test_how_a_trial_ended_is_told_also_after_the_broker_let_go_of_it(
    bench: Bench, broker: ScriptedBroker
) -> None:
    async with bench.manager.trial("i-1") as trial:
        session = await broker.opened("i-1", ticket=trial.ticket)
        broker.let_go(session, Closing.ENDED)
        await until(lambda: trial.silent, "the broker is heard")
        assert session in bench.engine.processes
        bench.engine.exit(session, SessionExit(4))
        assert await trial.how_it_ended(1.0) == SessionExit(4)
    assert session not in bench.engine.processes


async def test_a_process_that_ends_because_the_broker_let_go_of_it_did_not_end_by_itself(
    bench: Bench, broker: ScriptedBroker
) -> None:
    async with bench.manager.trial("i-1") as trial:
        session = await broker.opened("i-1", ticket=trial.ticket)
        broker.let_go(session, Closing.PROTOCOL)
        await until(trial.ended.is_set, "the broker is heard")
        bench.engine.exit(session, SessionExit(0))
        assert await trial.how_it_ended(1.0) is None


async def test_a_trial_that_nobody_came_for_leaves_nothing(bench: Bench, broker: ScriptedBroker) -> None:
    del broker
    async with bench.manager.trial("i-1") as trial:
        assert trial.session in bench.engine.processes
    assert not bench.engine.processes


@pytest.mark.parametrize(("patience", "lately"), [(600.0, True), (0.02, False)])
async def test_no_trial_without_a_broker_and_it_says_for_how_long_there_was_none(patience: float, lately: bool) -> None:
    bench = Bench(timings=TIMINGS.model_copy(update={"broker_patience": patience}))
    bench.deploy()
    await asyncio.sleep(0.05)
    with pytest.raises(BrokerAway) as away:
        async with bench.manager.trial("i-1"):
            raise AssertionError
    assert away.value.lately is lately
