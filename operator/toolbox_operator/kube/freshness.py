"""Whether the watches still deliver: judged by our own Lease, which changes every few seconds, and by relists."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from toolbox_operator.api.meta import Body, Key, Kind
from toolbox_operator.kube.cache import EventType, version_of
from toolbox_operator.runtime import Clock

MISSED = 60.0
"""Seconds that a watch may lag behind a relist."""


@dataclass(frozen=True, slots=True)
class _Suspect:
    """A change that a list showed and the watch had not."""

    version: int
    since: float


class WatchJudge:
    """Told of what each watch delivers and what each list shows; `problem` says what is wrong, if anything."""

    def __init__(self, clock: Clock, *, fresh: float, missed: float = MISSED) -> None:
        self._clock = clock
        self._fresh = fresh
        self._missed = missed
        self._lease_seen: float | None = None
        self._started: float | None = None
        self._delivered: dict[Kind, dict[Key, int]] = {kind: {} for kind in Kind}
        self._suspects: dict[tuple[Kind, Key], _Suspect] = {}
        self._backwards: dict[Kind, float] = {}

    def start(self) -> None:
        """The watches are being started: from now on they owe us news."""
        self._started = self._clock.monotonic()

    def saw_lease(self) -> None:
        """The watch of our own Lease delivered."""
        self._lease_seen = self._clock.monotonic()

    def delivered(self, kind: Kind, type_: EventType, body: Body) -> None:
        """The watch of `kind` delivered."""
        key, version = Key.of(body), version_of(body)
        versions = self._delivered[kind]
        if type_ == "DELETED":
            if versions.get(key, 0) <= version:
                versions.pop(key, None)
        else:
            versions[key] = max(version, versions.get(key, 0))
        suspect = self._suspects.get((kind, key))
        if suspect is not None and version >= suspect.version:
            del self._suspects[kind, key]

    def listed(self, kind: Kind, bodies: Iterable[Body], list_version: str, *, accepted: bool) -> None:
        """A complete list of `kind` was taken; not `accepted`: it was older than one before."""
        now = self._clock.monotonic()
        if not accepted:
            self._backwards.setdefault(kind, now)
            return
        self._backwards.pop(kind, None)
        versions = self._delivered[kind]
        present: set[Key] = set()
        for body in bodies:
            key, version = Key.of(body), version_of(body)
            present.add(key)
            if versions.get(key, 0) < version:
                self._suspect(kind, key, version, now)
        # A deletion that was missed is no evidence: kopf never makes one up after a 410, healthy as it is.
        for key in [key for key, version in versions.items() if key not in present and version <= int(list_version)]:
            del versions[key]
        for kind_, key in [node for node in self._suspects if node[0] is kind and node[1] not in present]:
            del self._suspects[kind_, key]

    def problem(self) -> str | None:
        """What is wrong with the watches, in a sentence."""
        if self._started is None:
            return None
        now = self._clock.monotonic()
        silent = now - (self._started if self._lease_seen is None else self._lease_seen)
        if silent > self._fresh:
            return f"the watch of our own Lease has delivered nothing for {silent:.0f} s"
        for (kind, key), suspect in self._suspects.items():
            if now - suspect.since > self._missed:
                return f"the watch of {kind} missed a change of {key} for {now - suspect.since:.0f} s"
        for kind, since in self._backwards.items():
            if now - since > self._missed:
                return f"the API server lists {kind} at a version older than one seen before"
        return None

    def _suspect(self, kind: Kind, key: Key, version: int, now: float) -> None:
        # The time of the first miss stays: a newer miss on top of it proves the watch no better.
        known = self._suspects.get((kind, key))
        self._suspects[kind, key] = _Suspect(version, known.since if known is not None else now)
