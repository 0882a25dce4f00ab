"""A reason not to go on, as a value: what a check found, before it becomes conditions and an error type."""

from __future__ import annotations

from dataclasses import dataclass

from toolbox_operator.api.conditions import ConditionType, Reason
from toolbox_operator.domain.policy import Next


@dataclass(frozen=True, slots=True)
class Hold:
    """Why this object goes no further for now, and what happens next."""

    next: Next
    condition: ConditionType
    reason: str
    message: str
    quick: bool = False
    """Try again after the short delay for references instead of the key's own back-off."""
    quiet: bool = False
    """Whoever lifts it requeues this object: nothing has to be tried again by time."""


def stalled_by(reason: Reason | str, message: str, condition: ConditionType = ConditionType.ACCEPTED) -> Hold:
    """Only an edit of this object helps."""
    return Hold(Next.STALLED, condition, str(reason), message)


def waits_for(
    reason: Reason | str,
    message: str,
    condition: ConditionType = ConditionType.ACCEPTED,
    *,
    quick: bool = False,
    quiet: bool = False,
) -> Hold:
    """Something else must change first."""
    return Hold(Next.WAITING, condition, str(reason), message, quick, quiet)
