"""Conditions, and the checker that holds them to their rules."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from support.conditions import ConditionsBroken, check_conditions, problems
from toolbox_operator.api.conditions import ConditionType
from toolbox_operator.domain.conditions import no, reconciling, stamp, unknown, yes

NOW = datetime(2026, 6, 1, 12, 0, 0, 123456, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    first = stamp((), [no(ConditionType.READY, "A", "a")], 1, NOW)
    second = stamp(first, [no(ConditionType.READY, "B", "b")], 2, LATER)
    assert second[0].last_transition_time == NOW.replace(microsecond=0)
    assert (second[0].reason, second[0].observed_generation) == ("B", 2)
    third = stamp(second, [yes(ConditionType.READY, "C", "c")], 2, LATER)
    assert third[0].last_transition_time == LATER.replace(microsecond=0)


def test_a_condition_that_is_not_wanted_any_more_disappears() -> None:
    first = stamp((), [no(ConditionType.READY, "A", "a"), reconciling("A", "a")], 1, NOW)
    assert [c.type for c in first] == ["Ready", "Reconciling"]
    assert [c.type for c in stamp(first, [yes(ConditionType.READY, "A", "a")], 1, NOW)] == ["Ready"]


def test_a_long_message_is_cut() -> None:
    (condition,) = stamp((), [unknown(ConditionType.READY, "A", "x" * 5000)], 1, NOW)
    assert len(condition.message) == 1024


def condition(type_: str, status: str, generation: int = 2, reason: str = "R", message: str = "M") -> dict[str, Any]:
    return {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": "2026-06-01T12:00:00Z",
        "observedGeneration": generation,
    }


@pytest.mark.parametrize(
    ("conditions", "rule"),
    [
        ([condition("Accepted", "True")], "C02"),
        ([condition("Ready", "False"), condition("Ready", "True")], "C01"),
        ([condition("Ready", "False"), condition("Stalled", "False")], "C03"),
        ([condition("Ready", "False"), condition("Stalled", "True"), condition("Reconciling", "True")], "C04"),
        ([condition("Ready", "True"), condition("Reconciling", "True")], "C05"),
        ([condition("Ready", "True"), condition("Accepted", "True", 1)], "C06"),
        ([condition("Ready", "True", 1)], "C06"),
        ([condition("Ready", "True"), condition("Accepted", "False")], "C07"),
        ([condition("Ready", "False", 3)], "C08"),
        ([condition("Ready", "Maybe")], "C09"),
        ([condition("Ready", "False", reason="no words")], "C10"),
        ([condition("Ready", "False", message=" ")], "C11"),
        ([condition("Ready", "False"), condition("Stalled", "True", reason="S")], "C14"),
    ],
)
def test_the_checker_finds_each_broken_rule(conditions: list[dict[str, Any]], rule: str) -> None:
    body = {
        "kind": "Toolbox",
        "metadata": {"namespace": "a", "name": "b", "generation": 2},
        "status": {"conditions": conditions, "observedGeneration": 2},
    }
    assert any(problem.startswith(rule) for problem in problems(body))
    with pytest.raises(ConditionsBroken, match="Toolbox a/b"):
        check_conditions(body)


def test_the_checker_has_nothing_against_good_conditions_and_objects_without_status() -> None:
    check_conditions({"metadata": {"generation": 2}})
    conditions = [condition("Ready", "True"), condition("Accepted", "True")]
    status = {"conditions": conditions, "observedGeneration": 2}
    check_conditions({"metadata": {"generation": 2}, "status": status})
