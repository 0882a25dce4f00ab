"""The fake API server and a client of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from support.reconcilers.fake_kube import FakeKube, rest_for, serving
from toolbox_operator.kube.rest import KubeRest


@pytest.fixture
async def fake() -> AsyncGenerator[FakeKube]:
    async with serving(FakeKube()) as fake:
        yield fake


@pytest.fixture
async def rest(fake: FakeKube) -> AsyncGenerator[KubeRest]:
    async with rest_for(fake) as rest:
        yield rest
