"""The published schema, and the API held against it by generated requests."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi import checks

from support.dtma.host import OWNER, DtmaHost
from toolbox_dtma.settings import Timings

pytestmark = pytest.mark.component

# Streams without an end are tried by hand in test_events.py and test_instances.py.
STREAMS = r"/(events|logs)$"


class HostThread:
    """A DTMA in a loop of its own: generated requests come from ordinary functions."""

    def __init__(self, folder: Path):
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        quick = Timings(ack_deadline=0.05, removal_wait=1, first_sight=0.1, graceful_stop=1)
        self.host = DtmaHost(folder, timings=quick)
        self.call(self.host.start())
        self.call(self.host.claimed())

    def call(self, work: Any) -> Any:
        """Run in the loop, from here."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def close(self) -> None:
        """Stop DTMA and the loop."""
        self.call(self.host.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()

    @property
    def headers(self) -> dict[str, str]:
        """What every call carries."""
        token = (self.host.state_dir / "token").read_text()
        return {"Authorization": f"Bearer {token}", "Toolbox-Owner": OWNER, "Toolbox-Epoch": "1"}


@pytest.fixture
def running(open_folder: Path) -> Generator[HostThread]:
    running = HostThread(open_folder)
    yield running
    running.close()


@pytest.fixture
def document(running: HostThread) -> dict[str, Any]:
    trust = ssl.create_default_context(cafile=running.host.state_dir / "ca.crt")
    url = f"https://127.0.0.1:{running.host.port}/v2/openapi.json"
    return httpx.get(url, headers=running.headers, verify=trust, timeout=10).json()


def test_every_route_of_the_design_is_published_with_problems_and_the_token(document: dict[str, Any]) -> None:
    routes = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    assert routes == {
        "PUT /v2/owners/{owner}",
        "PUT /v2/host/config",
        "GET /v2/host",
        "GET /v2/instances",
        "PUT /v2/instances/{id}",
        "GET /v2/instances/{id}",
        "DELETE /v2/instances/{id}",
        "GET /v2/instances/{id}/logs",
        "GET /v2/grants",
        "PUT /v2/grants/{uid}",
        "DELETE /v2/grants/{uid}",
        "GET /v2/events",
        "GET /v2/calls",
        "GET /healthz",
        "GET /readyz",
        "GET /metrics",
    }
    assert document["security"] == [{"bearer": []}]
    for methods in document["paths"].values():
        for operation in methods.values():
            assert set(operation["responses"]["default"]["content"]) == {"application/problem+json"}
            assert "422" not in operation["responses"]


def test_generated_requests_get_only_what_the_schema_promises(running: HostThread, document: dict[str, Any]) -> None:
    # Its types are partly unknown to a strict checker.
    loader: Any = schemathesis.openapi
    rules: Any = checks
    schema: Any = loader.from_dict(document).exclude(path_regex=STREAMS)
    trust = str(running.host.state_dir / "ca.crt")
    tried: set[str] = set()
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=12, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much], derandomize=True,
        )  # fmt: skip
        def conforms(case: Any) -> None:
            case.headers = {**(case.headers or {}), **running.headers}
            response = case.call(base_url=f"https://127.0.0.1:{running.host.port}", verify=trust, timeout=10)
            assert response.status_code != 500, response.text
            case.validate_response(
                response,
                checks=[
                    rules.status_code_conformance,
                    rules.content_type_conformance,
                    rules.response_schema_conformance,
                ],
            )

        given(case=operation.as_strategy())(conforms)()
        tried.add(f"{operation.method} {operation.path}")
    assert len(tried) == 14
