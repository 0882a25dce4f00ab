"""From an applied MCPServer to Ready, beside the same container started by hand."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

import pytest

from localstack.kubernetes import Manifest
from support import manifests
from support.bench.measure import DURATIONS, Report, Sample, Section, milliseconds
from support.bench.raw_calls import INITIALIZE, Endpoint, RawConnection
from support.bench.system import Bench, Size
from support.kubernetes.watch import is_ready

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

SUBNET, ADDRESS = "10.191.255.240/28", "10.191.255.242"
HARDENED = (
    "--init --cap-drop=ALL --security-opt=no-new-privileges --read-only --tmpfs=/tmp"
    " --memory=512m --memory-swap=512m --cpus=1 --pids-limit=256"
).split()
"""What DTMA gives every container: a limit of the CPU makes a server start slower."""

METHOD = """
Alternately, each time from nothing: an MCPServer is created (one request to the API server; `kubectl` would add its
own start) and a watch waits for `Ready=True`, which needs a whole MCP conversation; and `docker run` with the same
image, command and restrictions, on a network that is there already, until `initialize` is answered (asked every 5
ms). The image is on the host. The bound holds for the medians: apply → Ready ≤ 1.3 × by hand + 500 ms.
"""


@dataclass(frozen=True, slots=True)
class Subject:
    """A server, as an MCPServer and as a container."""

    title: str
    image: str
    port: int
    manifest: Callable[[str, str, str], Manifest]
    """Of namespace, name and image."""
    command: tuple[str, ...] = ()


def _everything(namespace: str, name: str, image: str) -> Manifest:
    return manifests.server(namespace, name, image, port=3001)


SUBJECTS = (
    Subject(
        "a server that starts at once (Python, standard library)",
        "hello",
        8000,
        manifests.quick_server,
        ("python3", "-S", "-c", manifests.QUICK_SERVER),
    ),
    Subject("the protocol's reference server (Node.js)", "everything", 3001, _everything),
    Subject("a server with the Python SDK", "hello", 8000, manifests.server),
)


@pytest.fixture(scope="module")
def section(report: Report) -> Section:
    return report.section("Apply → Ready", METHOD, ("", *DURATIONS))


@pytest.fixture
def network(own: Bench) -> Generator[str]:
    """A network for what is started by hand."""
    engine, name = own.world.stack.parts.engine, f"bench-{secrets.token_hex(3)}"
    own.world.stack.supervisor.leave_to_janitor({"label": f"bench={name}"})
    engine.docker("network", "create", f"--subnet={SUBNET}", f"--label=bench={name}", name)
    yield name
    engine.docker("network", "rm", name)


def _applied(own: Bench, subject: Subject, name: str, image: str) -> float:
    document = subject.manifest(own.namespace, name, image)
    begin = time.monotonic()
    own.create(document)
    seconds = own.servers.first(name, is_ready).at - begin
    own.remove_server(name)
    return seconds


def _by_hand(own: Bench, subject: Subject, network: str, image: str) -> float:
    docker = own.world.stack.parts.engine.docker
    entry = [f"--entrypoint={subject.command[0]}"] if subject.command else []
    where = [f"--network={network}", f"--ip={ADDRESS}", f"--label=bench={network}"]
    begin = time.monotonic()
    container = docker("run", "--detach", *HARDENED, *where, *entry, image, *subject.command[1:]).strip()
    _await_answer(Endpoint(f"http://{ADDRESS}:{subject.port}/mcp", host=f"localhost:{subject.port}"))
    seconds = time.monotonic() - begin
    docker("rm", "--force", container)
    return seconds


def _await_answer(endpoint: Endpoint) -> None:
    pause, deadline = threading.Event(), time.monotonic() + 60
    while True:
        try:
            connection = RawConnection(endpoint, seconds=5)
            try:
                status = connection.stream(INITIALIZE)
            finally:
                connection.close()
            if status == 200:
                return
        except OSError:
            # Not there yet, or there and not ready: what is waited for.
            assert time.monotonic() < deadline, "no answer within 60 s"
        pause.wait(0.005)


@pytest.mark.parametrize("subject", SUBJECTS, ids=("quick", "everything", "sdk"))
def test_applied_to_ready_takes_at_most_1_3_times_docker_run_and_500_ms(
    own: Bench, size: Size, section: Section, network: str, subject: Subject
) -> None:
    image = own.world.stack.image(subject.image)
    own.world.stack.parts.engine.docker("pull", "--quiet", image)
    own.ready(subject.manifest(own.namespace, "warm-up", image))
    own.remove_server("warm-up")
    pairs = [
        (_by_hand(own, subject, network, image), _applied(own, subject, f"server-{turn}", image))
        for turn in range(size.applies)
    ]
    by_hand, applied = (Sample.of(side) for side in zip(*pairs, strict=True))
    bound = 1.3 * by_hand.median + 0.5
    section.add(f"`docker run` → first answer: {subject.title}", *by_hand.cells())
    met = applied.median <= bound
    section.add(f"apply → Ready (p50 ≤ {milliseconds(bound)})", *applied.cells(), met=met)
    assert met, section.missed[-1]
