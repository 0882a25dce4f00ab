"""Which servers speak a revision without handshake: how their answer to a question is judged, and remembered. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

from toolbox_dtma import __version__
from toolbox_dtma.gateway.methods import HANDSHAKE_VERSIONS, VERSION_META
from toolbox_dtma.gateway.skimming import Document, Steps, Want
from toolbox_dtma.gateway.strictjson import NotJson

VERSION = "2026-07-28"
"""The revision that the broker's own requests are of."""
DISCOVER = "server/discover"
PING = "ping"
ANSWERED_SECONDS = 3600.0
"""How long an answer is believed."""
SILENT_SECONDS = 60.0
"""How long it is believed that a process that exits, or says nothing, waits for a handshake: it may have been slow."""
MAX_REMEMBERED = 4096
_MAX_VERSIONS = 64
_OWN_ERRORS = frozenset({-32020, -32021, -32022})
_UNSUPPORTED = -32022

META: dict[str, Any] = {
    VERSION_META: VERSION,
    "io.modelcontextprotocol/clientInfo": {"name": "magic-toolbox-broker", "version": __version__},
    "io.modelcontextprotocol/clientCapabilities": {},
}
"""`params._meta` of the broker's own requests."""


class Era(Enum):
    """How a server is talked to."""

    STATELESS = "stateless"
    """Every request names its revision; there is no handshake."""
    HANDSHAKE = "handshake"


_ANSWER = Want(
    {
        "result": Want({"supportedVersions": Want(elements=_MAX_VERSIONS)}),
        "error": Want({"code": None, "data": Want({"supported": Want(elements=_MAX_VERSIONS)})}),
    }
)


def own_request(number: int, method: str, **params: Any) -> bytes:
    """A request of the broker's own."""
    document = {"jsonrpc": "2.0", "id": number, "method": method, "params": {**params, "_meta": META}}
    return json.dumps(document, separators=(",", ":")).encode()


def judged(answer: bytes) -> Steps[Era]:
    """The era of a server by its answer to `server/discover` (2026-07-28, stdio: backward compatibility).

    Versions without handshake, or an error that only such a revision has, speak for it; anything else is what servers
    say that do not know the question.
    """
    document = Document(answer, strict=False)
    try:
        start = yield from document.space(0)
        found, _ = yield from document.wanted(start, 0, _ANSWER)
    except NotJson:
        return Era.HANDSHAKE
    plain: Any = document.plain(found)
    error = _inside(plain, "error")
    if error is None:
        return Era.STATELESS if _names_one(_inside(plain, "result", "supportedVersions")) else Era.HANDSHAKE
    code = _inside(error, "code")
    if code == _UNSUPPORTED:
        supported = _inside(error, "data", "supported")
        return Era.STATELESS if not isinstance(supported, list) or _names_one(supported) else Era.HANDSHAKE
    return Era.STATELESS if isinstance(code, int) and code in _OWN_ERRORS else Era.HANDSHAKE


def _names_one(versions: Any) -> bool:
    listed = cast("list[Any]", versions) if isinstance(versions, list) else []
    return any(isinstance(version, str) and version not in HANDSHAKE_VERSIONS for version in listed)


def _inside(value: Any, *names: str) -> Any:
    for name in names:
        value = cast("dict[str, Any]", value).get(name) if isinstance(value, dict) else None
    return value


@dataclass(frozen=True, slots=True)
class _Known:
    era: Era
    incarnation: str
    until: float


class Eras:
    """What is known of instances: a yes or a no for each, as long as its processes are made of the same."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives monotonic seconds."""
        self._clock = clock
        self._known: dict[str, _Known] = {}

    def opened(self, instance: str, incarnation: str) -> None:
        """A process of this incarnation was started: what was known of another one is forgotten."""
        known = self._known.get(instance)
        if known is not None and known.incarnation != incarnation:
            del self._known[instance]

    def learn(self, instance: str, incarnation: str, era: Era, seconds: float) -> None:
        """Believe it for so long. The oldest is forgotten where there are too many."""
        self._known.pop(instance, None)
        self._known[instance] = _Known(era, incarnation, self._clock() + seconds)
        while len(self._known) > MAX_REMEMBERED:
            del self._known[next(iter(self._known))]

    def of(self, instance: str) -> Era | None:
        """What is known."""
        known = self._known.get(instance)
        return known.era if known is not None and self._clock() < known.until else None
