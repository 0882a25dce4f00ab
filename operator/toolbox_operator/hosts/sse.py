"""Reading a host's server-sent events, incrementally and within bounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from toolbox_dtma.wire import DeletedInstance, GatewayFacts, GrantProgrammed, InstanceReport
from toolbox_operator.hosts.api import HostEvent

ModelT = TypeVar("ModelT", bound=BaseModel)

MAX_EVENT: Final = 4 * 1024 * 1024
"""Bytes of the largest event that is kept while it arrives."""

_MODELS: Final[dict[str, type[InstanceReport | DeletedInstance | GrantProgrammed | GatewayFacts]]] = {
    "instance": InstanceReport,
    "deleted": DeletedInstance,
    "grant": GrantProgrammed,
    "gateway": GatewayFacts,
}


class EventStream:
    """Turns chunks of a stream into events. Comments and unknown events become heartbeats.

    Lines end with LF or CRLF, as DTMA writes them. Raises ValueError when the stream cannot be trusted further.
    """

    def __init__(self) -> None:
        self._tail = b""
        self._size = 0
        self._name = ""
        self._data: list[str] = []
        self._cursor: str | None = None

    def feed(self, chunk: bytes) -> Iterator[HostEvent]:
        """Events completed by this chunk."""
        *lines, self._tail = (self._tail + chunk).split(b"\n")
        if len(self._tail) + self._size > MAX_EVENT:
            raise ValueError("an event is too large")
        for raw in lines:
            self._size += len(raw)
            if self._size > MAX_EVENT:
                raise ValueError("an event is too large")
            line = raw.removesuffix(b"\r").decode("utf-8")
            if not line:
                yield self._finish()
            elif line.startswith(":"):
                yield HostEvent()
            else:
                self._field(line)

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._name = value
            case "data":
                self._data.append(value)
            case "id":
                self._cursor = value
            case _:
                pass  # `retry` and fields of newer hosts carry nothing that we need

    def _finish(self) -> HostEvent:
        name, data, cursor = self._name, "\n".join(self._data), self._cursor
        self._name, self._data, self._size = "", [], 0
        model = _MODELS.get(name)
        if model is None or not data:
            return HostEvent(cursor=cursor)
        return HostEvent(data=_validated(model, data), cursor=cursor)


def _validated(model: type[ModelT], data: str) -> ModelT:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise ValueError(f"an event is not a valid {model.__name__}") from error
