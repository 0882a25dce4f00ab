"""W3C Trace Context: which trace a call belongs to. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?", re.ASCII)


def trace_id(values: Sequence[object]) -> str | None:
    """The trace id of a `traceparent` (Trace Context level 1, section 3.2), given with all its values.

    None unless there is exactly one that is well-formed: a wrong one is to be ignored, not to be refused.
    """
    found = _TRACEPARENT.fullmatch(values[0]) if len(values) == 1 and isinstance(values[0], str) else None
    if found is None:
        return None
    version, trace, parent, more = found.groups()
    # Later versions may add fields behind; the first has none.
    if version == "ff" or (version == "00" and more is not None) or not trace.strip("0") or not parent.strip("0"):
        return None
    return trace
