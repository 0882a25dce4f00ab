"""The official conformance suite about a server on stdio, as agents reach it: through gateway and session broker."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from pathlib import Path

import pytest

from localstack.processes import Supervisor
from support.broker.programs import Spawned
from support.conformance import forks
from support.conformance.bridged import bridged, judged
from support.conformance.suite import Verdicts, not_passed
from support.gateway.world import World

pytestmark = pytest.mark.e2e

SPOKEN = ("2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28")
"""Revisions of servers on stdio."""

CANNOT_PASS: Mapping[str, str] = {
    "server-sse-polling": "streams of the broker have no event ids, since it keeps nothing of what it passed on"
    " (ADR 0016): there is nothing to resume, and the suite then checks nothing",
}
"""Scenarios that a server on stdio cannot pass, by name, and why; all others must."""


@pytest.fixture(scope="module")
def runs(
    gateway: World, supervisor: Supervisor, state_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Generator[dict[str, Verdicts]]:
    argv = forks.launcher(supervisor, state_folder / "conformance-forks.sock")
    folder = tmp_path_factory.mktemp("conformance-stdio")
    with bridged(gateway, lambda _asked: Spawned(argv)) as url, judged(url, SPOKEN, folder) as found:
        yield found


@pytest.mark.parametrize("revision", SPOKEN)
def test_all_scenarios_pass_but_those_that_stdio_cannot(runs: dict[str, Verdicts], revision: str) -> None:
    failed = not_passed(runs[revision])
    assert failed.keys() == {check.scenario for check in runs[revision]} & CANNOT_PASS.keys(), failed


def test_what_stdio_cannot_pass_is_asked_for(runs: dict[str, Verdicts]) -> None:
    asked = {check.scenario for verdicts in runs.values() for check in verdicts}
    assert CANNOT_PASS.keys() <= asked, "a scenario that the suite no longer has"
