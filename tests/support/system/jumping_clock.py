"""`python -m support.system.jumping_clock FILE run …`: the operator with a wall clock some seconds off, as FILE says.

The file is read again each time that somebody asks for the time, so the clock can jump. The monotonic clock is real.
"""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from pathlib import Path

from toolbox_operator import __main__ as operator
from toolbox_operator.runtime import SystemClock


def main() -> int:
    """Run the operator's own `main` with the other clock."""
    file = Path(sys.argv[1])

    class JumpingClock(SystemClock):
        def now(self) -> datetime:
            return super().now() + timedelta(seconds=float(file.read_text()))

    operator.SystemClock = JumpingClock
    return operator.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
