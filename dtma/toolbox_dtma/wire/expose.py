"""What of a server is visible and usable: the one glob function of the project."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated

from pydantic import Field, StringConstraints

from toolbox_dtma.wire.base import Request

Pattern = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Patterns = Annotated[tuple[Pattern, ...], Field(max_length=256)]
ToolsHash = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in re.sub(r"\*+", "*", pattern))
    return re.compile("".join(parts), re.DOTALL)


def glob_matches(pattern: str, name: str) -> bool:
    """Whether `name` matches `pattern` as a whole; `*` is any run, `?` one code point, nothing else is special.

    Case-sensitive, on code points, without Unicode normalisation.

    >>> glob_matches("get_*", "get_time"), glob_matches("get_*", "GET_time"), glob_matches("[a]", "a")
    (True, False, False)
    """
    return _compiled(pattern).fullmatch(name) is not None


class NameFilter(Request):
    """Allow and deny globs; deny wins. An empty `allow` allows nothing.

    >>> NameFilter(allow=("get_*",), deny=("get_secret",)).allows("get_secret")
    False
    """

    allow: Patterns = ("*",)
    deny: Patterns = ()

    def allows(self, name: str) -> bool:
        """Whether a name passes this filter."""
        return not any(glob_matches(p, name) for p in self.deny) and any(glob_matches(p, name) for p in self.allow)

    @property
    def unrestricted(self) -> bool:
        """Whether this filter lets every name pass by its form: allow `["*"]`, deny `[]`."""
        return self.allow == ("*",) and not self.deny


def _hides_nothing(names: NameFilter) -> bool:
    return names.unrestricted


_LaterFilter = Annotated[NameFilter, Field(exclude_if=_hides_nothing)]
"""Older hosts know `tools` only."""


class Expose(Request):
    """What a server or a connection exposes. Absent means everything.

    >>> Expose(prompts=NameFilter(deny=("x",))).model_dump().keys() - Expose().model_dump().keys()
    {'prompts'}
    >>> "approved_hash" in Expose().model_dump()
    False
    """

    tools: NameFilter = NameFilter()
    resources: _LaterFilter = NameFilter()
    """By URI; templates by their `uriTemplate`."""
    prompts: _LaterFilter = NameFilter()
    approved_hash: Annotated[ToolsHash | None, Field(exclude_if=lambda pin: pin is None)] = None
    """Only tools as they are defined in the surface of this hash; a hash of no known surface approves none."""


def allowed_by_all(filters: Iterable[NameFilter], name: str) -> bool:
    """Whether every filter allows `name`: a server's and a connection's are evaluated, never merged."""
    return all(f.allows(name) for f in filters)
