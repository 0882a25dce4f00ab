from __future__ import annotations

import pytest

from support.side_by_side import LONG, SHARED, TESTS, group_of, rank_of


@pytest.mark.parametrize("place", [*LONG, *SHARED])
def test_every_place_that_the_order_names_exists(place: str) -> None:
    assert (TESTS / place).exists()


@pytest.mark.parametrize(
    ("place", "group"),
    [
        ("faults/record/test_away.py", "processes"),
        ("faults/lifecycle/test_edits.py", "objects"),
        ("faults/kubernetes/test_leases.py", "faults/kubernetes"),
        ("faults/crashes/test_operator_crashes.py", "faults/crashes/test_operator_crashes.py"),
        ("faults/crashes/test_dtma_restarts.py", "faults/crashes"),
        ("component/gateway/test_relay.py", "component/gateway"),
        ("unit/store/test_merge.py", "unit/store/test_merge.py"),
    ],
)
def test_tests_that_share_servers_stay_together(place: str, group: str) -> None:
    assert group_of(f"tests/{place}::test_it[a::b]") == group


def test_what_takes_longest_comes_first() -> None:
    places = ["unit/store/test_merge.py", "faults/kubernetes/test_leases.py", "faults/crashes/test_operator_crashes.py"]
    assert sorted(places, key=lambda place: rank_of(f"tests/{place}::test_it")) == places[::-1]
