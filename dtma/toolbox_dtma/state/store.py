"""The state folder: loaded whole at start, written one record at a time."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, TypeVar

from toolbox_dtma.state.files import (
    StateCorrupt,
    ensure_folder,
    read_folder,
    read_record,
    record_path,
    remove,
    remove_leftovers,
    write_record,
)
from toolbox_dtma.state.records import (
    ApprovalsRecord,
    BootRecord,
    ConfigRecord,
    DepartedRecord,
    GrantRecord,
    HostRecord,
    InstanceRecord,
    KeyRingRecord,
    LeftVolumes,
    OwnerRecord,
    ProbedRecord,
    Record,
    TombstoneRecord,
    WorkersRecord,
)

MAX_TOMBSTONES = 10_000
TOMBSTONE_LIFETIME = timedelta(days=7)

DEPARTED_LIFETIME = timedelta(hours=1)
"""How long after a grant's end records of its calls may still come: they wait at a gateway while DTMA is away."""
MAX_DEPARTED = 1_000

Kind = Literal["instance", "grant"]
R = TypeVar("R", bound=Record)


class NotInitialised(Exception):
    """The folder has no identity yet: `toolbox-dtma init` has not run."""

    def __init__(self, folder: Path):
        super().__init__(f"{folder} holds no host identity: run `toolbox-dtma init --state-dir {folder} …` first")


class StateInUse(Exception):
    """Another DTMA runs on the folder."""

    def __init__(self, folder: Path):
        super().__init__(
            f"another DTMA runs on {folder}; two would undo each other's work. Stop it first, or give this one a "
            "folder of its own"
        )


@contextmanager
def alone_on(folder: Path) -> Generator[None]:
    """Keep every other DTMA off the folder; the kernel lets go of it however this process ends.

    Raises `StateInUse`, and `NotInitialised` when there is no such folder.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        raise NotInitialised(folder) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateInUse(folder) from None
        yield
    finally:
        os.close(descriptor)


def tombstone_key(kind: Kind, owner: str, uid: str) -> str:
    """The file name of a tombstone: short for any uid, and never shared by two owners."""
    return f"{kind}-{hashlib.sha256(f'{owner}/{uid}'.encode()).hexdigest()[:40]}"


class State:
    """Records in memory; each change is on disk before it is visible here. Everything runs on one event loop."""

    def __init__(self, folder: Path, *, now: Callable[[], datetime], max_tombstones: int = MAX_TOMBSTONES):
        """Load everything and raise `boot_id` on disk. Raises `NotInitialised`, `StateCorrupt`."""
        self.folder = folder
        self.now = now
        self._max_tombstones = max_tombstones
        self._lock = asyncio.Lock()
        if not (folder / "host.json").exists():
            raise NotInitialised(folder)
        remove_leftovers(folder)
        for name in ("owners", "instances", "probed", "approvals", "grants", "departed", "tombstones"):
            ensure_folder(folder / name)
        self.host = read_record(folder / "host.json", HostRecord)
        self.keyring = read_record(folder / "keyring.json", KeyRingRecord)
        self.owners = self._load("owners", OwnerRecord, lambda record: record.owner)
        self.instances = self._load("instances", InstanceRecord, lambda record: record.id)
        self.grants = self._load("grants", GrantRecord, lambda record: record.uid)
        self.departed = self._load("departed", DepartedRecord, lambda record: record.uid)
        self.probed = self._load("probed", ProbedRecord, None)
        self.approvals = self._load("approvals", ApprovalsRecord, None)
        buried = self._load(
            "tombstones", TombstoneRecord, lambda record: tombstone_key(record.kind, record.owner, record.uid)
        )
        self.tombstones = {(t.kind, t.owner, t.uid): t for t in buried.values()}
        self.config = self._load_optional("config.json", ConfigRecord)
        self.workers = self._load_optional("workers.json", WorkersRecord) or WorkersRecord()
        self.boot_id = self._next_boot()

    def _load(self, name: str, model: type[R], key: Callable[[R], str] | None) -> dict[str, R]:
        records = read_folder(self.folder / name, model)
        for stem, record in records.items():
            if key is not None and key(record) != stem:
                raise StateCorrupt(record_path(self.folder / name, stem), "its content is of another record")
        return records

    def _load_optional(self, name: str, model: type[R]) -> R | None:
        path = self.folder / name
        return read_record(path, model) if path.exists() else None

    def _next_boot(self) -> int:
        """Above every earlier one, also where this folder was restored from a copy that does not know of all.

        The time says that: a number used twice, or one lower than before, would make observers take news for old.
        The count goes on by itself while the clock is behind it.
        """
        previous = self._load_optional("boot.json", BootRecord)
        boot_id = max((previous.boot_id if previous else 0) + 1, int(self.now().timestamp()))
        write_record(self.folder / "boot.json", BootRecord(boot_id=boot_id))
        return boot_id

    def is_buried(self, kind: Kind, owner: str, uid: str) -> bool:
        """Whether this object was deleted within the last 7 days."""
        stone = self.tombstones.get((kind, owner, uid))
        return stone is not None and self.now() - stone.deleted_at < TOMBSTONE_LIFETIME

    def grants_of(self, instance_id: str) -> tuple[GrantRecord, ...]:
        """Every grant on an instance."""
        return tuple(record for record in self.grants.values() if record.grant.instance == instance_id)

    @asynccontextmanager
    async def committing(self) -> AsyncGenerator[Commit]:
        """Let one mutation in at a time: what it checked (epoch, generation) still holds when it is written."""
        async with self._lock:
            yield Commit(self, self._max_tombstones)


class Commit:
    """Writes, usable inside `State.committing()` only. Each is durable when it returns; raises `OSError`."""

    def __init__(self, state: State, max_tombstones: int):
        self._state = state
        self._max_tombstones = max_tombstones

    async def _do(self, write: Callable[[], None], apply: Callable[[], None]) -> None:
        # A caller that is cancelled must not leave the file new and the memory old: the write is shielded, and
        # `apply` follows it as the future's first callback.
        future = asyncio.get_running_loop().run_in_executor(None, write)

        def finished(done: asyncio.Future[None]) -> None:
            if not done.cancelled() and done.exception() is None:
                apply()

        future.add_done_callback(finished)
        await asyncio.shield(future)

    async def _put(self, folder: str, key: str, record: R, into: dict[str, R]) -> None:
        path = record_path(self._state.folder / folder, key)

        def apply() -> None:
            into[key] = record

        await self._do(lambda: write_record(path, record), apply)

    async def _drop(self, folder: str, key: str, of: dict[str, R]) -> None:
        path = record_path(self._state.folder / folder, key)

        def apply() -> None:
            of.pop(key, None)

        await self._do(lambda: remove(path), apply)

    async def put_owner(self, record: OwnerRecord) -> None:
        """Keep an owner's highest epoch."""
        await self._put("owners", record.owner, record, self._state.owners)

    async def put_instance(self, record: InstanceRecord) -> None:
        """Create or replace an instance."""
        await self._put("instances", record.id, record, self._state.instances)

    async def drop_instance(self, instance_id: str) -> None:
        """Forget an instance, what was probed of it and what was approved."""
        await self._drop("probed", instance_id, self._state.probed)
        await self._drop("approvals", instance_id, self._state.approvals)
        await self._drop("instances", instance_id, self._state.instances)

    async def put_probed(self, instance_id: str, record: ProbedRecord) -> None:
        """Keep the last successful probe of an instance."""
        await self._put("probed", instance_id, record, self._state.probed)

    async def drop_probed(self, instance_id: str) -> None:
        """Forget what was probed of an instance."""
        await self._drop("probed", instance_id, self._state.probed)

    async def put_approvals(self, instance_id: str, record: ApprovalsRecord) -> None:
        """Keep which tools of an instance are approved."""
        await self._put("approvals", instance_id, record, self._state.approvals)

    async def put_grant(self, record: GrantRecord) -> None:
        """Create or replace a grant."""
        await self._put("grants", record.uid, record, self._state.grants)

    async def drop_grant(self, uid: str) -> None:
        """Forget a grant, but for a while not whose calls are those of its connection."""
        held = self._state.grants.get(uid)
        if held is not None:
            departed = DepartedRecord(
                uid=uid,
                owner=held.owner,
                namespace=held.grant.namespace,
                agent=held.grant.agent,
                instance=held.grant.instance,
                departed_at=self._state.now(),
            )
            await self._put("departed", uid, departed, self._state.departed)
        await self._drop("grants", uid, self._state.grants)
        await self._forget_departed()

    async def _forget_departed(self) -> None:
        by_age = sorted(self._state.departed.values(), key=lambda record: record.departed_at)
        surplus = len(by_age) - MAX_DEPARTED
        limit = self._state.now() - DEPARTED_LIFETIME
        for index, record in enumerate(by_age):
            if index >= surplus and record.departed_at > limit:
                return
            await self._drop("departed", record.uid, self._state.departed)

    async def put_config(self, record: ConfigRecord) -> None:
        """Replace the gateway's configuration."""
        state = self._state

        def apply() -> None:
            state.config = record

        await self._do(lambda: write_record(state.folder / "config.json", record), apply)

    async def put_keyring(self, record: KeyRingRecord) -> None:
        """Replace the key ring."""
        state = self._state

        def apply() -> None:
            state.keyring = record

        await self._do(lambda: write_record(state.folder / "keyring.json", record), apply)

    async def put_workers(self, record: WorkersRecord) -> None:
        """Replace the list of worker processes that hold policy."""
        state = self._state

        def apply() -> None:
            state.workers = record

        await self._do(lambda: write_record(state.folder / "workers.json", record), apply)

    async def bury(self, kind: Kind, owner: str, uid: str, volumes: LeftVolumes | None = None) -> None:
        """Leave a tombstone; the expired ones, and the oldest above the maximum, go."""
        state = self._state
        stone = TombstoneRecord(kind=kind, uid=uid, owner=owner, deleted_at=state.now(), volumes=volumes)
        path = self._tombstone_path(stone)

        def apply() -> None:
            # Taken out first, so that the dict stays ordered by age.
            state.tombstones.pop((kind, owner, uid), None)
            state.tombstones[kind, owner, uid] = stone

        await self._do(lambda: write_record(path, stone), apply)
        await self._prune()

    async def _prune(self) -> None:
        state = self._state
        by_age = sorted(state.tombstones.values(), key=lambda stone: stone.deleted_at)
        surplus = len(by_age) - self._max_tombstones
        limit = state.now() - TOMBSTONE_LIFETIME
        for index, stone in enumerate(by_age):
            if index >= surplus and stone.deleted_at > limit:
                return
            await self._exhume(stone)

    async def _exhume(self, stone: TombstoneRecord) -> None:
        def apply() -> None:
            self._state.tombstones.pop((stone.kind, stone.owner, stone.uid), None)

        await self._do(lambda: remove(self._tombstone_path(stone)), apply)

    def _tombstone_path(self, stone: TombstoneRecord) -> Path:
        return record_path(self._state.folder / "tombstones", tombstone_key(stone.kind, stone.owner, stone.uid))
