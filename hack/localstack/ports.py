"""Free loopback ports."""

from __future__ import annotations

import random
import socket
import threading

# Below the kernel's usual range for outgoing connections (32768 up), so that no client takes a port
# between the moment it is chosen and the moment the server binds it.
FIRST, LAST = 21000, 31999

_given: set[int] = set()
_lock = threading.Lock()
_share = range(FIRST, LAST + 1)


def take_share(number: int, of: int) -> None:
    """Give out only every `of`-th port from now on, from the `number`-th.

    What a process beside this one gives out would be free as well until its server binds it.
    """
    global _share
    _share = range(FIRST + number, LAST + 1, of)


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on and that this process has not given out before."""
    with _lock:
        for _ in range(500):
            port = random.choice(_share)
            if port in _given:
                continue
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            _given.add(port)
            return port
    raise RuntimeError(f"no free port between {FIRST} and {LAST}")


def accepts(port: int, address: str = "127.0.0.1") -> bool:
    """Whether something listens on this port."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((address, port)) == 0
