"""The official conformance suite says the same about a server whether it is reached directly or through the gateway."""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping
from pathlib import Path

import pytest

from localstack.ports import accepts, free_port
from localstack.processes import Command, Supervisor
from support.conformance.bearer_proxy import bearer_proxy
from support.conformance.suite import REVISIONS, Check, Run, Verdict
from support.gateway.world import World
from toolbox_dtma.link.messages import Change
from toolbox_dtma.wire import HostConfig

pytestmark = pytest.mark.e2e

TESTS = Path(__file__).parents[2]

NO_SKILLS = "the server has no skills extension: it is a set of resources and methods of which a relay sees nothing new"
NOT_APPLICABLE: Mapping[str, str] = {
    "sep-2640-skills-directory": NO_SKILLS,
    "sep-2640-skills-enumeration": NO_SKILLS,
    "sep-2640-skills-manifest": NO_SKILLS,
    "tasks-status-notifications": "the suite itself skips it: these notifications moved to another stream",
}
"""Scenarios of which no check applies, directly or through the gateway. All others must pass."""


@pytest.fixture(scope="module")
def ports(supervisor: Supervisor) -> tuple[int, int]:
    """Two equal servers, so that the two runs cannot disturb each other: reached directly, and behind the gateway."""
    found: list[int] = []
    for name in ("conformance-direct", "conformance-behind"):
        port = free_port()
        argv = [sys.executable, "-m", "support.conformance.server", str(port)]
        child = supervisor.start(Command(name, argv, env={"PYTHONPATH": str(TESTS)}))
        child.wait_until(lambda port=port: accepts(port), 30, "listening")
        found.append(port)
    return found[0], found[1]


@pytest.fixture(scope="module")
def urls(gateway: World, ports: tuple[int, int]) -> Generator[tuple[str, str]]:
    """The server's own URL, and one that leads through the gateway."""
    direct, behind = ports
    connection = gateway.connect(gateway.instance(behind))
    with bearer_proxy(connection, gateway.tls.client_context()) as url:
        origin = url.removesuffix(f"/servers/{connection.instance}/mcp")
        gateway.dtma.apply(Change(config=HostConfig(gateway_url=gateway.base, allowed_origins=(origin,))))
        yield f"http://127.0.0.1:{direct}/mcp", url


@pytest.fixture(params=REVISIONS)
def runs(
    request: pytest.FixtureRequest, urls: tuple[str, str], tmp_path: Path
) -> Generator[tuple[Mapping[Check, Verdict], Mapping[Check, Verdict]]]:
    """What the suite says directly and through the gateway, at one revision."""
    both = [Run(url, request.param, tmp_path / name) for url, name in zip(urls, ("direct", "through"), strict=True)]
    try:
        direct, through = both
        yield direct.verdicts(), through.verdicts()
    finally:
        for run in both:
            run.stop()


def _failed(verdicts: Mapping[Check, Verdict]) -> dict[str, str]:
    return {str(check): f"{v.status}: {v.message}" for check, v in verdicts.items() if not v.passed}


def _status(verdicts: Mapping[Check, Verdict], check: Check) -> str:
    return verdicts[check].status if check in verdicts else "never ran"


def test_every_check_says_the_same_directly_and_through_the_gateway_and_none_fails(
    runs: tuple[Mapping[Check, Verdict], Mapping[Check, Verdict]],
) -> None:
    direct, through = runs
    assert not _failed(direct)
    assert not _failed(through)
    # None was skipped, or never reached, because a gateway is in between.
    different = {
        str(check): (_status(direct, check), _status(through, check))
        for check in direct.keys() | through.keys()
        if _status(direct, check) != _status(through, check)
    }
    assert not different
    scenarios = {check.scenario for check in direct}
    # Valid messages are checked in every scenario, whatever it is about.
    own = {check: verdict for check, verdict in direct.items() if check.id != "wire-schema-valid"}
    passed = {check.scenario for check, verdict in own.items() if verdict.status == "SUCCESS"}
    assert scenarios - passed == scenarios & NOT_APPLICABLE.keys(), "scenarios of which nothing was checked"
