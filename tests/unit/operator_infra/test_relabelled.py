"""When labels of a namespace change, those are looked at again whose standing they decide, and no others."""

from __future__ import annotations

from typing import Any

import pytest

from support.reconcilers.fakes import Asked, body_of
from toolbox_operator.api.meta import Key, Kind
from toolbox_operator.kube.cache import ObjectCache
from toolbox_operator.reconcile.index import Index
from toolbox_operator.reconcile.relabelled import Relabelled

BY_LABELS: Any = {"namespaces": {"from": "Selector", "selector": {}}}
TO_ALL: Any = {"namespaces": {"from": "All"}}


class World:
    """A Toolbox and a server in `home`, a server in `guest`, connections in both."""

    def __init__(self, *, toolbox: Any, server: Any) -> None:
        self.asked = Asked()
        self.cache, index = ObjectCache(), Index()
        self.cache.listen(index.changed)
        self.relabelled = Relabelled(self.asked, self.cache, index)
        self.put(Kind.TOOLBOX, "home", "tbx", {"allowedServers": toolbox})
        for namespace in ("home", "guest"):
            to_toolbox = {"name": "tbx", "namespace": "home"}
            self.put(Kind.MCP_SERVER, namespace, "s", {"toolboxRef": to_toolbox, "sharing": server})
            self.put(Kind.CONNECTION, namespace, "own", {"serverRef": {"name": "s"}})
        self.put(Kind.CONNECTION, "guest", "far", {"serverRef": {"name": "s", "namespace": "home"}})

    def put(self, kind: Kind, namespace: str, name: str, spec: Any) -> None:
        uid = f"{kind}-{namespace}-{name}"
        self.cache.apply(kind, None, body_of(kind, name, 1, namespace=namespace, uid=uid, spec=spec))

    def told(self, namespace: str) -> set[tuple[Kind, Key]]:
        self.relabelled.changed(namespace)
        return self.asked.taken()


OWN_HOME = (Kind.CONNECTION, Key("home", "own"))
OWN_GUEST = (Kind.CONNECTION, Key("guest", "own"))
FAR = (Kind.CONNECTION, Key("guest", "far"))
SERVER_HOME = (Kind.MCP_SERVER, Key("home", "s"))
SERVER_GUEST = (Kind.MCP_SERVER, Key("guest", "s"))
BOX = (Kind.TOOLBOX, Key("home", "tbx"))


def test_connections_of_the_namespace_to_servers_that_share_by_labels() -> None:
    world = World(toolbox=TO_ALL, server=BY_LABELS)
    assert world.told("guest") == {OWN_GUEST, FAR}
    assert world.told("home") == {OWN_HOME}


def test_servers_of_the_namespace_on_toolboxes_that_take_by_labels_with_all_their_connections() -> None:
    world = World(toolbox=BY_LABELS, server=TO_ALL)
    assert world.told("guest") == {BOX, SERVER_GUEST, OWN_GUEST}
    # A connection elsewhere hangs on the namespace of its server too.
    assert world.told("home") == {BOX, SERVER_HOME, OWN_HOME, FAR}


@pytest.mark.parametrize("choice", [TO_ALL, {"namespaces": {"from": "Same"}}, {}, None, {"namespaces": "Selector"}])
def test_nobody_where_labels_decide_nothing(choice: Any) -> None:
    world = World(toolbox=choice, server=choice)
    assert world.told("guest") == set()


def test_nobody_in_a_namespace_without_objects_or_whose_objects_are_gone() -> None:
    world = World(toolbox=BY_LABELS, server=BY_LABELS)
    assert world.told("elsewhere") == set()
    for kind, name in ((Kind.CONNECTION, "own"), (Kind.CONNECTION, "far"), (Kind.MCP_SERVER, "s")):
        body = world.cache.get(kind, Key("guest", name))
        assert body is not None
        world.cache.apply(kind, "DELETED", body)
    assert world.told("guest") == set()


def test_a_server_whose_toolbox_is_not_there_waits_for_that() -> None:
    world = World(toolbox=BY_LABELS, server=TO_ALL)
    body = world.cache.get(*BOX)
    assert body is not None
    world.cache.apply(Kind.TOOLBOX, "DELETED", body)
    assert world.told("guest") == set()
