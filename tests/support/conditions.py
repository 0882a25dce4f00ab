"""The condition checker: what must hold for the conditions of every object of ours, at any moment.

After kstatus, and after the rules that Flux checks its own objects with. Each rule has a number, so that a failure
can be named in one word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

from toolbox_operator.api.meta import Body

_ABNORMAL = ("Reconciling", "Stalled")
_REASON = re.compile(r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")


class ConditionsBroken(AssertionError):
    """The conditions of an object break rules; the text names each."""


def problems(body: Body) -> list[str]:
    """The rules that an object breaks. One whose status was never written breaks none."""
    status = cast("Mapping[str, Any]", body.get("status") or {})
    if not status:
        return []
    generation: int = body["metadata"].get("generation", 0)
    conditions = cast("list[dict[str, Any]]", status.get("conditions") or [])
    by_type = {condition["type"]: condition for condition in conditions}
    found: list[str] = []
    if len(by_type) != len(conditions):
        found.append("C01: a condition type is there twice")
    ready = by_type.get("Ready")
    if ready is None:
        found.append("C02: Ready is missing")
    found += [
        f"C03: {type_} is there without being True"
        for type_ in _ABNORMAL
        if type_ in by_type and by_type[type_]["status"] != "True"
    ]
    changed = by_type.get("ToolsChanged")
    if changed is not None and changed["status"] != "True":
        found.append("C15: ToolsChanged is there without being True")
    if all(type_ in by_type for type_ in _ABNORMAL):
        found.append("C04: Reconciling and Stalled are both there")
    if ready is not None and ready["status"] == "True":
        found += [f"C05: Ready is True although {type_} is" for type_ in _ABNORMAL if type_ in by_type]
        stale = [c["type"] for c in conditions if c.get("observedGeneration") != generation]
        # An object that is being deleted gets a new generation by that alone.
        if stale and not body["metadata"].get("deletionTimestamp") and status.get("observedGeneration") == generation:
            found.append(f"C06: Ready is True, but of another generation are {', '.join(stale)}")
        false = [c["type"] for c in conditions if c["type"] != "Ready" and c["status"] == "False"]
        if false:
            found.append(f"C07: Ready is True although False are {', '.join(false)}")
    for condition in conditions:
        if condition.get("observedGeneration", 0) > generation:
            found.append(f"C08: {condition['type']} observed a generation that does not exist yet")
        if condition["status"] not in ("True", "False", "Unknown"):
            found.append(f"C09: {condition['type']} is {condition['status']}")
        if not _REASON.match(condition.get("reason", "")):
            found.append(f"C10: the reason of {condition['type']} is {condition.get('reason')!r}")
        if not condition.get("message", "").strip():
            found.append(f"C11: {condition['type']} has no message for people")
        if datetime.fromisoformat(condition["lastTransitionTime"]).tzinfo is None:
            found.append(f"C12: lastTransitionTime of {condition['type']} has no offset")
    if status.get("observedGeneration", 0) > generation:
        found.append("C13: status observed a generation that does not exist yet")
    stalled = by_type.get("Stalled")
    if stalled is not None and ready is not None and stalled["reason"] != ready["reason"]:
        found.append("C14: Stalled and Ready give different reasons")
    return found


def check_conditions(body: Body) -> None:
    """Raises `ConditionsBroken` when an object breaks a rule."""
    found = problems(body)
    if found:
        name = f"{body.get('kind')} {body['metadata'].get('namespace')}/{body['metadata'].get('name')}"
        raise ConditionsBroken(f"{name}: " + "; ".join(found) + f"\nstatus: {body.get('status')}")
