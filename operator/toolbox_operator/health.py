"""Health of the process, and the two small HTTP servers: /healthz and /readyz, and /metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self

from aiohttp import web

from toolbox_operator.metrics import Metrics

Check = Callable[[], str | None]
"""None when well, otherwise what is wrong, in a sentence."""

SHUTDOWN = 1.0
"""Seconds that open connections of probes get when the servers stop."""


class Health:
    """Named checks. Liveness failing means: restart this process. Readiness failing means: not yet."""

    def __init__(self) -> None:
        self._live: dict[str, Check] = {}
        self._ready: dict[str, Check] = {}

    def liveness(self, name: str, check: Check) -> None:
        """Add a check that restarts the process when it fails."""
        self._live[name] = check

    def readiness(self, name: str, check: Check) -> None:
        """Add a check that must pass before the process counts as started."""
        self._ready[name] = check

    def unwell(self) -> dict[str, str]:
        """Failing liveness checks and what is wrong."""
        return _failing(self._live)

    def unready(self) -> dict[str, str]:
        """Failing checks of both sorts."""
        return _failing({**self._live, **self._ready})


def _failing(checks: Mapping[str, Check]) -> dict[str, str]:
    return {name: problem for name, check in checks.items() if (problem := check()) is not None}


class Servers:
    """Serves health on one port and metrics on another; a port 0 is chosen by the system, see the properties."""

    def __init__(self, health: Health, metrics: Metrics, *, host: str, health_port: int, metrics_port: int) -> None:
        self._health = health
        self._metrics = metrics
        self._host = host
        self._ports = (health_port, metrics_port)
        self._runners: list[web.AppRunner] = []
        self.health_port = health_port
        self.metrics_port = metrics_port

    async def __aenter__(self) -> Self:
        health: dict[str, Callable[[web.Request], Awaitable[web.Response]]] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
        }
        try:
            self.health_port = await self._serve(self._ports[0], health)
            self.metrics_port = await self._serve(self._ports[1], {"/metrics": self._exposition})
        except OSError:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        for runner in self._runners:
            await runner.cleanup()

    async def _serve(self, port: int, routes: Mapping[str, Callable[[web.Request], Awaitable[web.Response]]]) -> int:
        app = web.Application()
        for path, handler in routes.items():
            app.router.add_get(path, handler)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN)
        await runner.setup()
        self._runners.append(runner)
        site = web.TCPSite(runner, self._host, port)
        await site.start()
        bound: int = runner.addresses[0][1]
        return bound

    async def _healthz(self, _: web.Request) -> web.Response:
        return _answer(self._health.unwell())

    async def _readyz(self, _: web.Request) -> web.Response:
        return _answer(self._health.unready())

    async def _exposition(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4"})


def _answer(problems: Mapping[str, str]) -> web.Response:
    if not problems:
        return web.Response(text="ok\n")
    lines = [f"{name}: {problem}" for name, problem in problems.items()]
    return web.Response(status=503, text="\n".join(lines) + "\n")
