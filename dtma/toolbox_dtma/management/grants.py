"""Grants: who may talk to which instance, and whether every gateway worker knows."""

from __future__ import annotations

from dataclasses import dataclass

from toolbox_dtma.link.messages import Change, GrantPolicy
from toolbox_dtma.management.events import EventLog
from toolbox_dtma.management.owners import Owners, Reader, Writer, check_identity
from toolbox_dtma.management.problems import Refused
from toolbox_dtma.management.revocations import Revocations
from toolbox_dtma.policy.contents import PolicyItemTooLarge, check_size
from toolbox_dtma.policy.server import AckPending, PolicyServer
from toolbox_dtma.state.records import GrantRecord
from toolbox_dtma.state.store import State
from toolbox_dtma.wire import Grant, GrantList, GrantProgrammed, GrantReport, ProblemCode, canonical_hash


@dataclass(slots=True)
class _Status:
    """How far a grant's present content has come."""

    revision: int
    content_hash: str
    programmed: bool = False
    awaited: bool = False
    """Someone was told that it is not programmed, and is owed the news."""


def policy_of(uid: str, grant: Grant) -> GrantPolicy:
    """A grant as the workers need it."""
    return GrantPolicy(
        uid=uid,
        instance=grant.instance,
        credentials=grant.credentials,
        server_expose=grant.server_expose,
        expose=grant.expose,
        expires_at=grant.expires_at,
        limits=grant.limits,
    )


class Grants:
    """Every grant of every owner. `programmed` holds from the first full acknowledgement until the content changes."""

    def __init__(
        self, *, state: State, owners: Owners, policy: PolicyServer, revocations: Revocations, events: EventLog
    ):
        self._state = state
        self._owners = owners
        self._policy = policy
        self._revocations = revocations
        self._events = events
        self._status: dict[str, _Status] = {}
        self._unprogrammed: set[str] = set()
        policy.on_progress(self._progressed)

    @property
    def pending(self) -> int:
        """Grants that not every worker has acknowledged yet."""
        return len(self._unprogrammed)

    async def load(self) -> None:
        """Take up what is on disk; first end the deletions that a crash cut short."""
        async with self._state.committing() as commit:
            for record in tuple(self._state.grants.values()):
                instance = self._state.instances.get(record.grant.instance)
                if instance is None or instance.deleting or self._state.is_buried("grant", record.owner, record.uid):
                    await commit.drop_grant(record.uid)
        records = tuple(self._state.grants.values())
        revision = self._policy.publish(Change(grants=tuple(policy_of(r.uid, r.grant) for r in records)))
        for record in records:
            self._note(record, revision)

    def _note(self, record: GrantRecord, revision: int) -> None:
        self._status[record.uid] = _Status(revision, canonical_hash(record.grant))
        self._unprogrammed.add(record.uid)

    async def put(self, writer: Writer, uid: str, grant: Grant) -> GrantReport:
        """Store a grant; returns once every worker obeys it. Raises `Refused`."""
        record = GrantRecord(uid=uid, owner=writer.owner, grant=grant)
        async with self._state.committing() as commit:
            await self._owners.fence(commit, writer)
            self._check_put(writer, uid, grant)
            if self._state.grants.get(uid) != record:
                await commit.put_grant(record)
                self._note(record, self._policy.publish(Change(grants=(policy_of(uid, grant),))))
            status = self._status[uid]
        if not status.programmed:
            try:
                await self._policy.settled(status.revision, somewhere=True)
            except AckPending as pending:
                if not status.programmed:
                    status.awaited = True
                    raise Refused(ProblemCode.ACK_PENDING, str(pending)) from None
        return self._report(record, programmed=True)

    def _check_put(self, writer: Writer, uid: str, grant: Grant) -> None:
        held = self._state.grants.get(uid)
        if held is not None:
            names = (grant.namespace, grant.name)
            check_identity(held.owner, held.grant.namespace, held.grant.name, writer=writer, claimed=names)
        if self._state.is_buried("grant", writer.owner, uid):
            raise Refused(ProblemCode.DELETED, "this connection was deleted")
        if held is not None and grant.generation < held.grant.generation:
            raise Refused(ProblemCode.STALE_GENERATION, f"the host holds generation {held.grant.generation}")
        instance = self._state.instances.get(grant.instance)
        if instance is None or instance.deleting:
            raise Refused(ProblemCode.INSTANCE_UNKNOWN, f"instance {grant.instance} is not on this host")
        if instance.owner != writer.owner:
            raise Refused(ProblemCode.OWNER_MISMATCH)
        try:
            check_size(policy_of(uid, grant))
        except PolicyItemTooLarge as error:
            raise Refused(ProblemCode.TOO_LARGE, f"the grant is too large: {error}") from None

    async def delete(self, writer: Writer, uid: str, *, namespace: str, name: str) -> None:
        """Revoke a grant; returns once no worker honours it. Absent is success. Raises `Refused`."""
        async with self._state.committing() as commit:
            await self._owners.fence(commit, writer)
            held = self._state.grants.get(uid)
            if held is not None:
                check_identity(
                    held.owner, held.grant.namespace, held.grant.name, writer=writer, claimed=(namespace, name)
                )
            if not self._state.is_buried("grant", writer.owner, uid):
                await commit.bury("grant", writer.owner, uid)
            if held is not None:
                self._revocations.ended(uid, self._policy.publish(Change(grants_gone=(uid,))))
                self._status.pop(uid, None)
                self._unprogrammed.discard(uid)
                await commit.drop_grant(uid)
        try:
            await self._revocations.wait(uid)
        except AckPending as pending:
            raise Refused(ProblemCode.ACK_PENDING, str(pending)) from None

    def list(self, reader: Reader) -> GrantList:
        """All grants of an owner. Raises `Refused` (NotClaimed)."""
        self._owners.admit(reader)
        items = tuple(self._listed(record) for record in self._state.grants.values() if record.owner == reader.owner)
        return GrantList(boot_id=self._events.boot_id, complete=True, items=items)

    def _listed(self, record: GrantRecord) -> GrantReport:
        status = self._status[record.uid]
        status.awaited = status.awaited or not status.programmed
        return self._report(record, programmed=status.programmed)

    def _report(self, record: GrantRecord, *, programmed: bool) -> GrantReport:
        return GrantReport(
            uid=record.uid,
            namespace=record.grant.namespace,
            name=record.grant.name,
            instance=record.grant.instance,
            generation=record.grant.generation,
            content_hash=canonical_hash(record.grant),
            programmed=programmed,
        )

    def _progressed(self) -> None:
        if len(self._status) > len(self._state.grants):
            # Some went with their instance.
            self._status = {uid: status for uid, status in self._status.items() if uid in self._state.grants}
        for uid in tuple(self._unprogrammed):
            status, record = self._status.get(uid), self._state.grants.get(uid)
            if status is None or record is None:
                self._unprogrammed.discard(uid)
                continue
            if self._policy.in_force(status.revision, somewhere=True):
                status.programmed = True
                self._unprogrammed.discard(uid)
                if status.awaited:
                    news = GrantProgrammed(
                        uid=uid,
                        generation=record.grant.generation,
                        content_hash=status.content_hash,
                        programmed=True,
                    )
                    self._events.publish(record.owner, "grant", news)
