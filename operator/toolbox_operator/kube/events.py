"""Events (events.k8s.io/v1) about our objects: the seam; see `recorder.py` for the one that writes them."""

from __future__ import annotations

from typing import Literal, Protocol

from toolbox_operator.api.meta import Body


class Events(Protocol):
    """Records what happened to an object, for people. Never raises; never blocks a reconcile."""

    def record(self, body: Body, type_: Literal["Normal", "Warning"], reason: str, note: str, action: str) -> None:
        """Queue an Event. Call on transitions only; repeats of one (object, reason, note) become a series."""
        ...
