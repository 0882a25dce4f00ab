"""What became of a server's tools: the condition `ToolsChanged` and the Event that goes with it.

Without `approvedHash` the tools of the first probe after an edit of the spec are what later ones are compared with: a
change that nobody asked for is told until the next edit. With it the host compares, and hides what is not approved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from toolbox_dtma.wire import InstanceReport, ProbeReport, ToolApproval
from toolbox_operator.api.conditions import ConditionType, Reason
from toolbox_operator.api.mcpserver import MCPServerStatus, ToolStatus
from toolbox_operator.domain.conditions import Wanted, find, keep, shorten, yes

_NAMED = 8
_LONGEST_NAME = 64


@dataclass(frozen=True, slots=True)
class News:
    """An Event about tools. Without any hash in it, so that a server whose list flaps makes one series of each."""

    type: Literal["Normal", "Warning"]
    reason: Reason
    note: str


def tools_changed(
    before: MCPServerStatus, tools: Sequence[ToolStatus], report: InstanceReport, generation: int
) -> Wanted | None:
    """The condition, from what the host says of this generation; None while it is not to be there.

    `tools`: those of the report's probe, as status will show them.
    """
    probe, approval = report.observed.probe, report.observed.approval
    if probe is None or not probe.ok or probe.tools_hash is None:
        return kept(before)
    if approval is not None:
        return _pinned(approval, probe)
    known = find(before.conditions, ConditionType.TOOLS_CHANGED)
    if before.tools_hash is None or before.tools_generation != generation:
        return None
    if before.tools_hash == probe.tools_hash:
        return keep(known) if known is not None and known.reason == Reason.TOOLS_CHANGED else None
    message = (
        f"The tools changed although the spec did not: {_difference(before.tools, tools)}. They may be used. To have"
        f" changes hidden until they are approved, set expose.tools.approvedHash to {probe.tools_hash}. Any edit of the"
        " spec takes the tools of now as known."
    )
    return yes(ConditionType.TOOLS_CHANGED, Reason.TOOLS_CHANGED, message)


def kept(before: MCPServerStatus) -> Wanted | None:
    """The condition as it was, while nothing new is known of the tools."""
    known = find(before.conditions, ConditionType.TOOLS_CHANGED)
    return keep(known) if known is not None else None


def _pinned(approval: ToolApproval, probe: ProbeReport) -> Wanted | None:
    accept = f"To accept the tools of now, set expose.tools.approvedHash to {probe.tools_hash}."
    if not approval.known:
        message = (
            f"approvedHash is of no tools that this server has shown: none may be used. {accept} It has"
            f" {probe.tools_total}."
        )
        return yes(ConditionType.TOOLS_CHANGED, Reason.TOOLS_NOT_APPROVED, message)
    if probe.tools_hash != approval.hash and not approval.hidden_total:
        message = f"Some of the approved tools are gone; every tool that is left is approved. {accept}"
        return yes(ConditionType.TOOLS_CHANGED, Reason.TOOLS_CHANGED, message)
    if not approval.hidden_total:
        return None
    hidden = _names(approval.hidden, approval.hidden_total)
    if probe.tools_hash != approval.hash:
        message = f"Hidden and refused until they are approved: {hidden}. {accept}"
    else:
        because = f" ({probe.tools_problem})" if probe.tools_problem else ""
        message = f"Hidden and refused, since a definition like theirs cannot be approved{because}: {hidden}."
    return yes(ConditionType.TOOLS_CHANGED, Reason.TOOLS_NOT_APPROVED, message)


def news(before: MCPServerStatus, after: MCPServerStatus, *, pinned: bool) -> News | None:
    """What to tell people of a status that was written over another one."""
    condition, known = (find(status.conditions, ConditionType.TOOLS_CHANGED) for status in (after, before))
    changed = None not in (before.tools_hash, after.tools_hash) and before.tools_hash != after.tools_hash
    if condition is not None and condition.reason == Reason.TOOLS_NOT_APPROVED:
        if changed:
            difference = _difference(before.tools, after.tools)
            note = f"The tools changed: {difference}. What is not approved is hidden and refused."
            return News("Warning", Reason.TOOLS_NOT_APPROVED, note)
        if known is None or known.reason != condition.reason:
            note = "The server has tools that are not approved: they are hidden and refused."
            return News("Warning", Reason.TOOLS_NOT_APPROVED, note)
        return None
    if pinned and known is not None and condition is None and after.tools_hash is not None:
        return News("Normal", Reason.TOOLS_APPROVED, "The server has the tools that were approved, and no others.")
    if changed:
        note = f"The tools changed: {_difference(before.tools, after.tools)}."
        return News("Warning" if condition is not None else "Normal", Reason.TOOLS_CHANGED, note)
    return None


def _difference(before: Iterable[ToolStatus], after: Iterable[ToolStatus]) -> str:
    """Names of what was added, removed and changed, as far as status shows the tools."""
    old, new = _by_name(before), _by_name(after)
    parts = {
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
        "changed": [name for name in new if name in old and new[name] != old[name]],
    }
    told = "; ".join(f"{what} {_names(names, len(names))}" for what, names in parts.items() if names)
    return told or "only in what status does not show"


def _by_name(tools: Iterable[ToolStatus]) -> dict[str, frozenset[str | None]]:
    found: dict[str, frozenset[str | None]] = {}
    for tool in tools:
        found[tool.name] = found.get(tool.name, frozenset()) | {tool.hash}
    return found


def _names(names: Sequence[str], total: int) -> str:
    shown = [shorten(name, _LONGEST_NAME) for name in names[:_NAMED]]
    more = total - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
