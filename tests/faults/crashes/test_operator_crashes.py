"""The operator is killed after each single write of a whole life, as a real process among real parts.

Enumerated, not sampled. The life is lived once undisturbed; then again and again, with a SIGKILL after write 1, 2, 3 …
of every step, until a step makes no such write any more. Writes of reconciles that run side by side change places
between two lives, so what kinds of writes were the last one of a process is counted as well, and whatever kind the
numbers missed is made the last one by name.

That a write was applied and its answer lost is the same for the rest of the world, and that it was never sent is the
write before.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from localstack import images as images_module
from localstack import kubernetes as kubernetes_module
from localstack.docker import Engine
from localstack.host import Host, Settings
from localstack.postgres import Postgres
from localstack.processes import Supervisor
from localstack.progress import say
from localstack.registry import Registry
from support.hosts.variants import settings_for
from support.operator_crashes.enumeration import Crashes, Reference, table
from support.operator_crashes.launcher import launcher
from support.operator_crashes.lives import Site, start
from support.operator_crashes.world import crash_world
from support.system.space import SYSTEM, toolbox_documents
from support.system.witness import witness

pytestmark = [pytest.mark.faults, pytest.mark.timeout(2400)]

# Calls are not pulled: when that happens, and what comes of it, is up to the clock and not to a step.
NO_CALLS = ("--timing=calls_active=900000", "--timing=calls_idle=900000")
TIMINGS = ("--timing=backoff_max=3", "--timing=ref_retry=1", "--timing=rotation_grace=1.5", *NO_CALLS)
SEED_VARIABLE = "MAGIC_TOOLBOX_CRASH_SEED"
"""Environment variable that repeats a storm."""


def second_name(engine: Engine, image: str) -> str:
    """The same image under another tag of the registry."""
    other = f"{image}-again"
    engine.docker("pull", "--quiet", image)
    engine.docker("tag", image, other)
    engine.docker("push", "--quiet", other)
    return other


@pytest.fixture(scope="module")
def site(
    supervisor: Supervisor,
    state_folder: Path,
    postgres_server: Postgres,
    docker_engine: Engine,
    registry: Registry,
) -> Generator[Site]:
    """A cluster, a host and a database of their own, and an operator that can be ended at will.

    All the time, no instance may have had two running containers.
    """
    cluster = kubernetes_module.start(supervisor, state_folder / "crash-kubernetes")
    cluster.install_crds()
    cluster.install_operator_account()
    cluster.kubectl("create", "namespace", SYSTEM)
    settings = Settings(**settings_for("support.hosts.patient_dtma"))
    host = Host(supervisor, state_folder / "crash-host", settings)
    host.start()
    image = images_module.ensure(supervisor, docker_engine, registry, "hello")
    names = image, second_name(docker_engine, image)
    dsn = postgres_server.create_database(f"crashes_{secrets.token_hex(4)}")
    with (
        crash_world(supervisor, cluster, host, dsn, SYSTEM) as world,
        launcher(supervisor, cluster, dsn, TIMINGS) as started,
        witness(("docker",), host.host_id) as seen,
    ):
        yield Site(world, started, toolbox_documents(host.manifests), names)
    assert seen.doubles == []


@pytest.fixture(scope="module")
def reference(site: Site) -> Reference:
    """The life of an operator that nobody kills."""
    start(site)
    return Reference.live(site)


def test_an_operator_killed_after_any_write_leaves_the_same_world(site: Site, reference: Reference) -> None:
    begin = time.monotonic()
    crashes = Crashes(site, reference)
    crashes.by_number()
    crashes.by_kind()
    killed = sum(map(len, crashes.last.values()))
    say(f"{killed} operators killed within {time.monotonic() - begin:.0f}s\n{table(crashes)}")
    assert not any(crashes.missed().values()), crashes.missed()


def test_operators_that_are_all_killed_soon_get_there_together(site: Site, reference: Reference) -> None:
    seed = int(os.environ.get(SEED_VARIABLE) or secrets.randbelow(2**32))
    say(f"{SEED_VARIABLE}={seed}")
    begin = time.monotonic()
    lives = Crashes(site, reference).storm(random.Random(seed))
    say(f"{sum(lives.values())} operators within {time.monotonic() - begin:.0f}s: {lives}")
    assert sum(lives.values()) > 2 * len(lives)
