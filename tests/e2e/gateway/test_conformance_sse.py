"""The official conformance suite about a server on SSE, as agents reach it: through gateway and session broker."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import ExitStack

import pytest

from localstack.processes import Supervisor
from support.broker.world import running_broker
from support.conformance.bearer_proxy import bearer_proxy
from support.conformance.suite import Check, Run, Verdict
from support.gateway.others import conformance_server
from support.gateway.world import World
from toolbox_dtma.link.broker import Upstream
from toolbox_dtma.link.messages import Change
from toolbox_dtma.wire import HostConfig

pytestmark = pytest.mark.e2e

SPOKEN = ("2025-03-26", "2025-06-18", "2025-11-25")
"""Revisions that are spoken with such servers, and that the suite has."""
NOT_APPLICABLE: Mapping[str, str] = {
    "server-sse-polling": "it is about taking up a stream by its event ids, and this transport gives none out",
}
"""Scenarios of which no check applies, and why. All others must pass."""


@pytest.fixture(scope="module")
def url(gateway: World, supervisor: Supervisor) -> Generator[str]:
    """Where the suite finds the server; the suite itself has no token."""
    port = conformance_server(supervisor, "conformance-sse", "sse")
    where = Upstream(address="127.0.0.1", port=port, path="/sse")
    with ExitStack() as stack:
        broker = stack.enter_context(running_broker(unprivileged=True))
        instance = gateway.bridged(broker.dtma.instance(lambda _request: where), broker.path)
        connection = gateway.connect(instance)
        found = stack.enter_context(bearer_proxy(connection, gateway.tls.client_context()))
        origin = found.removesuffix(f"/servers/{instance}/mcp")
        gateway.dtma.apply(Change(config=HostConfig(gateway_url=gateway.base, allowed_origins=(origin,))))
        yield found


@pytest.fixture(scope="module")
def runs(url: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[dict[str, Mapping[Check, Verdict]]]:
    """What the suite says, by revision; all of them at the same time."""
    folder = tmp_path_factory.mktemp("conformance-sse")
    started = {revision: Run(url, revision, folder / revision) for revision in SPOKEN}
    try:
        yield {revision: run.verdicts() for revision, run in started.items()}
    finally:
        for run in started.values():
            run.stop()


@pytest.mark.parametrize("revision", SPOKEN)
def test_no_check_fails_and_every_scenario_is_checked_that_applies(
    runs: dict[str, Mapping[Check, Verdict]], revision: str
) -> None:
    verdicts = runs[revision]
    assert not {str(check): f"{said.status}: {said.message}" for check, said in verdicts.items() if not said.passed}
    scenarios = {check.scenario for check in verdicts}
    # Valid messages are checked in every scenario, whatever it is about.
    own = {check: said for check, said in verdicts.items() if check.id != "wire-schema-valid"}
    passed = {check.scenario for check, said in own.items() if said.status == "SUCCESS"}
    assert scenarios - passed == scenarios & NOT_APPLICABLE.keys(), "scenarios of which nothing was checked"


def test_what_does_not_apply_is_asked_for(runs: dict[str, Mapping[Check, Verdict]]) -> None:
    asked = {check.scenario for verdicts in runs.values() for check in verdicts}
    assert NOT_APPLICABLE.keys() <= asked, "a scenario that the suite no longer has"
