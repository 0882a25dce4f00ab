"""Address pools and subnets."""

from __future__ import annotations

from ipaddress import IPv4Network
from itertools import islice

from toolbox_dtma.engine.networks import AVOIDED, RANGE, choose_pool, free_subnets, parse_routes, pools

HOST = "7c5e4d6a-0f3b-4a53-9a43-0c1f9a5f8f11"
TABLE = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""


def test_a_host_begins_with_the_same_pool_every_time_and_hosts_differ() -> None:
    assert choose_pool(HOST, ()) == choose_pool(HOST, ())
    assert len({choose_pool(f"host-{number}", ()) for number in range(20)}) > 10


def test_pools_stay_in_the_range_and_out_of_the_avoided_ones() -> None:
    every = list(pools(HOST))
    assert len(every) == len(set(every)) > 200
    assert all(pool.subnet_of(RANGE) and not any(pool.overlaps(other) for other in AVOIDED) for pool in every)


def test_a_pool_that_collides_with_a_route_is_skipped() -> None:
    first = choose_pool(HOST, ())
    assert first is not None
    taken = next(first.subnets(new_prefix=30))
    second = choose_pool(HOST, (taken,))
    assert second is not None and not second.overlaps(taken)


def test_without_room_there_is_no_pool() -> None:
    assert choose_pool(HOST, (IPv4Network("10.0.0.0/8"),)) is None


def test_subnets_are_the_lowest_free_ones() -> None:
    pool = IPv4Network("10.200.0.0/18")
    taken = (IPv4Network("10.200.0.0/28"), IPv4Network("10.200.0.32/27"), IPv4Network("172.17.0.0/16"))
    found = list(islice(free_subnets(pool, taken), 2))
    assert found == [(1, IPv4Network("10.200.0.16/28")), (4, IPv4Network("10.200.0.64/28"))]


def test_a_full_pool_has_no_free_subnet() -> None:
    pool = IPv4Network("10.200.0.0/18")
    assert next(free_subnets(pool, (pool,)), None) is None


def test_routes_are_read_without_the_default_one() -> None:
    assert parse_routes(TABLE) == (IPv4Network("172.17.0.0/16"), IPv4Network("192.0.2.0/24"))
