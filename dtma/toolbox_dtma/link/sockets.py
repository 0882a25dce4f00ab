"""Unix sockets of DTMA's: whose they are, and who may open them."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def bound(path: Path, group: int) -> socket.socket:
    """A new socket at this path, in place of an old one, for this user and a group alone. Raises `OSError`."""
    path.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Nobody else may connect between bind and chmod.
        previous_mask = os.umask(0o177)
        try:
            made.bind(str(path))
        finally:
            os.umask(previous_mask)
        os.chown(path, -1, group)
        path.chmod(0o660)
    except BaseException:
        made.close()
        path.unlink(missing_ok=True)
        raise
    return made
