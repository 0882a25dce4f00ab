"""The events of a server's streams, in memory: what a server needs to let clients resume."""

from __future__ import annotations

from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp_types import JSONRPCMessage


class MemoryEvents(EventStore):
    """Numbers all events of a server in one row, and replays those of the stream that an id belongs to.

    Like the stores in use it asks nobody whose id it is given.
    """

    def __init__(self) -> None:
        self._events: list[tuple[str, JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        """Keeps a message; its id is its number."""
        self._events.append((stream_id, message))
        return str(len(self._events))

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        """Sends what came later on the same stream."""
        if not last_event_id.isdigit() or not 0 < (number := int(last_event_id)) <= len(self._events):
            return None
        stream = self._events[number - 1][0]
        for later, (stream_id, message) in enumerate(self._events[number:], number + 1):
            if stream_id == stream and message is not None:
                await send_callback(EventMessage(message, str(later)))
        return stream
