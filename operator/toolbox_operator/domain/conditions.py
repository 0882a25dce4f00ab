"""Building `status.conditions`: what is wanted, stamped with generation and times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from toolbox_operator.api.conditions import Condition, ConditionType, Reason

Truth = Literal["True", "False", "Unknown"]

_ORDER = {type_: place for place, type_ in enumerate(ConditionType)}
_LONGEST_MESSAGE = 1024


@dataclass(frozen=True, slots=True)
class Wanted:
    """A condition without its bookkeeping."""

    type: ConditionType
    status: Truth
    reason: str
    message: str


def yes(type_: ConditionType, reason: Reason | str, message: str) -> Wanted:
    """A true condition."""
    return Wanted(type_, "True", str(reason), message)


def no(type_: ConditionType, reason: Reason | str, message: str) -> Wanted:
    """A false condition."""
    return Wanted(type_, "False", str(reason), message)


def unknown(type_: ConditionType, reason: Reason | str, message: str) -> Wanted:
    """A condition about which nothing can be said."""
    return Wanted(type_, "Unknown", str(reason), message)


def reconciling(reason: Reason | str, message: str) -> Wanted:
    """Still on the way, or waiting for something that will be tried again."""
    return Wanted(ConditionType.RECONCILING, "True", str(reason), message)


def stalled(reason: Reason | str, message: str) -> Wanted:
    """Only an edit of this object helps."""
    return Wanted(ConditionType.STALLED, "True", str(reason), message)


def stamp(
    previous: Sequence[Condition], wanted: Iterable[Wanted], generation: int, now: datetime
) -> tuple[Condition, ...]:
    """The conditions to write, in a fixed order. A condition keeps its time while its status stays the same.

    A type that is not wanted disappears. Of two wanted with one type the later one counts.
    """
    before = {condition.type: condition for condition in previous}
    chosen = {want.type: want for want in wanted}
    moment = now.replace(microsecond=0)
    stamped: list[Condition] = []
    for type_ in sorted(chosen, key=_ORDER.__getitem__):
        want = chosen[type_]
        old = before.get(type_)
        since = old.last_transition_time if old is not None and old.status == want.status else moment
        stamped.append(
            Condition(
                type=type_,
                status=want.status,
                reason=want.reason,
                message=shorten(want.message),
                last_transition_time=since,
                observed_generation=generation,
            )
        )
    return tuple(stamped)


def find(conditions: Sequence[Condition], type_: ConditionType) -> Condition | None:
    """The condition of a type."""
    return next((condition for condition in conditions if condition.type == type_), None)


def is_true(conditions: Sequence[Condition], type_: ConditionType) -> bool:
    """Whether the condition is there and true."""
    condition = find(conditions, type_)
    return condition is not None and condition.status == "True"


def keep(condition: Condition) -> Wanted:
    """A condition as it was, when nothing new is known."""
    return Wanted(ConditionType(condition.type), condition.status, condition.reason, condition.message)


def shorten(message: str, longest: int = _LONGEST_MESSAGE) -> str:
    """A message cut to a length that a status can carry."""
    return message if len(message) <= longest else message[: longest - 1] + "…"
