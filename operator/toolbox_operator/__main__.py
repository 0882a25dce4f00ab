"""`python -m toolbox_operator run`: one process of the operator, until SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any

import structlog

from toolbox_operator.health import Health, Servers
from toolbox_operator.kube.api import KubeError
from toolbox_operator.kube.elector import Elector, LeadershipLost
from toolbox_operator.kube.login import Login, LoginFailed
from toolbox_operator.kube.rest import KubeRest
from toolbox_operator.logs import configure_logging
from toolbox_operator.metrics import Metrics
from toolbox_operator.runtime import Fenced, Settings, SystemClock
from toolbox_operator.settings import parse
from toolbox_operator.wiring import Build, Leader, WatchStale, end, open_record, reconcilers

log = structlog.get_logger("toolbox_operator")

STOPPED, FAILED, MISCONFIGURED = 0, 1, 2
"""Exit codes: asked to stop; must be started anew; will not work by starting anew."""
API_RETRY = 2.0
UNANSWERED = "the API server has not answered yet"


async def run(settings: Settings, stop: asyncio.Event, *, build: Build = reconcilers) -> int:
    """Wait for leadership, lead, and leave in order. Returns the exit code."""
    login, metrics, health, clock = Login(settings.kubeconfig), Metrics(), Health(), SystemClock()
    try:
        configuration = await login.configuration()
    except LoginFailed as error:
        log.error("no access to the cluster", error=str(error))
        return MISCONFIGURED
    servers = Servers(
        health,
        metrics,
        host=settings.listen,
        health_port=settings.health_port,
        metrics_port=settings.metrics_port,
    )
    # Before the servers start: a probe that comes first must find something to ask.
    health.readiness("api", lambda: UNANSWERED)
    async with AsyncExitStack() as stack:
        rest = await stack.enter_async_context(KubeRest(configuration, observer=metrics.api_request))
        try:
            await stack.enter_async_context(servers)
        except OSError as error:
            log.error("cannot listen", error=str(error), cure="--health-port and --metrics-port choose others")
            return MISCONFIGURED
        log.info("serving", health_port=servers.health_port, metrics_port=servers.metrics_port)
        owner = await unless(stop, cluster_uid(rest))
        if owner is None:
            return STOPPED
        elector = Elector(
            rest,
            namespace=settings.namespace,
            identity=settings.identity,
            owner=owner,
            clock=clock,
            timings=settings.timings,
        )
        metrics.watch_leader(lambda: elector.leading)
        health.readiness("api", lambda: None if elector.contacted else UNANSWERED)
        log.info("candidate", identity=settings.identity, lease=str(elector.key))
        if await unless(stop, elector.acquire()) is None and not elector.leading:
            await elector.release()
            return STOPPED
        holding = asyncio.create_task(elector.hold(), name="lease")
        try:
            leader = Leader(
                settings=settings,
                login=login,
                rest=rest,
                elector=elector,
                record=open_record(settings, elector, clock, metrics),
                metrics=metrics,
                health=health,
                build=build,
                clock=clock,
            )
            return await lead(leader, holding, stop)
        finally:
            # Only now, with every worker ended, may another process lead.
            await end([holding])
            await elector.release()


async def lead(leader: Leader, holding: asyncio.Task[None], stop: asyncio.Event) -> int:
    """Run until asked to stop, or until leadership or sight is lost."""
    leading = asyncio.create_task(leader.run(stop), name="leader")
    try:
        await asyncio.wait({leading, holding}, return_when=asyncio.FIRST_COMPLETED)
        if holding.done():
            holding.result()
        await leading
    except (LeadershipLost, WatchStale, Fenced) as error:
        log.error("ending this process", error=str(error))
        return FAILED
    except Exception:  # The outermost boundary: whatever it is, a new process is the answer.
        log.exception("ending this process")
        return FAILED
    finally:
        await end([leading])
    log.info("stopped")
    return STOPPED


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, str | None]) -> str | None:
    """The result of `work`; None when `stop` was set first, which cancels it."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        await end([working, stopping])


async def cluster_uid(rest: KubeRest) -> str:
    """The UID of `kube-system`, which names the cluster. Waits for an API server that answers."""
    while True:
        try:
            body = await rest.request("GET", "/api/v1/namespaces/kube-system", deadline=5.0)
            return str(body["metadata"]["uid"])
        except KubeError as error:
            log.warning("waiting for the API server", error=str(error))
        await asyncio.sleep(API_RETRY)


async def supervise(settings: Settings) -> int:
    """`run`, stopped by SIGTERM and SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return await run(settings, stop)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `toolbox-operator`."""
    settings = parse(sys.argv[1:] if arguments is None else arguments)
    configure_logging(as_json=settings.log_json, level=settings.log_level)
    return asyncio.run(supervise(settings))


if __name__ == "__main__":
    sys.exit(main())
