"""Phases: the summary of conditions for people. Their lower case is what the record calls them."""

from __future__ import annotations

from typing import Final

from toolbox_dtma.wire import InstancePhase, InstanceReason, InstanceReport
from toolbox_operator.api.mcpserver import MCPServerPhase

_PHASE: Final = {
    InstancePhase.PENDING: MCPServerPhase.PENDING,
    InstancePhase.STARTING: MCPServerPhase.STARTING,
    InstancePhase.READY: MCPServerPhase.ACTIVE,
    InstancePhase.STOPPED: MCPServerPhase.STOPPED,
    InstancePhase.ERROR: MCPServerPhase.ERROR,
}


def phase_of(report: InstanceReport) -> MCPServerPhase:
    """The phase of a server that its host reports on."""
    if report.observed.reason is InstanceReason.ENGINE_UNAVAILABLE:
        return MCPServerPhase.UNKNOWN
    return _PHASE[report.observed.phase]
