"""Owners and their epochs: which cluster may act here, and which of its leaders."""

from __future__ import annotations

from dataclasses import dataclass

from toolbox_dtma.management.problems import Refused
from toolbox_dtma.state.records import OwnerRecord
from toolbox_dtma.state.store import Commit, State
from toolbox_dtma.wire import OwnerClaimed, ProblemCode


@dataclass(frozen=True, slots=True)
class Reader:
    """On whose behalf something is read."""

    owner: str


@dataclass(frozen=True, slots=True)
class Writer:
    """On whose behalf, and under which leadership, something is changed."""

    owner: str
    epoch: int


class Owners:
    """The highest epoch per owner."""

    def __init__(self, state: State):
        self._state = state

    async def claim(self, owner: str, epoch: int) -> OwnerClaimed:
        """A leader announces itself. Raises `Refused` (FencedEpoch) when a newer one did."""
        async with self._state.committing() as commit:
            held = self._state.owners.get(owner)
            if held is None:
                await commit.put_owner(OwnerRecord(owner=owner, epoch=epoch))
            else:
                await self._raise_to(commit, held, epoch)
        return OwnerClaimed(epoch=self._held(owner).epoch, host_id=self._state.host.host_id)

    def admit(self, reader: Reader) -> None:
        """Raises `Refused` (NotClaimed) for an owner that never claimed this host."""
        self._held(reader.owner)

    async def fence(self, commit: Commit, writer: Writer) -> None:
        """Let only the newest leader pass. Asked inside the commit, so that a claim cannot come between.

        Raises `Refused` (NotClaimed, FencedEpoch); a higher epoch than claimed becomes the held one.
        """
        await self._raise_to(commit, self._held(writer.owner), writer.epoch)

    def _held(self, owner: str) -> OwnerRecord:
        held = self._state.owners.get(owner)
        if held is None:
            raise Refused(ProblemCode.NOT_CLAIMED, "claim the host with PUT /v2/owners/{owner} first")
        return held

    async def _raise_to(self, commit: Commit, held: OwnerRecord, epoch: int) -> None:
        if epoch < held.epoch:
            raise Refused(
                ProblemCode.FENCED_EPOCH,
                f"epoch {epoch} is older than the held {held.epoch}",
                current=held.epoch,
            )
        if epoch > held.epoch:
            await commit.put_owner(OwnerRecord(owner=held.owner, epoch=epoch))


def check_identity(owner: str, namespace: str, name: str, *, writer: Writer, claimed: tuple[str, str]) -> None:
    """Whether a stored object is the one a writer means. Raises `Refused` (OwnerMismatch, IdentityMismatch)."""
    if owner != writer.owner:
        raise Refused(ProblemCode.OWNER_MISMATCH)
    if (namespace, name) != claimed:
        raise Refused(ProblemCode.IDENTITY_MISMATCH, f"it belongs to {namespace}/{name}")
