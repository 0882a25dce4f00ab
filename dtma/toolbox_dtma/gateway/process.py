"""What supervisor and worker share as processes: logging and dying together."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys

import structlog
from structlog.typing import FilteringBoundLogger

_PR_SET_PDEATHSIG = 1
_M_MMAP_THRESHOLD = -3
_MMAP_THRESHOLD_BYTES = 128 * 1024
_QUOTING_LOGGERS = ("aiohttp", "httpx2", "httpcore2", "mcp", "client")
"""Libraries whose messages quote what a client or a server sent."""


def configure_logging(role: str) -> FilteringBoundLogger:
    """JSON lines on standard error."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    for name in _QUOTING_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    return structlog.get_logger().bind(part="gateway", role=role, pid=os.getpid())


def die_with_parent(parent: int) -> bool:
    """Ask the kernel for SIGKILL when the parent ends. False if it has ended already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    return os.getppid() == parent


def keep_large_buffers_apart() -> None:
    """Have the C library map buffers of 128 KiB and more one by one for good (mallopt(3), M_MMAP_THRESHOLD).

    The event loop has a buffer of 256 KiB for each TLS connection, of which a page or two are ever written. Left alone,
    glibc raises its threshold when the first of them is freed, and puts the others into the heap: into pages that
    were used before, which then count for each connection (some 19 KiB each). A C library without that call maps them
    anyway.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES) == 0:
        raise OSError("mallopt(M_MMAP_THRESHOLD) failed")
