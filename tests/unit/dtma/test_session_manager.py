"""The session manager between a scripted broker and an engine of sockets."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from support.dtma.managed import TIMINGS, Bench, grant
from support.dtma.sessions import ScriptedBroker, until
from toolbox_dtma.engine.api import EngineUnavailable, SessionExit
from toolbox_dtma.engine.failures import Failure
from toolbox_dtma.link.broker import (
    CloseSession,
    Closing,
    Ended,
    Refused,
    SessionEnded,
    SessionOpened,
    SessionRefused,
)
from toolbox_dtma.link.messages import Change
from toolbox_dtma.wire import InstanceReason, SessionCounts


async def test_a_session_is_a_process_of_its_own_that_the_broker_talks_to(bench: Bench, broker: ScriptedBroker) -> None:
    one, two = await broker.opened("i-1", "c-1"), await broker.opened("i-1", "c-1")
    assert one != two
    broker.streams[one].send(b"hello")
    assert bench.engine.processes[one].recv(10) == b"hello"
    bench.engine.processes[two].send(b"world")
    assert broker.streams[two].recv(10) == b"world"
    assert bench.manager.open_sessions == 2


@pytest.mark.parametrize(
    ("instance", "connection", "why"),
    [
        ("i-1", "stranger", Refused.UNKNOWN),
        ("i-1", "", Refused.UNKNOWN),
        ("i-2", "c-1", Refused.UNKNOWN),
    ],
)
async def test_who_has_no_grant_for_the_instance_gets_nothing(
    bench: Bench, broker: ScriptedBroker, instance: str, connection: str, why: Refused
) -> None:
    assert (await broker.refused(instance, connection)).why is why
    assert bench.engine.made == []


async def test_no_more_sessions_than_the_server_may_have_and_a_closed_one_makes_room(
    bench: Bench, broker: ScriptedBroker
) -> None:
    sessions = [await broker.opened("i-1", f"c-{n}") for n in (1, 2, 3)]
    refused = await broker.refused("i-1", "c-4")
    assert refused.why is Refused.FULL and "3" in refused.message and refused.retry_seconds
    assert len(bench.engine.processes) == 3, "a spare beyond what the server may have"
    broker.let_go(sessions[0])
    await until(lambda: sessions[0] not in bench.engine.processes, "the container of the closed one to go")
    assert (sessions[0], TIMINGS.session_grace) in bench.engine.ended
    await broker.opened("i-1", "c-4")


async def test_a_session_that_is_being_opened_counts(bench: Bench, broker: ScriptedBroker) -> None:
    bench.deploy(max_sessions=1)
    bench.engine.makes.clear()
    first = broker.ask("i-1", "c-1")
    await until(lambda: bool(bench.engine.made), "the first to be asked for")
    assert (await broker.refused("i-1", "c-2")).why is Refused.FULL
    bench.engine.makes.set()
    answer = await broker.heard()
    assert answer.kind == "opened" and answer.request == first


async def test_a_withdrawn_grant_ends_its_sessions_at_once_and_nobody_elses(
    bench: Bench, broker: ScriptedBroker
) -> None:
    one, other = await broker.opened("i-1", "c-1"), await broker.opened("i-1", "c-2")
    del bench.grants["c-1"]
    bench.manager.policy_changed(Change(grants_gone=("c-1",)))
    # Already now: nothing was awaited in between.
    assert one not in bench.engine.processes and (one, 0) in bench.engine.ended
    ended = await broker.heard()
    assert isinstance(ended, SessionEnded) and (ended.session, ended.why) == (one, Ended.REVOKED)
    assert other in bench.engine.processes
    assert (await broker.refused("i-1", "c-1")).why is Refused.UNKNOWN


async def test_a_grant_that_ends_by_itself_ends_its_sessions(bench: Bench, broker: ScriptedBroker) -> None:
    bench.grants["c-1"] = grant("c-1", expires_at=datetime.now(UTC) + timedelta(seconds=2))
    session = await broker.opened("i-1", "c-1")
    ended = await broker.heard()
    assert isinstance(ended, SessionEnded) and (ended.session, ended.why) == (session, Ended.REVOKED)
    assert datetime.now(UTC) >= (bench.grants["c-1"].expires_at or datetime.max.replace(tzinfo=UTC))


async def test_a_grant_withdrawn_while_its_session_is_being_opened_leaves_no_process(
    bench: Bench, broker: ScriptedBroker
) -> None:
    bench.engine.makes.clear()
    broker.ask("i-1", "c-1")
    await until(lambda: bool(bench.engine.made), "it to be asked for")
    del bench.grants["c-1"]
    bench.manager.policy_changed(Change(grants_gone=("c-1",)))
    answer = await broker.heard()
    assert isinstance(answer, SessionRefused) and answer.why is Refused.UNKNOWN
    bench.engine.makes.set()
    await until(lambda: bench.manager.open_sessions == 0, "nothing open")


@pytest.mark.parametrize("then", [None, "two"])
async def test_a_stopped_or_changed_server_ends_every_session_and_its_spare(
    bench: Bench, broker: ScriptedBroker, then: str | None
) -> None:
    session = await broker.opened("i-1", "c-1")
    await until(lambda: len(bench.engine.processes) == 2, "a spare")
    before = bench.manager.bridge("i-1")
    bench.deploy(then)
    assert not bench.engine.processes
    ended = await broker.heard()
    assert isinstance(ended, SessionEnded) and (ended.session, ended.why) == (session, Ended.STOPPED)
    after = bench.manager.bridge("i-1")
    if then is None:
        assert after is None and (await broker.refused("i-1", "c-1")).why is Refused.STOPPED
    else:
        assert before is not None and after is not None and after.incarnation != before.incarnation


async def test_what_changes_no_container_ends_no_session(bench: Bench, broker: ScriptedBroker) -> None:
    session = await broker.opened("i-1", "c-1")
    before = bench.manager.bridge("i-1")
    bench.deploy(max_sessions=1)
    assert session in bench.engine.processes and bench.manager.bridge("i-1") == before
    assert bench.manager.counts("i-1") == SessionCounts(open=1, max=1)


async def test_a_spare_is_there_before_it_is_needed_and_serves_one_session(
    bench: Bench, broker: ScriptedBroker
) -> None:
    assert bench.engine.made == [], "no spare of a server that nobody uses"
    first = await broker.opened("i-1", "c-1")
    await until(lambda: len(bench.engine.processes) == 2, "a spare")
    (spare,) = bench.engine.processes.keys() - {first}
    bench.engine.makes.clear()
    assert await broker.opened("i-1", "c-2") == spare, "it came from the spare, as nothing can be made"
    bench.engine.makes.set()
    third = await broker.opened("i-1", "c-3")
    assert third not in (first, spare)
    broker.let_go(spare)
    await until(lambda: spare not in bench.engine.processes, "the used spare to go")
    assert await broker.opened("i-1", "c-4") != spare


async def test_a_spare_that_is_on_its_way_is_waited_for_not_doubled(bench: Bench, broker: ScriptedBroker) -> None:
    bench.deploy(max_sessions=2)
    await broker.opened("i-1", "c-1")
    await until(lambda: len(bench.engine.processes) == 2, "a spare")
    spares_end = next(session for session in bench.engine.processes if session not in broker.streams)
    bench.engine.makes.clear()
    bench.engine.exit(spares_end, SessionExit(1))
    await until(lambda: len(bench.engine.made) == 3, "the next spare to be asked for")
    broker.ask("i-1", "c-2")
    await until(lambda: bench.manager.open_sessions == 2, "the session to be taken up")
    bench.engine.makes.set()
    answer = await broker.heard()
    assert answer.kind == "opened" and answer.session == bench.engine.made[2] and len(bench.engine.made) == 3


async def test_a_spare_that_dies_is_replaced_with_back_off_and_tells_nobody(
    bench: Bench, broker: ScriptedBroker
) -> None:
    session = await broker.opened("i-1", "c-1")
    for number in (2, 3, 4):
        await until(lambda n=number: len(bench.engine.made) == n, f"process {number}")
        await until(lambda: len(bench.engine.processes) == 2, "it to be there")
        (spare,) = bench.engine.processes.keys() - {session}
        died = asyncio.get_running_loop().time()
        bench.engine.exit(spare, SessionExit(1))
    await until(lambda: len(bench.engine.made) == 5, "process 5")
    assert asyncio.get_running_loop().time() - died >= 4 * TIMINGS.spare_retry_first * 0.9
    assert broker.ended == [] and session in bench.engine.processes


@pytest.mark.parametrize(
    ("exit_", "words"),
    [
        (SessionExit(137, out_of_memory=True), "used more memory than its limit"),
        (SessionExit(137), "may be for more memory than its limit"),
        (SessionExit(3), "exited with code 3"),
    ],
)
async def test_an_exit_is_told_at_once_and_the_container_stays_for_the_last_words(
    bench: Bench, broker: ScriptedBroker, exit_: SessionExit, words: str
) -> None:
    session = await broker.opened("i-1", "c-1")
    bench.engine.exit(session, exit_)
    assert session in bench.engine.processes and bench.manager.open_sessions == 0
    ended = await broker.heard()
    assert isinstance(ended, SessionEnded) and ended.why is Ended.EXITED and words in ended.message
    await until(lambda: session not in bench.engine.processes, "the container to go")


async def test_a_container_whose_last_words_were_read_goes_at_once() -> None:
    bench = Bench(timings=TIMINGS.model_copy(update={"session_last_words": 600.0}))
    bench.deploy()
    async with bench.running(), bench.broker() as broker:
        session = await broker.opened("i-1", "c-1")
        bench.engine.exit(session, SessionExit(0))
        broker.say(CloseSession(session=session, why=Closing.ENDED))
        await until(lambda: session not in bench.engine.processes, "the container to go")


@pytest.mark.parametrize(
    "failure", [Failure(InstanceReason.CREATE_FAILED, "Docker refused: secret"), EngineUnavailable("secret")]
)
async def test_a_process_that_cannot_be_made_is_a_refusal_without_anything_of_the_host(
    bench: Bench, broker: ScriptedBroker, failure: Exception
) -> None:
    bench.engine.failure = failure
    refused = await broker.refused("i-1", "c-1")
    assert refused.why is Refused.FAILED and refused.retry_seconds and "secret" not in refused.message
    assert bench.manager.open_sessions == 0


async def test_a_process_that_takes_too_long_is_given_up() -> None:
    bench = Bench(timings=TIMINGS.model_copy(update={"session_open": 0.5}))
    bench.deploy()
    async with bench.running(), bench.broker() as broker:
        bench.engine.makes.clear()
        assert (await broker.refused("i-1", "c-1")).why is Refused.FAILED
        bench.engine.makes.set()


async def test_a_broker_that_ends_takes_its_sessions_along_but_not_the_spare(bench: Bench) -> None:
    async with bench.broker() as broker:
        session = await broker.opened("i-1", "c-1")
        await until(lambda: len(bench.engine.processes) == 2, "a spare")
        first = bench.manager.bridge("i-1")
    assert (session, 0) in bench.engine.ended and len(bench.engine.processes) == 1
    assert bench.manager.bridge("i-1") is None
    (spare,) = bench.engine.processes
    async with bench.broker() as broker:
        second = bench.manager.bridge("i-1")
        assert first is not None and second is not None and first.incarnation != second.incarnation
        assert await broker.opened("i-1", "c-1") == spare


async def test_a_session_says_of_what_its_process_is_made(bench: Bench, broker: ScriptedBroker) -> None:
    async def incarnation(**owner: str) -> str:
        broker.ask("i-1", **owner)
        opened = await broker.heard()
        assert isinstance(opened, SessionOpened)
        return opened.incarnation

    one = await incarnation(connection="c-1")
    async with bench.manager.trial("i-1") as trial:
        assert [await incarnation(ticket=trial.ticket) for _ in range(2)] == [one, one]
    bench.deploy("two")
    assert [(await broker.heard()).kind for _ in range(3)] == ["ended"] * 3
    assert await incarnation(connection="c-1") != one


async def test_counts_are_told_now_and_then_and_the_last_one_always(bench: Bench, broker: ScriptedBroker) -> None:
    bench.deploy(max_sessions=9)
    bench.changed.clear()
    began = asyncio.get_running_loop().time()
    for n in range(1, 10):
        await broker.opened("i-1", f"c-{n}")
    await until(lambda: bench.manager.counts("i-1") == SessionCounts(open=9, max=9), "the last count")
    took = asyncio.get_running_loop().time() - began
    assert len(bench.changed) <= 2 + took / TIMINGS.sessions_told


async def test_a_forgotten_server_has_no_sessions_and_no_counts(bench: Bench, broker: ScriptedBroker) -> None:
    session = await broker.opened("i-1", "c-1")
    bench.manager.forget("i-1")
    ended = await broker.heard()
    assert isinstance(ended, SessionEnded) and ended.session == session
    assert bench.manager.counts("i-1") is None and not bench.engine.processes
    assert (await broker.refused("i-1", "c-1")).why is Refused.UNKNOWN


async def test_a_host_without_such_servers_needs_no_broker() -> None:
    bench = Bench()
    assert not bench.needed
    bench.deploy(None)
    assert bench.needed


async def test_who_comes_by_the_route_of_before_is_told_to_come_again(bench: Bench, broker: ScriptedBroker) -> None:
    def route() -> str:
        bridge = bench.manager.bridge("i-1")
        assert bridge is not None
        return bridge.incarnation

    before = route()
    bench.deploy("two")
    refused = await broker.refused("i-1", "c-1", route=before)
    assert (refused.why, refused.retry_seconds is not None) == (Refused.STOPPED, True)
    assert not bench.engine.made, "what it would have got would be lost at once"
    assert await broker.opened("i-1", "c-1", route=route())


async def test_a_spare_waits_until_nobody_waits_for_a_process(bench: Bench, broker: ScriptedBroker) -> None:
    bench.engine.makes.clear()
    broker.ask("i-1", "c-1")
    broker.ask("i-1", "c-2")
    await until(lambda: len(bench.engine.made) == 2, "two processes on their way")
    await asyncio.sleep(0.05)
    assert len(bench.engine.made) == 2
    begun = asyncio.get_running_loop().time()
    bench.engine.makes.set()
    for _ in range(2):
        assert isinstance(await broker.heard(), SessionOpened)
    await until(lambda: len(bench.engine.processes) == 3, "a spare")
    assert asyncio.get_running_loop().time() - begun >= TIMINGS.spare_after, "they start up first"
