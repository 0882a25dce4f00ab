"""The official conformance suite about a server on stdio, as agents reach it: through gateway and session broker."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from localstack.processes import Supervisor
from support.broker.programs import Spawned
from support.broker.world import running_broker
from support.conformance import forks
from support.conformance.bearer_proxy import bearer_proxy
from support.conformance.suite import Check, Run, Verdict
from support.gateway.world import World
from toolbox_dtma.link.messages import Change
from toolbox_dtma.wire import HostConfig

pytestmark = pytest.mark.e2e

SPOKEN = ("2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28")
"""Revisions of servers on stdio."""

CANNOT_PASS: Mapping[str, str] = {
    "server-sse-polling": "streams of the broker have no event ids, since it keeps nothing of what it passed on"
    " (ADR 0016): there is nothing to resume, and the suite then checks nothing",
}
"""Scenarios that a server on stdio cannot pass, by name, and why; all others must."""


@pytest.fixture(scope="module")
def url(gateway: World, supervisor: Supervisor, state_folder: Path) -> Generator[str]:
    """Where the suite finds the server; the suite itself has no token."""
    argv = forks.launcher(supervisor, state_folder / "conformance-forks.sock")
    with ExitStack() as stack:
        broker = stack.enter_context(running_broker(unprivileged=True))
        instance = gateway.bridged(broker.dtma.instance(lambda _asked: Spawned(argv)), broker.path)
        connection = gateway.connect(instance)
        found = stack.enter_context(bearer_proxy(connection, gateway.tls.client_context()))
        origin = found.removesuffix(f"/servers/{instance}/mcp")
        gateway.dtma.apply(Change(config=HostConfig(gateway_url=gateway.base, allowed_origins=(origin,))))
        yield found


@pytest.fixture(scope="module")
def runs(url: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[dict[str, Mapping[Check, Verdict]]]:
    """What the suite says, by revision; all of them at the same time."""
    folder = tmp_path_factory.mktemp("conformance-stdio")
    started = {revision: Run(url, revision, folder / revision) for revision in SPOKEN}
    try:
        yield {revision: run.verdicts() for revision, run in started.items()}
    finally:
        for run in started.values():
            run.stop()


@pytest.mark.parametrize("revision", SPOKEN)
def test_all_scenarios_pass_but_those_that_stdio_cannot(
    runs: dict[str, Mapping[Check, Verdict]], revision: str
) -> None:
    verdicts = runs[revision]
    failed = {str(check): f"{said.status}: {said.message}" for check, said in verdicts.items() if not said.passed}
    scenarios = {check.scenario for check in verdicts}
    own = {check: said for check, said in verdicts.items() if check.id != "wire-schema-valid"}
    passed = {check.scenario for check, said in own.items() if said.status == "SUCCESS"}
    # Failed, or nothing of it was checked.
    not_passed = {name.partition(":")[0] for name in failed} | (scenarios - passed)
    assert not_passed == scenarios & CANNOT_PASS.keys(), failed


def test_what_stdio_cannot_pass_is_asked_for(runs: dict[str, Mapping[Check, Verdict]]) -> None:
    asked = {check.scenario for verdicts in runs.values() for check in verdicts}
    assert CANNOT_PASS.keys() <= asked, "a scenario that the suite no longer has"
