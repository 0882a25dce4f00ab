"""What an object keeps in memory: the same in every process, whatever else runs or was loaded there."""

from __future__ import annotations

import gc
import sys
from types import BuiltinFunctionType, FunctionType, ModuleType

_OF_THE_PROGRAM = (type, ModuleType, FunctionType, BuiltinFunctionType)


def reachable_bytes(root: object) -> int:
    """Bytes of an object and of all that it refers to, each counted once; code and classes are not."""
    counted: set[int] = set()
    found: list[object] = [root]
    total = 0
    while found:
        item = found.pop()
        if id(item) in counted or isinstance(item, _OF_THE_PROGRAM):
            continue
        counted.add(id(item))
        total += sys.getsizeof(item)
        found += gc.get_referents(item)
    return total
