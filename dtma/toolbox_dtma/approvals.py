"""Which tools of an instance are approved: what an admin pinned, joined with what its probes showed. Pure.

An `approved_hash` names a surface. It approves every definition that surface had, from the first probe that showed it
while it was named: what that was is kept, and outlives the surface itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest

from toolbox_dtma.readiness import Probed
from toolbox_dtma.state.records import ApprovalsRecord, ApprovedSurface
from toolbox_dtma.wire import ToolApproval

MAX_SURFACES = 8
"""Kept of one instance: an admin who goes back to an earlier approval finds it known."""
MAX_IN_FORCE = 16
"""Hashes that can be in force on one instance at a time; any others approve nothing."""
_PREFIX = "sha256:"


@dataclass(frozen=True, slots=True)
class Approvals:
    """What is approved of one instance."""

    record: ApprovalsRecord
    probed: Probed | None

    def of(self, pin: str) -> frozenset[str] | None:
        """Hashes of the definitions that a pin approves; None if its surface was never seen."""
        if self.probed is not None and self.probed.report.tools_hash == pin:
            return _definitions(self.probed)
        found = (surface for surface in self.record.surfaces if surface.hash == pin)
        return next((frozenset(surface.tools) for surface in found), None)

    def places(self, pins: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """For each pin, which tools of the last probe it approves, as `InstanceRoute.approvals` has them."""
        hashes = self.probed.surface.hashes if self.probed is not None else ()
        places: dict[str, tuple[int, ...]] = {}
        for pin in list(dict.fromkeys(pins))[:MAX_IN_FORCE]:
            approved = self.of(pin) or frozenset()
            places[pin] = tuple(at for at, hash_ in enumerate(hashes) if hash_ in approved)
        return places

    def verdict(self, pin: str | None) -> ToolApproval | None:
        """What a pin comes to; None without one, and before there is anything to compare with."""
        if pin is None or self.probed is None:
            return None
        approved = self.of(pin)
        shown = list(zip_longest(self.probed.surface.tools, self.probed.surface.hashes, fillvalue=""))
        # As in the gateway: a name with another definition beside the approved one cannot be called.
        names = {name for name, hash_ in shown if approved is None or hash_ not in approved}
        hidden = [at for at, (name, _) in enumerate(shown) if name in names]
        told = self.probed.report.tools
        return ToolApproval(
            hash=pin,
            known=approved is not None,
            hidden=tuple(dict.fromkeys(told[at].name for at in hidden if at < len(told))),
            hidden_total=len(hidden),
        )

    def to_keep(self, pins: tuple[str, ...]) -> ApprovalsRecord:
        """The record with what is approved by pins in force; the same one if there is nothing new."""
        surfaces = {surface.hash: surface for surface in self.record.surfaces}
        for pin in pins:
            known = self.of(pin)
            if known is not None and pin not in surfaces:
                surfaces[pin] = ApprovedSurface(hash=pin, tools=tuple(sorted(known)))
        if len(surfaces) == len(self.record.surfaces):
            return self.record
        spare = [hash_ for hash_ in surfaces if hash_ not in pins]
        for hash_ in spare[: max(0, len(surfaces) - MAX_SURFACES)]:
            del surfaces[hash_]
        return ApprovalsRecord(surfaces=tuple(surfaces.values()))


def _definitions(probed: Probed) -> frozenset[str]:
    return frozenset(hash_ for hash_ in probed.surface.hashes if hash_.startswith(_PREFIX))
