"""What all sessions may hold together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from toolbox_dtma.broker.budget import Budget


@given(st.lists(st.integers(0, 100), min_size=1, max_size=8), st.integers(1, 300))
def test_too_much_is_always_somebodys_and_never_of_one_with_less_than_its_part(holds: list[int], most: int) -> None:
    budget = Budget(most)
    budget.sessions = len(holds)
    for each in holds:
        budget.resize(0, each)
    excessive = [each for each in holds if budget.is_excessive(each)]
    assert bool(excessive) == (sum(holds) > most)
    assert all(each > most / len(holds) for each in excessive)


def test_what_is_given_back_is_free_again() -> None:
    budget = Budget(10)
    budget.resize(0, 8)
    assert budget.has_room(2) and not budget.has_room(3)
    budget.resize(8, 3)
    assert budget.has_room(7)
