"""The official conformance suite about a server on SSE, as agents reach it: through gateway and session broker."""

from __future__ import annotations

from collections.abc import Generator, Mapping

import pytest

from localstack.processes import Supervisor
from support.conformance.bridged import bridged, judged
from support.conformance.suite import UNCHECKED, Verdicts, not_passed
from support.gateway.others import conformance_server
from support.gateway.world import World
from toolbox_dtma.link.broker import Upstream

pytestmark = pytest.mark.e2e

SPOKEN = ("2025-03-26", "2025-06-18", "2025-11-25")
"""Revisions that are spoken with such servers, and that the suite has."""
NOT_APPLICABLE: Mapping[str, str] = {
    "server-sse-polling": "it is about taking up a stream by its event ids, and this transport gives none out",
}
"""Scenarios of which no check applies, and why. All others must pass."""


@pytest.fixture(scope="module")
def runs(
    gateway: World, supervisor: Supervisor, tmp_path_factory: pytest.TempPathFactory
) -> Generator[dict[str, Verdicts]]:
    where = Upstream(address="127.0.0.1", port=conformance_server(supervisor, "conformance-sse", "sse"), path="/sse")
    folder = tmp_path_factory.mktemp("conformance-sse")
    with bridged(gateway, lambda _request: where) as url, judged(url, SPOKEN, folder) as found:
        yield found


@pytest.mark.parametrize("revision", SPOKEN)
def test_every_scenario_passes_that_applies(runs: dict[str, Verdicts], revision: str) -> None:
    failed = not_passed(runs[revision])
    scenarios = {check.scenario for check in runs[revision]}
    assert failed == dict.fromkeys(scenarios & NOT_APPLICABLE.keys(), UNCHECKED)


def test_what_does_not_apply_is_asked_for(runs: dict[str, Verdicts]) -> None:
    asked = {check.scenario for verdicts in runs.values() for check in verdicts}
    assert NOT_APPLICABLE.keys() <= asked, "a scenario that the suite no longer has"
