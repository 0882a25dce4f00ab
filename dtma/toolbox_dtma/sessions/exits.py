"""What is said of a process that has ended."""

from __future__ import annotations

from toolbox_dtma.engine.api import SessionExit

_KILLED = 137
"""Exit code of a process that SIGKILL has ended."""


def exit_message(exit_: SessionExit) -> str:
    """A sentence for whoever used the process."""
    if exit_.out_of_memory:
        return "The server's process used more memory than its limit and was killed."
    if exit_.code is None:
        return "The server's process has ended."
    if exit_.code == _KILLED:
        # Docker misses some of those that the kernel kills: a control group can be gone before its event is read.
        return f"The server's process was killed (exit code {exit_.code}), which may be for more memory than its limit."
    return f"The server's process has exited with code {exit_.code}."
