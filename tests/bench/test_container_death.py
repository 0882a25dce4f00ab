"""From a killed container to the news of it, in status and in the record."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from dataclasses import dataclass

import psycopg
import pytest

from localstack.kubernetes import Manifest
from support import manifests
from support.bench.measure import DURATIONS, Report, Sample
from support.bench.system import Bench, Size, kill_container
from support.kubernetes.watch import Seen, condition, is_ready

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

BOUND = 1.0
QUERY = "SELECT status_on_toolbox FROM account_tool_instances WHERE id = %s"
LOOK = 0.005
PAUSE = 1.5
"""Seconds from a kill to the next one, at least; a server that is restarted takes one of the cores for about one."""

METHOD = """
One of {servers} running servers at a time gets its container killed, through Docker's API, in rounds, so that the
growing restart delay of each has passed before its next turn, and at most one every {pause:.1f} s, so that it is not
the starts of many others that are measured. The clock starts before the request to kill. Visible in
`status`: a watch delivers the object with `Ready` not True and the reason ContainerExited. Visible in SQL: the row's
status, asked every 5 ms, says `error`. The bound holds for the 95th percentile.
"""


@dataclass(frozen=True, slots=True)
class Victim:
    """A running server."""

    name: str
    instance: str
    container: str


def _victim(body: Manifest) -> Victim:
    status = body["status"]
    return Victim(body["metadata"]["name"], status["instanceId"], status["container"]["id"])


def _says_exited(seen: Seen) -> bool:
    ready = condition(seen.body, "Ready")
    return ready.get("status") == "False" and ready["reason"] == "ContainerExited"


@pytest.fixture
def record(own: Bench) -> Generator[psycopg.Connection]:
    dsn = own.world.stack.operator.database_url
    assert dsn is not None
    with psycopg.connect(dsn, autocommit=True, options="-c search_path=magic_toolbox") as connection:
        yield connection


def _until_recorded(record: psycopg.Connection, instance: str) -> float:
    """When the row says that the server is in error."""
    pause, deadline = threading.Event(), time.monotonic() + 60
    while True:
        row = record.execute(QUERY, (instance,)).fetchone()
        now = time.monotonic()
        assert row is not None
        if row[0] == "error":
            return now
        assert now < deadline, f"the row still says {row[0]}"
        pause.wait(LOOK)


def test_a_killed_container_is_seen_in_status_and_sql_within_a_second(
    own: Bench, size: Size, report: Report, record: psycopg.Connection
) -> None:
    image = own.world.stack.image("hello")
    names = [f"server-{number}" for number in range(size.kill_servers)]
    for name in names:
        own.create(manifests.quick_server(own.namespace, name, image))
    in_status: list[float] = []
    in_record: list[float] = []
    back: list[float] = []
    last_kill = dict.fromkeys(names, 0.0)
    pause = threading.Event()
    for turn in range(size.kills):
        name = names[turn % len(names)]
        ready = own.servers.first(name, is_ready, after=last_kill[name], seconds=120)
        if last_kill[name]:
            back.append(ready.at - last_kill[name])
        victim = _victim(ready.body)
        pause.wait(max(0.0, max(last_kill.values()) + PAUSE - time.monotonic()))
        begin = last_kill[name] = time.monotonic()
        kill_container(victim.container)
        in_record.append(_until_recorded(record, victim.instance) - begin)
        in_status.append(own.servers.first(name, _says_exited, after=begin).at - begin)
    section = report.section(
        "Container dies → visible", METHOD.format(servers=len(names), pause=PAUSE), ("", *DURATIONS)
    )
    for title, seconds in (("in `status`", in_status), ("in SQL", in_record)):
        sample = Sample.of(seconds)
        section.add(f"{title} (p95 ≤ 1,000)", *sample.cells(), met=sample.at(0.95) <= BOUND)
    if back:
        section.add("Ready again, by restart with back-off", *Sample.of(back).cells())
    section.check()
