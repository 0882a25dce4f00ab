"""Failures are counted per source, in a table that cannot grow without end."""

from __future__ import annotations

from toolbox_dtma.gateway.throttle import FailureThrottle


class Clock:
    """Moves when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_refills_with_time() -> None:
    clock = Clock()
    throttle = FailureThrottle(monotonic=clock, burst=2, per_second=0.5)
    assert [throttle.failed("192.0.2.1") for _ in range(3)] == [None, None, 2.0]
    clock.now = 2.0
    assert throttle.failed("192.0.2.1") is None
    assert throttle.failed("192.0.2.1") is not None


def test_sources_do_not_share_a_bucket_but_an_ipv6_network_does() -> None:
    throttle = FailureThrottle(monotonic=Clock(), burst=1)
    assert throttle.failed("192.0.2.1") is None
    assert throttle.failed("192.0.2.2") is None
    assert throttle.failed("2001:db8::1") is None
    assert throttle.failed("2001:db8::2") is not None
    assert throttle.failed("2001:db8:0:1::1") is None


def test_the_oldest_source_is_forgotten_when_the_table_is_full() -> None:
    throttle = FailureThrottle(monotonic=Clock(), burst=1, max_sources=2)
    for address in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
        assert throttle.failed(address) is None
    assert throttle.failed("192.0.2.3") is not None
    assert throttle.failed("192.0.2.1") is None


def test_an_unreadable_address_is_a_source_of_its_own() -> None:
    throttle = FailureThrottle(monotonic=Clock(), burst=1)
    assert throttle.failed("") is None
    assert throttle.failed("") is not None


def test_ipv4_clients_of_a_socket_on_all_addresses_are_sources_of_their_own() -> None:
    throttle = FailureThrottle(monotonic=lambda: 0.0, burst=1)
    assert throttle.failed("::ffff:203.0.113.1") is None
    assert throttle.failed("::ffff:203.0.113.2") is None
    assert throttle.failed("::ffff:203.0.113.2") is not None
