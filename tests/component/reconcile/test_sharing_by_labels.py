"""Sharing decided by the labels of namespaces: opened and closed with them, on fakes."""

from __future__ import annotations

from typing import Any

import pytest

from support.reconcilers.world import NS, World, namespace_body, world
from toolbox_operator.api.meta import Key, Kind

pytestmark = pytest.mark.component

TEAM = "team-a"
CHOSEN: Any = {"namespaces": {"from": "Selector", "selector": {"matchLabels": {"tools": "yes"}}}}
OTHERS: Any = {
    "namespaces": {
        "from": "Selector",
        "selector": {"matchExpressions": [{"key": "tools", "operator": "NotIn", "values": ["no"]}]},
    }
}
TO_ALL: Any = {"namespaces": {"from": "All"}}
CONNECTION, SERVER, TOOLBOX = Kind.CONNECTION, Kind.MCP_SERVER, Kind.TOOLBOX


def accepts(w: World, connection: Key) -> bool:
    """Whether the host accepts a token of the connection."""
    grant = w.machine().grants.get(w.body(CONNECTION, connection)["metadata"]["uid"])
    return grant is not None and bool(grant.credentials)


def phase(w: World, connection: Key) -> str:
    return str(w.status(CONNECTION, connection)["phase"])


def message(w: World, kind: Kind, key: Key) -> str:
    (found,) = (each for each in w.status(kind, key)["conditions"] if each["type"] == "Accepted")
    return str(found["message"])


async def test_a_connection_is_opened_and_closed_with_the_label_of_its_namespace() -> None:
    async with world() as w:
        w.toolbox()
        w.server(sharing=CHOSEN)
        w.namespace(TEAM)
        key = w.connection(namespace=TEAM)
        await w.settle()
        assert (phase(w, key), accepts(w, key)) == ("Denied", False)
        assert f"label the namespace {TEAM} so that sharing.namespaces.selector chooses it" in message(
            w, CONNECTION, key
        )
        w.namespace(TEAM, tools="yes")
        await w.settle()
        assert w.ready(CONNECTION, key) == ("True", "Connected")
        assert accepts(w, key)
        w.namespace(TEAM, tools="no")
        await w.settle()
        assert (phase(w, key), accepts(w, key)) == ("Denied", False)
        assert w.condition(CONNECTION, key, "Accepted") == ("False", "NotPermitted")
        assert w.condition(CONNECTION, key, "Programmed") == ("True", "Programmed")
        w.namespace(TEAM, tools="yes", other="label")
        await w.settle()
        assert w.ready(CONNECTION, key) == ("True", "Connected")


async def test_expressions_decide_too_and_the_own_namespace_is_one_like_any_other() -> None:
    async with world() as w:
        w.toolbox()
        w.server(sharing=OTHERS)
        key = w.connection()
        await w.settle()
        assert w.ready(CONNECTION, key) == ("True", "Connected")
        w.namespace(NS, tools="no")
        await w.settle()
        assert (phase(w, key), accepts(w, key)) == ("Denied", False)


async def test_a_selector_that_changes_closes_what_it_no_longer_chooses() -> None:
    async with world() as w:
        w.toolbox()
        server = w.server(sharing=OTHERS)
        w.namespace(TEAM)
        key = w.connection(namespace=TEAM)
        await w.settle()
        assert accepts(w, key)
        selector = {"matchExpressions": None, "matchLabels": {"tools": "yes"}}
        w.patch(SERVER, server, sharing={"namespaces": {"selector": selector}})
        await w.settle()
        assert (phase(w, key), accepts(w, key)) == ("Denied", False)


async def test_a_server_whose_namespace_loses_its_label_runs_on_and_its_connections_are_closed() -> None:
    async with world() as w:
        toolbox = w.toolbox(allowedServers=CHOSEN)
        w.namespace(TEAM)
        server = w.server(namespace=TEAM, sharing=TO_ALL)
        own = w.connection(namespace=TEAM, serverRef={"name": "time"})
        far = w.connection(namespace="team-b", serverRef={"name": "time", "namespace": TEAM})
        await w.settle()
        assert w.condition(SERVER, server, "Accepted") == ("False", "NotPermitted")
        assert f"label the namespace {TEAM} so that allowedServers.namespaces.selector" in message(w, SERVER, server)
        assert w.machine().desired == {}
        assert w.status(TOOLBOX, toolbox)["servers"] == 0
        w.namespace(TEAM, tools="yes")
        await w.settle()
        assert w.ready(SERVER, server) == ("True", "Ready")
        assert w.status(TOOLBOX, toolbox)["servers"] == 1
        assert w.ready(CONNECTION, own) == w.ready(CONNECTION, far) == ("True", "Connected")
        w.namespace(TEAM)
        await w.settle()
        assert w.condition(SERVER, server, "Accepted") == ("False", "NotPermitted")
        assert "What already runs is left running" in message(w, SERVER, server)
        assert len(w.machine().desired) == 1
        for key in (own, far):
            assert (phase(w, key), accepts(w, key)) == ("Denied", False)
        w.namespace(TEAM, tools="yes")
        await w.settle()
        assert w.ready(SERVER, server) == ("True", "Ready")
        assert accepts(w, own) and accepts(w, far)


async def test_labels_that_are_not_known_after_a_restart_neither_close_nor_open_anything() -> None:
    async with world() as w:
        w.toolbox(allowedServers=CHOSEN)
        w.namespace(NS, tools="yes")
        w.namespace(TEAM, tools="yes")
        server = w.server(sharing=CHOSEN)
        key = w.connection(namespace=TEAM)
        await w.settle()
        assert w.ready(CONNECTION, key) == ("True", "Connected")
        known, w.namespaces = w.namespaces, None
        await w.restart()
        new = w.connection("new", namespace=TEAM)
        await w.settle()
        assert accepts(w, key)
        assert len(w.machine().desired) == 1
        assert w.condition(CONNECTION, key, "Accepted") == ("Unknown", "NamespaceUnknown")
        assert w.condition(CONNECTION, key, "Programmed") == ("True", "Programmed")
        assert w.condition(SERVER, server, "Accepted") == ("Unknown", "NamespaceUnknown")
        assert phase(w, new) == "Pending"
        assert not accepts(w, new)
        assert known is not None
        w.labels.begun([namespace_body(name, labels) for name, labels in known.items()])
        await w.settle()
        for each in (key, new):
            assert w.ready(CONNECTION, each) == ("True", "Connected")
        assert w.ready(SERVER, server) == ("True", "Ready")


async def test_a_connection_that_is_switched_off_is_closed_also_while_labels_are_not_known() -> None:
    async with world() as w:
        w.toolbox()
        w.namespace(TEAM, tools="yes")
        w.server(sharing=CHOSEN)
        key = w.connection(namespace=TEAM)
        await w.settle()
        w.namespaces = None
        await w.restart()
        w.patch(CONNECTION, key, active=False)
        await w.settle()
        assert (phase(w, key), accepts(w, key)) == ("Disconnected", False)
        assert w.condition(CONNECTION, key, "Accepted") == ("Unknown", "NamespaceUnknown")
        assert w.condition(CONNECTION, key, "Programmed") == ("True", "Programmed")


async def test_a_label_changed_while_no_operator_ran_counts_at_the_next_start() -> None:
    async with world() as w:
        w.toolbox()
        w.namespace(TEAM, tools="yes")
        w.server(sharing=CHOSEN)
        key = w.connection(namespace=TEAM)
        await w.settle()
        assert accepts(w, key)
        assert w.namespaces is not None
        w.namespaces[TEAM] = {}
        await w.restart()
        await w.settle()
        assert (phase(w, key), accepts(w, key)) == ("Denied", False)


async def test_labels_that_decide_nothing_cost_nothing() -> None:
    async with world() as w:
        w.toolbox(allowedServers=CHOSEN)
        w.namespace(NS, tools="yes")
        w.namespace(TEAM, tools="yes")
        w.server(sharing=CHOSEN)
        w.connection(namespace=TEAM)
        w.connection("own")
        await w.settle()
        writes, passes = list(w.kube.writes), w.passes
        w.namespace("elsewhere", tools="yes")
        await w.settle()
        assert (w.kube.writes, w.passes) == (writes, passes)
        w.namespace(TEAM, tools="yes", owner="somebody")
        await w.settle()
        assert w.kube.writes == writes


async def test_a_selector_without_its_choice_is_stalled_and_takes_nobody_else() -> None:
    async with world() as w:
        w.toolbox()
        server = w.server(sharing={"namespaces": {"selector": {}}})
        w.namespace(TEAM)
        key = w.connection(namespace=TEAM)
        await w.settle()
        assert w.condition(SERVER, server, "Stalled") == ("True", "SpecInvalid")
        assert phase(w, key) == "Denied"
