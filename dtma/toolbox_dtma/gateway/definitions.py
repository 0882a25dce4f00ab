"""What a tool is to whoever approved it: the canonical JSON of its definition, and the hash of that. Pure.

Hashed are `name`, `description`, `inputSchema` and `annotations`, each as the server sent it, in the form of RFC 8785
(JSON Canonicalization Scheme). The readiness probe and the filter of lists both hash by this module, so that a tool
means the same to both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import rfc8785

from toolbox_dtma.gateway.strictjson import MAX_DEPTH, Repeated, deeper_than, refuse_constant, with_repeats

COVERED = ("name", "description", "inputSchema", "annotations")
PREFIX = "sha256:"
OPAQUE_PREFIX = "opaque:"
"""Of what stands in for the hash of a definition that has no canonical form. Nothing approves it."""
MAX_CHARACTERS = 128 * 1024
"""Of one definition: canonical forms are made in Python, at about a microsecond for each value."""
_LARGEST = 2**53 - 1
"""Largest integer that a double holds exactly together with its neighbours (RFC 7493, section 2.2)."""
_TASK_SUPPORT = frozenset({"forbidden", "optional", "required"})
_CACHED_CHARACTERS = 8 * 1024
_CACHED = 1024


class NotCanonical(ValueError):
    """The definition has no canonical form: parsers may read it differently. The message says what is in the way."""


@dataclass(frozen=True, slots=True)
class Definition:
    """One tool as it can be approved."""

    hash: str
    description: str
    shown: str
    """All that a connection gets of the tool whose tools are pinned: what was hashed, in its canonical form, and
    whether it is to be called as a task."""


def define(text: str) -> Definition:
    """The definition of a tool from the text of its object in a list. Raises `NotCanonical`."""
    if len(text) > MAX_CHARACTERS:
        raise NotCanonical(f"it takes more than {MAX_CHARACTERS} characters")
    return _remembered(text) if len(text) <= _CACHED_CHARACTERS else _define(text)


def opaque(text: str) -> str:
    """What stands for a definition without canonical form: it changes when the text does."""
    return OPAQUE_PREFIX + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def surface_hash(hashes: Iterable[str]) -> str:
    """The hash of a whole surface: of the canonical JSON of the array of its definitions' hashes, each once, sorted.

    Neither the order of a list nor a definition that is there twice makes a difference.

    >>> surface_hash(["sha256:b", "sha256:a", "sha256:b"]) == surface_hash(["sha256:a", "sha256:b"])
    True
    """
    return _digest(rfc8785.dumps(sorted(set(hashes))))


def approves(approved: frozenset[str]) -> Callable[[str, str], str | None]:
    """What is shown of a tool, by its name and the text of its object, where only these definitions may be seen."""

    def shown(_name: str, text: str) -> str | None:
        try:
            definition = define(text)
        except NotCanonical:
            return None
        return definition.shown if definition.hash in approved else None

    return shown


def _define(text: str) -> Definition:
    tool = _decode(text)
    canonical = _canonical({member: tool[member] for member in COVERED if member in tool})
    description = tool.get("description")
    return Definition(
        hash=_digest(canonical),
        description=description if isinstance(description, str) else "",
        shown=canonical.decode()[:-1] + _execution(tool) + "}",
    )


@lru_cache(maxsize=_CACHED)
def _remembered(text: str) -> Definition:
    # An exception is not remembered, and costs the same each time.
    return _define(text)


def _digest(canonical: bytes) -> str:
    return PREFIX + hashlib.sha256(canonical).hexdigest()


@dataclass(frozen=True, slots=True)
class _Unsafe:
    """An integer that is not the same number to every parser."""

    digits: str


def _integer(digits: str) -> int | _Unsafe:
    # Counted first: Python refuses to convert thousands of digits.
    safe = len(digits) <= 17 and abs(int(digits)) <= _LARGEST
    return int(digits) if safe else _Unsafe(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=with_repeats, parse_constant=refuse_constant, parse_int=_integer)


def _decode(text: str) -> dict[str, Any]:
    try:
        tool: Any = _DECODER.decode(text)
    except RecursionError:
        raise NotCanonical(f"it is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise NotCanonical(f"it is not JSON: {error}") from None
    if not isinstance(tool, dict):
        raise NotCanonical("it is not an object")
    if isinstance(tool, Repeated):
        raise NotCanonical("a member is there twice")
    if "name" not in tool:
        raise NotCanonical("it has no name")
    return cast("dict[str, Any]", tool)


def _canonical(covered: dict[str, Any]) -> bytes:
    try:
        # Bounded by number, not by what is left of the stack: all processes have to agree.
        if deeper_than(covered, MAX_DEPTH):
            raise NotCanonical(f"it is nested deeper than {MAX_DEPTH} levels")
        _refuse_ambiguous(covered)
        return rfc8785.dumps(covered)
    except UnicodeEncodeError:
        # A ValueError that the library lets through where it sorts members by their names.
        raise NotCanonical("a lone surrogate is not a character") from None
    except rfc8785.FloatDomainError:
        raise NotCanonical("a number is larger than a double can hold") from None
    except rfc8785.CanonicalizationError as error:
        lone = isinstance(error.__cause__, UnicodeEncodeError)
        raise NotCanonical("a lone surrogate is not a character" if lone else str(error)) from None


def _refuse_ambiguous(value: Any) -> None:
    pending = [value]
    while pending:
        each = pending.pop()
        if isinstance(each, Repeated):
            raise NotCanonical("a member is there twice")
        if isinstance(each, _Unsafe):
            raise NotCanonical(f"the integer {each.digits[:32]} is beyond 2^53 - 1, where parsers begin to differ")
        if isinstance(each, dict):
            pending.extend(cast("dict[str, Any]", each).values())
        elif isinstance(each, list):
            pending.extend(cast("list[Any]", each))


def _execution(tool: dict[str, Any]) -> str:
    """The one member beyond the hashed ones that is passed on: one of three words, by which clients call."""
    execution = tool.get("execution")
    support = cast("dict[str, Any]", execution).get("taskSupport") if isinstance(execution, dict) else None
    if not isinstance(support, str) or support not in _TASK_SUPPORT:
        return ""
    return f',"execution":{{"taskSupport":"{support}"}}'
