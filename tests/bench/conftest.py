"""One system for all measurements, and the page with their results."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import psycopg
import pytest

from localstack.docker import Engine
from localstack.kubernetes import REPOSITORY
from localstack.postgres import Postgres
from localstack.processes import Supervisor
from localstack.registry import Registry
from support.bench.elsewhere import others_last
from support.bench.measure import Report, machine
from support.bench.system import Bench, Size, bench, start, versions
from support.system.world import World

PAGE = REPOSITORY / "docs" / "benchmarks.md"
REPORT = pytest.StashKey[Report]()
SELECTED = pytest.StashKey[set[str]]()
"""Names of the files with measurements that are to run."""


@pytest.fixture(scope="session")
def size() -> Size:
    """How much is measured."""
    return Size.chosen()


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    """The results: shown at the end."""
    report = pytestconfig.stash[REPORT] = Report(machine())
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints the results, and writes them to the documentation when everything was measured in full."""
    report = config.stash.get(REPORT, None)
    if report is None:
        return
    text = report.markdown()
    terminalreporter.write_line(f"\n{text}")
    measured = {path.name for path in Path(__file__).parent.glob("test_*.py")} == config.stash[SELECTED]
    if measured and not Size.chosen().quick:
        PAGE.write_text(text)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keeps which files take part: a page with a part of the measurements must not replace the whole one."""
    session.config.stash[SELECTED] = {item.path.name for item in session.items if item.get_closest_marker("bench")}


@pytest.fixture(scope="session")
def system(
    supervisor: Supervisor,
    state_folder: Path,
    postgres_server: Postgres,
    docker_engine: Engine,
    registry: Registry,
    report: Report,
) -> World:
    """The system under measurement."""
    world = start(supervisor, state_folder, postgres_server, docker_engine, registry)
    with psycopg.connect(postgres_server.admin_dsn()) as connection:
        version = str(connection.info.parameter_status("server_version"))
    report.machine += versions(world.stack.parts.cluster, docker_engine, version)
    return world


@pytest.fixture
def own(system: World) -> Generator[Bench]:
    """A namespace of the measurement's own, once nothing is left to do for those before it."""
    with bench(system) as own:
        own.await_records()
        yield own


@pytest.fixture
def host_first(own: Bench) -> Generator[None]:
    """What production has on other machines leaves the cores to the host meanwhile."""
    with others_last(own.world.stack.supervisor):
        yield
