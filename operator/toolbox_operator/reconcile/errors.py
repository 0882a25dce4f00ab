"""Errors of a reconcile, typed by what happens next (design §4).

`Stalled`: only an edit of this object helps. `Waiting`: something else must change; tried again after a
delay. `Fenced`: this process must not write. Anything else is retried with jittered back-off.
"""

from __future__ import annotations

from toolbox_operator.api.conditions import ConditionType, Reason
from toolbox_operator.runtime import Fenced

__all__ = ["Fenced", "ReconcileError", "Stalled", "Waiting"]


class ReconcileError(Exception):
    """Base. `condition` is the condition type that shows the cause besides `Ready`."""

    def __init__(self, reason: Reason | str, message: str, *, condition: ConditionType = ConditionType.ACCEPTED):
        super().__init__(message)
        self.reason = str(reason)
        self.message = message
        self.condition = condition


class Stalled(ReconcileError):
    """Only an edit of this object is the cure: no retry until its generation or annotations change."""


class Waiting(ReconcileError):
    """Another object, a host or an image must change first: tried again after `after` seconds (jittered).

    Without `after`, the key's own back-off (at most 30 s) applies.
    """

    def __init__(
        self,
        reason: Reason | str,
        message: str,
        *,
        condition: ConditionType = ConditionType.ACCEPTED,
        after: float | None = None,
    ):
        super().__init__(reason, message, condition=condition)
        self.after = after
