"""The official conformance suite says the same about a server whether it is reached directly or through the gateway."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from localstack.processes import Supervisor
from support.conformance.bearer_proxy import bearer_proxy
from support.conformance.suite import REVISIONS, UNCHECKED, Check, Run, Verdicts, not_passed
from support.gateway.others import conformance_server
from support.gateway.world import World
from toolbox_dtma.link.messages import Change
from toolbox_dtma.wire import Expose, HostConfig, NameFilter

pytestmark = pytest.mark.e2e

NO_SKILLS = "the server has no skills extension: it is a set of resources and methods of which a relay sees nothing new"
NOT_APPLICABLE: Mapping[str, str] = {
    "sep-2640-skills-directory": NO_SKILLS,
    "sep-2640-skills-enumeration": NO_SKILLS,
    "sep-2640-skills-manifest": NO_SKILLS,
    "tasks-status-notifications": "the suite itself skips it: these notifications moved to another stream",
}
"""Scenarios of which no check applies, directly or through the gateway. All others must pass."""


DIRECT, OPEN, FILTERED = "direct", "open", "filtered"
NAMES_NOTHING = "without a URI it could be about anything, so policy refuses it before the server can say it is gone"
REFUSED_THROUGH: Mapping[str, Mapping[str, str]] = {
    OPEN: {},
    FILTERED: {
        "server-stateless:sep-2575-http-server-method-not-found-404-resources-subscribe": NAMES_NOTHING,
        "server-stateless:sep-2575-http-server-method-not-found-404-resources-unsubscribe": NAMES_NOTHING,
    },
}
"""By connection: checks that pass directly and cannot pass through the gateway, and why."""

_ALL_BUT_ONE = NameFilter(allow=("*",), deny=("not-there",))
_ALL_HERE = NameFilter(allow=("test://*",))
EXPOSED = {OPEN: Expose(), FILTERED: Expose(tools=_ALL_BUT_ONE, prompts=_ALL_BUT_ONE, resources=_ALL_HERE)}
"""What passes the relay unseen, and what is held, parsed and filtered although nothing is denied in the end."""


@pytest.fixture(scope="module")
def urls(gateway: World, supervisor: Supervisor) -> Generator[dict[str, str]]:
    """The server's own URL, and one through each connection; a server for each, so that no run disturbs another."""
    with ExitStack() as proxies:
        found: dict[str, str] = {}
        origins: list[str] = []
        for name, expose in EXPOSED.items():
            port = conformance_server(supervisor, f"conformance-{name}")
            surface = gateway.dtma.probe(port, "/mcp").surface
            connection = gateway.connect(gateway.instance(port, surface=surface), expose=expose)
            found[name] = proxies.enter_context(bearer_proxy(connection, gateway.tls.client_context()))
            origins.append(found[name].removesuffix(f"/servers/{connection.instance}/mcp"))
        gateway.dtma.apply(Change(config=HostConfig(gateway_url=gateway.base, allowed_origins=tuple(origins))))
        yield {DIRECT: f"http://127.0.0.1:{conformance_server(supervisor, 'conformance-direct')}/mcp", **found}


@pytest.fixture(params=REVISIONS)
def runs(request: pytest.FixtureRequest, urls: dict[str, str], tmp_path: Path) -> Generator[dict[str, Verdicts]]:
    """What the suite says about each URL, at one revision."""
    started = {name: Run(url, request.param, tmp_path / name) for name, url in urls.items()}
    try:
        yield {name: run.verdicts() for name, run in started.items()}
    finally:
        for run in started.values():
            run.stop()


def _failed(verdicts: Verdicts) -> dict[str, str]:
    return {str(check): f"{v.status}: {v.message}" for check, v in verdicts.items() if not v.passed}


def _status(verdicts: Verdicts, check: Check) -> str:
    return verdicts[check].status if check in verdicts else "never ran"


def test_every_check_says_the_same_directly_and_through_the_gateway_and_none_fails(runs: dict[str, Verdicts]) -> None:
    direct = runs.pop(DIRECT)
    scenarios = {check.scenario for check in direct}
    assert not_passed(direct) == dict.fromkeys(scenarios & NOT_APPLICABLE.keys(), UNCHECKED)
    for name, through in runs.items():
        ran = {str(check) for check in direct}
        assert _failed(through).keys() == REFUSED_THROUGH[name].keys() & ran, (name, _failed(through))
        # None was skipped, or never reached, because a gateway is in between.
        different = {
            str(check): (_status(direct, check), _status(through, check))
            for check in direct.keys() | through.keys()
            if str(check) not in REFUSED_THROUGH[name] and _status(direct, check) != _status(through, check)
        }
        assert not different, name
