"""A small API server in memory, over real HTTP: resourceVersions, conflicts, leases, lists in chunks, faults."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from kubernetes.aio.client import Configuration

from toolbox_operator.kube.rest import KubeRest

Fault = Callable[[str, str], "web.Response | float | None"]
"""(method, path) -> an answer to give instead, seconds to stay silent (and then act), or None."""

ACCEPTED = ("application/json", "application/merge-patch+json")


def failure(status: int, reason: str, message: str = "", *, name: str = "x", **headers: str) -> web.Response:
    """A `Status` as the API server sends it."""
    body = {"kind": "Status", "code": status, "reason": reason, "message": message, "details": {"name": name}}
    return web.Response(status=status, text=json.dumps(body), headers=headers, content_type="application/json")


def merge(target: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    result: dict[str, Any] = dict(target) if isinstance(target, dict) else {}  # pyright: ignore[reportUnknownArgumentType] # JSON
    for name, value in patch.items():  # pyright: ignore[reportUnknownVariableType] # JSON
        if value is None:
            result.pop(name, None)  # pyright: ignore[reportUnknownArgumentType] # JSON
        else:
            result[name] = merge(result.get(name), value)  # pyright: ignore[reportUnknownArgumentType] # JSON
    return result


@dataclass
class FakeKube:
    """Objects by path. `requests` is every request, in order; `fault` decides about each."""

    objects: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    version: int = 100
    requests: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    fault: Fault = field(default=lambda method, path: None)
    lost: Callable[[str, str], bool] = field(default=lambda method, path: False)
    """Whether the answer to a request that was carried out gets lost on its way."""
    page: int = 2
    """Most items in one chunk of a list, whatever `limit` says."""
    url: str = ""

    def writes(self) -> list[tuple[str, str]]:
        """The requests that change something."""
        return [entry for entry in self.requests if entry[0] != "GET"]

    async def answer(self, request: web.Request) -> web.Response:
        method, path = request.method, request.path
        self.requests.append((method, path))
        wrong = self.fault(method, path)
        if isinstance(wrong, web.Response):
            return wrong
        if wrong is not None:
            await asyncio.sleep(wrong)
        if method != "GET" and request.content_type not in ACCEPTED:
            return failure(415, "UnsupportedMediaType")
        body: Any = await request.json() if request.can_read_body else {}
        act = {"GET": self._get, "POST": self._post, "PUT": self._put, "PATCH": self._patch, "DELETE": self._delete}
        answer = act[method](path, body, dict(request.query))
        return failure(502, "BadGateway") if self.lost(method, path) else answer

    def _get(self, path: str, _: Any, query: dict[str, str]) -> web.Response:
        if path in self.objects:
            return web.json_response(self.objects[path])
        items = [body for key, body in sorted(self.objects.items()) if f"/{path.rsplit('/', 1)[1]}/" in key]
        if path.rsplit("/", 1)[1].endswith("s"):
            start = int(query.get("continue", "0"))
            metadata: dict[str, str] = {"resourceVersion": str(self.version)}
            if start + self.page < len(items):
                metadata["continue"] = str(start + self.page)
            return web.json_response({"metadata": metadata, "items": items[start : start + self.page]})
        return failure(404, "NotFound", name=path.rsplit("/", 1)[1])

    def _post(self, path: str, body: Any, _: dict[str, str]) -> web.Response:
        full = f"{path}/{body['metadata']['name']}"
        if full in self.objects:
            return failure(409, "AlreadyExists")
        body["metadata"]["uid"] = f"uid-{self.version}"
        return self._store(full, body, status=201)

    def _put(self, path: str, body: Any, _: dict[str, str]) -> web.Response:
        path, status_only = path.removesuffix("/status"), path.endswith("/status")
        known = self.objects.get(path)
        if known is None:
            return failure(404, "NotFound")
        if body["metadata"].get("resourceVersion") != known["metadata"]["resourceVersion"]:
            return failure(409, "Conflict", "the object has been modified")
        return self._store(path, {**known, "status": body["status"]} if status_only else body)

    def _patch(self, path: str, body: Any, _: dict[str, str]) -> web.Response:
        known = self.objects.get(path)
        if known is None:
            return failure(404, "NotFound")
        if body["metadata"].get("resourceVersion") != known["metadata"]["resourceVersion"]:
            return failure(409, "Conflict", "the object has been modified")
        return self._store(path, merge(known, body))

    def _delete(self, path: str, body: Any, _: dict[str, str]) -> web.Response:
        known = self.objects.get(path)
        if known is None:
            return failure(404, "NotFound")
        if body.get("preconditions", {}).get("uid") != known["metadata"]["uid"]:
            return failure(409, "Conflict", "another uid")
        del self.objects[path]
        return web.json_response({"kind": "Status", "status": "Success"})

    def _store(self, path: str, body: dict[str, Any], *, status: int = 200) -> web.Response:
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        self.objects[path] = body
        return web.json_response(body, status=status)


@asynccontextmanager
async def serving(fake: FakeKube) -> AsyncGenerator[FakeKube]:
    """The server, on a loopback port."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield fake
    finally:
        await runner.cleanup()


def rest_for(fake: FakeKube) -> KubeRest:
    """A client of the fake; to be closed."""
    configuration = Configuration(host=fake.url)
    configuration.client_session_kwargs = {"trust_env": False}
    return KubeRest(configuration)
