"""The conformance suite about a server that the session broker speaks for, through gateway and broker."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from support.broker.programs import Program
from support.broker.world import running_broker
from support.conformance.bearer_proxy import bearer_proxy
from support.conformance.suite import Run, Verdicts
from support.gateway.world import World
from toolbox_dtma.link.messages import Change
from toolbox_dtma.wire import HostConfig


@contextmanager
def bridged(gateway: World, program: Program) -> Generator[str]:
    """Where the suite finds it; the suite itself has no token."""
    with ExitStack() as stack:
        broker = stack.enter_context(running_broker(unprivileged=True))
        instance = gateway.bridged(broker.dtma.instance(program), broker.path)
        connection = gateway.connect(instance)
        found = stack.enter_context(bearer_proxy(connection, gateway.tls.client_context()))
        origin = found.removesuffix(f"/servers/{instance}/mcp")
        gateway.dtma.apply(Change(config=HostConfig(gateway_url=gateway.base, allowed_origins=(origin,))))
        yield found


@contextmanager
def judged(url: str, revisions: Sequence[str], folder: Path) -> Generator[dict[str, Verdicts]]:
    """What the suite says, by revision; all of them at the same time."""
    started = {revision: Run(url, revision, folder / revision) for revision in revisions}
    try:
        yield {revision: run.verdicts() for revision, run in started.items()}
    finally:
        for run in started.values():
            run.stop()
