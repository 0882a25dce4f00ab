"""Lines and files of the spool of call records. Each line is a checksum and a JSON document, and stands for itself."""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AccountMark(_Line):
    """How far an owner's records have come, as `Account` has it."""

    last: int
    gone: int
    dropped: int
    missing: int


class Head(_Line):
    """Opens a file with all that must be known where the files before it are gone."""

    kind: Literal["head"] = "head"
    accounts: dict[str, AccountMark]
    streams: dict[str, int]


class Marks(_Line):
    """What became of records since."""

    kind: Literal["marks"] = "marks"
    accounts: dict[str, AccountMark]


class Records(_Line):
    """A batch of a worker: each record with its owner and its number."""

    kind: Literal["records"] = "records"
    stream: str
    batch: int
    records: tuple[tuple[str, int, dict[str, Any]], ...]


Line = Head | Marks | Records
_LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])


def encode(line: Head | Marks) -> bytes:
    """One line."""
    return _with_checksum(line.model_dump_json().encode())


def encode_records(stream: str, batch: int, records: Iterable[tuple[str, int, bytes]]) -> bytes:
    """One line of records that are JSON already."""
    parts = b",".join(b'["%b",%d,%b]' % (owner.encode(), number, record) for owner, number, record in records)
    head = b'"kind":"records","stream":"%b","batch":%d' % (stream.encode(), batch)
    return _with_checksum(b'{%b,"records":[%b]}' % (head, parts))


def _with_checksum(text: bytes) -> bytes:
    return b"%08x %b\n" % (zlib.crc32(text), text)


def lines_of(path: Path) -> Generator[Line | None]:
    """Every line of a file; None for one that is damaged or cut short. Raises `OSError`."""
    with path.open("rb") as file:
        for raw in file:
            checksum, _, text = raw.removesuffix(b"\n").partition(b" ")
            try:
                whole = raw.endswith(b"\n") and int(checksum, 16) == zlib.crc32(text)
                yield _LINE.validate_json(text) if whole else None
            except (ValueError, ValidationError):
                yield None


@dataclass(slots=True)
class Account:
    """How far an owner's records have come. They are counted up from 1, without gaps."""

    last: int = 0
    """Number of the newest."""
    gone: int = 0
    """Up to here nothing is held: it was acknowledged or dropped."""
    dropped: int = 0
    missing: int = 0
    """Of those not gone, how many were found to be lost."""

    @property
    def held(self) -> int:
        """Records that wait."""
        return max(0, self.last - self.gone - self.missing)

    @property
    def mark(self) -> AccountMark:
        """As it is written down."""
        return AccountMark(last=self.last, gone=self.gone, dropped=self.dropped, missing=self.missing)

    def learn(self, mark: AccountMark) -> None:
        """A line said so. All but `missing` only grows."""
        self.last, self.gone = max(self.last, mark.last), max(self.gone, mark.gone)
        self.dropped, self.missing = max(self.dropped, mark.dropped), mark.missing

    def end(self, number: int) -> None:
        """Nothing up to a number is needed any more."""
        self.gone = max(self.gone, number)
        self.missing = min(self.missing, self.last - self.gone)


@dataclass(slots=True)
class Segment:
    """One file."""

    path: Path
    size: int = 0
    spans: dict[str, list[tuple[int, int]]] = field(default_factory=dict[str, list[tuple[int, int]]])
    """By owner: the rows of numbers in it, each by its first and last. There is one, unless a line is damaged."""

    def add(self, owner: str, number: int) -> None:
        """A record is in it."""
        spans = self.spans.setdefault(owner, [])
        if spans and spans[-1][1] == number - 1:
            spans[-1] = (spans[-1][0], number)
        else:
            spans.append((number, number))

    def last(self, owner: str) -> int:
        """The newest record of an owner; 0 if there is none."""
        spans = self.spans.get(owner)
        return spans[-1][1] if spans else 0

    def count_after(self, owner: str, number: int) -> int:
        """Records of an owner above a number."""
        return sum(max(0, last - max(first - 1, number)) for first, last in self.spans.get(owner, ()))

    def records(self, owner: str, after: int, limit: int) -> list[tuple[int, dict[str, Any]]]:
        """Up to `limit` records of an owner above a number. Raises `OSError`."""
        found: list[tuple[int, dict[str, Any]]] = []
        for line in lines_of(self.path):
            if isinstance(line, Records):
                found += [(number, record) for of, number, record in line.records if of == owner and number > after]
            if len(found) >= limit:
                break
        return found[:limit]
