"""What a worker asks of its C library."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such threshold")

IN_HEAP = """
import ctypes, re, sys
from toolbox_dtma.gateway.process import keep_large_buffers_apart
if sys.argv[1] == "apart":
    keep_large_buffers_apart()
first = bytearray(256 * 1024)
del first
second = bytearray(256 * 1024)
address = ctypes.addressof(ctypes.c_char.from_buffer(second))
heap = next(line for line in open("/proc/self/maps") if line.rstrip().endswith("[heap]"))
begin, end = (int(part, 16) for part in re.match("([0-9a-f]+)-([0-9a-f]+) ", heap).groups())
print(begin <= address < end)
"""


def _in_heap(mode: str) -> str:
    argv = [sys.executable, "-c", IN_HEAP, mode]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def test_large_buffers_stay_out_of_the_heap_also_after_the_first_was_freed() -> None:
    assert _in_heap("as it comes") == "True", "this test would pass without the call"
    assert _in_heap("apart") == "False"
