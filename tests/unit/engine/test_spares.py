"""Networks that an instance has left."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest
from structlog.testing import capture_logs

from toolbox_dtma.engine.api import EngineUnavailable
from toolbox_dtma.engine.failures import DockerRefused
from toolbox_dtma.engine.networks import InstanceNetwork
from toolbox_dtma.engine.spares import Spares
from toolbox_dtma.wire import Egress

OLD, OTHER = (
    InstanceNetwork(name, name, IPv4Network("10.200.0.0/28"), Egress.INTERNET) for name in ("mtb-old", "mtb-other")
)


class Engine:
    """Networks of an engine that lets some of them not go."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.removed: list[str] = []
        self.away = False

    async def discard(self, network: InstanceNetwork) -> None:
        if self.away:
            raise EngineUnavailable("no answer")
        if network.id in self.held:
            raise DockerRefused(403, "network has active endpoints")
        self.removed.append(network.id)


@pytest.fixture
def engine() -> Engine:
    return Engine()


async def test_they_are_removed_at_once_and_then_nothing_is_due(engine: Engine) -> None:
    spares = Spares(engine, 30.0, lambda: 100.0)
    assert spares.due((OLD,)) and not spares.due(())
    assert spares.pause((OLD,)) == 30.0, "left for later, it is no reason to look again at once"
    await spares.remove((OLD, OTHER))
    assert engine.removed == ["mtb-old", "mtb-other"]
    assert spares.pause(()) is None


async def test_one_that_is_in_use_is_tried_again_later_and_told_of_once(engine: Engine) -> None:
    now = 100.0
    spares = Spares(engine, 30.0, lambda: now)
    engine.held = {"mtb-old"}
    with capture_logs() as logs:
        await spares.remove((OLD, OTHER))
        assert engine.removed == ["mtb-other"]
        assert not spares.due((OLD,)) and spares.pause((OLD,)) == 30.0
        now = 130.0
        assert spares.due((OLD,))
        await spares.remove((OLD,))
    assert [(line["network"], line["error"]) for line in logs] == [("mtb-old", "network has active endpoints")]
    now, engine.held = 160.0, set()
    await spares.remove((OLD,))
    assert engine.removed == ["mtb-other", "mtb-old"]


async def test_an_engine_that_is_away_is_no_refusal(engine: Engine) -> None:
    spares = Spares(engine, 30.0, lambda: 100.0)
    engine.away = True
    with pytest.raises(EngineUnavailable):
        await spares.remove((OLD,))
    assert spares.due((OLD,))
