"""What an error of PostgreSQL means for the writer: wait, do it again at once, or refuse this row."""

from __future__ import annotations

from enum import StrEnum

import psycopg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError

from toolbox_operator.store.apply import WrittenMeanwhile

EXPECTED = (SQLAlchemyError, psycopg.Error, OSError, TimeoutError, WrittenMeanwhile)
"""Everything that talking to PostgreSQL may raise."""

AGAIN = frozenset({"40001", "40P01", "23505"})
"""Serialisation failure, deadlock, and a unique name taken by another writer between look and write."""

OCCUPIED = frozenset({"55P03", "57014", "40P01"})
"""A lock was not to be had in time, or not without a deadlock."""

SCHEMA_GONE = frozenset({"3F000", "42P01", "42703", "42883"})
"""Schema, table, column or function is missing: somebody restored or emptied the database."""


class Next(StrEnum):
    """What the writer does about an error."""

    WAIT = "wait"
    """PostgreSQL is away or cannot take anything now: keep everything, try later."""
    AGAIN = "again"
    """Lost a race: the same transaction again."""
    REFUSE = "refuse"
    """The data itself is not acceptable: find the row, go on without it."""


def sqlstate_of(error: BaseException) -> str | None:
    """PostgreSQL's five-letter code, if it is PostgreSQL that speaks."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return cause.sqlstate if isinstance(cause, psycopg.Error) else None


def classify(error: BaseException) -> Next:
    """What to do about an error of a transaction."""
    if isinstance(error, WrittenMeanwhile):
        return Next.AGAIN
    state = sqlstate_of(error)
    if state in AGAIN:
        return Next.AGAIN
    if state is not None and state[:2] in ("22", "23"):
        return Next.REFUSE
    if isinstance(error, StatementError) and not isinstance(error, DBAPIError):
        # A value that the driver cannot even send.
        return Next.REFUSE
    return Next.WAIT


def brief(error: BaseException) -> str:
    """The first line only: further ones quote the row."""
    cause = getattr(error, "orig", None) or error
    text = str(cause).strip() or type(cause).__name__
    return text.splitlines()[0][:300]
