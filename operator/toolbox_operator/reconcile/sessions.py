"""The pace at which sessions that come and go are written down."""

from __future__ import annotations

from toolbox_dtma.wire import InstanceReport
from toolbox_operator.api.mcpserver import MCPServerStatus
from toolbox_operator.api.meta import Key, Kind
from toolbox_operator.domain.sessions import only_counted, same_but_sessions, wait_left, with_open
from toolbox_operator.runtime import Clock, Requeue


class SessionPace:
    """What keeps a server from being written each time one of its sessions begins or ends.

    A status that differs in the number of open sessions alone waits, and the key comes back when it may be written;
    whatever else is written takes the newest number along. The record, which has no such number, is not touched.
    """

    def __init__(self, queue: Requeue, clock: Clock, every: float) -> None:
        """`every`: the least seconds between two writes of a status of which the second only counts anew."""
        self._queue = queue
        self._clock = clock
        self._every = every
        self._begun = clock.monotonic()
        self._written: dict[Key, float] = {}
        self._reports: dict[Key, tuple[int, InstanceReport]] = {}

    def due(self, key: Key, before: MCPServerStatus, after: MCPServerStatus) -> MCPServerStatus:
        """What may be written now of `after`, where `before` is there. Plans the rest."""
        if before.sessions is None or not only_counted(before, after):
            return after
        left = wait_left(self._written.get(key), self._begun, self._clock.monotonic(), self._every)
        if not left:
            return after
        self._queue.add_after(Kind.MCP_SERVER, key, left)
        return with_open(after, before.sessions.open)

    def wrote(self, key: Key, status: MCPServerStatus) -> None:
        """This is the status since now."""
        if status.sessions is not None:
            self._written[key] = self._clock.monotonic()

    def for_record(self, key: Key, report: InstanceReport | None, boot_id: int) -> InstanceReport | None:
        """The report that the row is to be made from: an earlier one if the newest only counts sessions anew."""
        if report is None or report.observed.sessions is None:
            self._reports.pop(key, None)
            return report
        known = self._reports.get(key)
        if known is None or known[0] != boot_id or not same_but_sessions(known[1], report):
            known = self._reports[key] = (boot_id, report)
        return known[1]

    def forget(self, key: Key) -> None:
        """The server is gone, or on its way out."""
        self._written.pop(key, None)
        self._reports.pop(key, None)
