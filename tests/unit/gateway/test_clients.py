"""How connections are counted and shared out."""

from __future__ import annotations

import resource

import pytest

from toolbox_dtma.gateway.clients import Clients, Share
from toolbox_dtma.gateway.descriptors import RESERVED, TooFewDescriptors, plan
from toolbox_dtma.gateway.settings import ClientBounds
from toolbox_dtma.link.messages import Cut


def test_a_source_that_has_its_share_is_refused_until_one_of_its_connections_ends() -> None:
    clients = Clients(Share(connections=10, per_source=2))
    first = clients.enter("203.0.113.1")
    assert first is not None
    assert clients.enter("203.0.113.1") is not None
    assert clients.enter("203.0.113.1") is None
    assert clients.enter("203.0.113.2") is not None
    clients.leave(first)
    assert clients.enter("203.0.113.1") is not None
    assert clients.take_cuts() == {Cut.SOURCE: 1}
    assert clients.take_cuts() == {}, "each is told once"


def test_all_connections_together_have_a_bound() -> None:
    clients = Clients(Share(connections=2, per_source=2))
    assert clients.enter("203.0.113.1") and clients.enter("203.0.113.2")
    assert clients.enter("203.0.113.3") is None
    assert (clients.connections, clients.take_cuts()) == (2, {Cut.TOTAL: 1})


def test_the_addresses_of_one_ipv6_network_are_one_source_and_those_of_ipv4_are_not() -> None:
    clients = Clients(Share(connections=10, per_source=1))
    assert clients.enter("2001:db8::1") is not None
    assert clients.enter("2001:db8::2") is None
    # How a socket on `::` shows IPv4 clients.
    assert clients.enter("::ffff:203.0.113.1") is not None
    assert clients.enter("::ffff:203.0.113.2") is not None
    assert clients.enter("203.0.113.2") is None


def test_nothing_is_remembered_of_who_left() -> None:
    clients = Clients(Share(connections=1, per_source=1))
    for number in range(100):
        source = clients.enter(f"203.0.113.{number}")
        assert source is not None
        clients.leave(source)
    assert clients.connections == 0
    assert not clients.__dict__["_sources"]


BOUNDS = ClientBounds(connections=8000, connections_per_source=1000)


def test_connections_are_shared_out_among_the_workers_and_the_soft_limit_is_raised_for_them() -> None:
    found = plan(BOUNDS, 2, soft=1024, hard=65536)
    assert found.share == Share(connections=4000, per_source=500)
    assert found.descriptors == found.wanted == 8000 + RESERVED


def test_a_soft_limit_that_is_enough_stays() -> None:
    assert plan(BOUNDS, 2, soft=20000, hard=65536).descriptors == 20000
    infinity = resource.RLIM_INFINITY
    assert plan(BOUNDS, 2, soft=infinity, hard=infinity).descriptors == infinity


def test_fewer_descriptors_mean_fewer_connections() -> None:
    found = plan(BOUNDS, 2, soft=1024, hard=4096)
    assert found.share.connections == (4096 - RESERVED) // 2
    assert (found.descriptors, found.wanted) == (4096, 8000 + RESERVED)


def test_far_too_few_are_an_error_that_says_what_to_raise() -> None:
    with pytest.raises(TooFewDescriptors, match="LimitNOFILE="):
        plan(BOUNDS, 2, soft=256, hard=256)
