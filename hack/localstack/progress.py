"""Lines on the screen that say what is being done, so that nobody watches a silent terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

HEARTBEAT = 5.0
"""Seconds between two lines of a step that takes long."""

_started = time.monotonic()
_lock = threading.Lock()
_steps: set[int] = set()
"""Process groups of the commands that steps wait for."""


class SetupError(Exception):
    """Something the stack needs is missing or failed; the message says what to do about it."""


def say(text: str) -> None:
    """One line with the seconds since the start."""
    with _lock:
        print(f"[{time.monotonic() - _started:6.1f}s] {text}", file=sys.stderr, flush=True)


def last_line(log: Path) -> str:
    """The last non-empty line of a log, at most 100 characters; empty if there is none."""
    lines = tail(log, 1)
    return lines[-1].strip()[:100] if lines else ""


def tail(log: Path, count: int) -> list[str]:
    """The last non-empty lines of a log; reads at most its last 64 KiB."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 65536))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]


@contextmanager
def step(title: str, detail: Callable[[], str] = str) -> Generator[None]:
    """Says the title, then every few seconds that it still runs (with `detail()`), then how long it took."""
    begin = time.monotonic()
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT):
            extra = detail()
            say(f"{title}: {time.monotonic() - begin:.0f}s{': ' + extra if extra else ''}")

    say(f"{title} ...")
    ticker = threading.Thread(target=beat, name=f"progress {title}", daemon=True)
    ticker.start()
    try:
        yield
    finally:
        done.set()
        ticker.join()
    say(f"{title}: done in {time.monotonic() - begin:.1f}s")


def run_step(
    title: str,
    argv: Sequence[str],
    log: Path,
    *,
    seconds: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> None:
    """Runs a command whose output goes to `log`, with heartbeats; a failure carries the log's last lines."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with step(title, lambda: last_line(log)), log.open("ab") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=env,
            start_new_session=True,
        )
        with _running_step(process):
            try:
                code = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired as error:
                raise SetupError(f"{title}: not done after {seconds:.0f}s; log: {log}") from error
    if code != 0:
        last = "\n  ".join(tail(log, 15))
        raise SetupError(f"{title}: {argv[0]} exited with {code}; log {log}:\n  {last}")


@contextmanager
def _running_step(process: subprocess.Popen[bytes]) -> Generator[None]:
    with _lock:
        _steps.add(process.pid)
    try:
        yield
    finally:
        with _lock:
            _steps.discard(process.pid)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=30)


def cancel_steps() -> None:
    """Ends the commands of all running steps, so that the threads that wait for them come back."""
    with _lock:
        running = list(_steps)
    for pid in running:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGTERM)


def capture(
    argv: Sequence[str],
    *,
    seconds: float = 30.0,
    stdin: str | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Standard output of a command that must succeed within `seconds`."""
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            cwd=cwd,
            env=env,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SetupError(f"{' '.join(argv)}: no answer within {seconds:.0f}s") from error
    if done.returncode != 0:
        raise SetupError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
