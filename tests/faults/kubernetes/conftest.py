"""One API server, host and record for all tests before a faulty Kubernetes API; operators of their own per module."""

from __future__ import annotations

import secrets
from collections.abc import Generator
from pathlib import Path

import pytest

from localstack.docker import Engine
from localstack.postgres import Postgres
from localstack.processes import Supervisor
from localstack.registry import Registry
from localstack.stack import Parts
from support.system import arena as arena_module
from support.system import pair as pair_module
from support.system.arena import Arena, Watched
from support.system.pair import Pair
from support.system.space import Space


@pytest.fixture(scope="session")
def arena(
    supervisor: Supervisor, state_folder: Path, postgres_server: Postgres, docker_engine: Engine, registry: Registry
) -> Generator[Arena]:
    """API server and host, with a Toolbox that nobody reconciles yet."""
    folder = state_folder / "arena"
    folder.mkdir()
    folder.chmod(0o755)  # the gateway has to reach its folder below

    def parts(where: Path) -> Parts:
        return Parts(arena_module.start_cluster(supervisor, where), postgres_server, docker_engine, registry)

    dsn = postgres_server.create_database(f"arena_{secrets.token_hex(4)}")
    yield from arena_module.build(supervisor, parts, folder, dsn)


@pytest.fixture(scope="module")
def operator_arguments() -> tuple[str, ...]:
    """More arguments of a module's operator, for modules to override."""
    return ()


@pytest.fixture(scope="module")
def shared_operator(arena: Arena, operator_arguments: tuple[str, ...]) -> Generator[Watched]:
    """An operator that leads; it serves the tests of one module."""
    with arena.operator("operator", operator_arguments) as watched:
        watched.replica.await_leading()
        arena_module.await_toolbox(arena)
        yield watched


@pytest.fixture
def operator(shared_operator: Watched) -> Generator[Watched]:
    """The module's operator, without a fault at the beginning and at the end."""
    yield shared_operator
    shared_operator.proxy.clear()


@pytest.fixture
def space(arena: Arena, operator: Watched) -> Generator[Space]:
    """A namespace of one test; see `support.system.arena.namespace`."""
    with arena_module.namespace(arena) as found:
        try:
            yield found
        finally:
            operator.proxy.clear()


@pytest.fixture(scope="module")
def shared_pair(arena: Arena) -> Generator[Pair]:
    """Two operators, started at the same time; they serve the tests of one module."""
    with pair_module.started(arena) as pair:
        pair.roles()
        arena_module.await_toolbox(arena)
        yield pair


@pytest.fixture
def pair(shared_pair: Pair) -> Generator[Pair]:
    """The module's pair, without a fault at the beginning and at the end."""
    yield shared_pair
    shared_pair.clear()


@pytest.fixture
def pair_space(arena: Arena, pair: Pair) -> Generator[Space]:
    """A namespace of one test with two operators."""
    with arena_module.namespace(arena) as found:
        try:
            yield found
        finally:
            pair.clear()
