"""Runs a command while a Docker engine is there: `python -m localstack.with_engine COMMAND …`.

Test processes that run side by side share the machine's engine. Where none runs, none of them may own the one they
start: it would end with the first of them.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from localstack import docker
from localstack.progress import SetupError
from localstack.stack import workspace


def run(argv: Sequence[str]) -> int:
    """The command's exit code, as a shell gives it. SIGTERM is passed on; Ctrl-C reaches the command by itself."""
    command: subprocess.Popen[bytes] | None = None
    asked: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if command is None:
            asked.append(number)
        else:
            command.send_signal(number)

    def leave(_number: int, _frame: FrameType | None) -> None:
        pass

    # Before there is a command: one that came in between would end us, and not the command.
    signal.signal(signal.SIGTERM, pass_on)
    # Not SIG_IGN, which the command would inherit.
    signal.signal(signal.SIGINT, leave)
    command = subprocess.Popen(argv)
    for number in asked:
        command.send_signal(number)
    code = command.wait()
    return code if code >= 0 else 128 - code


def main(argv: Sequence[str]) -> int:
    """Ensures the engine, and runs the command."""
    if not argv:
        print("usage: python -m localstack.with_engine COMMAND …", file=sys.stderr)
        return 2
    try:
        with workspace() as supervisor:
            docker.ensure(supervisor)
            return run(argv)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
