"""Child processes that never outlive the run, also when the run is killed.

Three things stop a child: `Supervisor.close()`; the kernel, by the parent-death signal; and the janitor, a small
process that outlives a killed run just long enough to remove what it left (see `localstack.janitor`).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from localstack.progress import SetupError, say, tail

MARK_VARIABLE = "MAGIC_TOOLBOX_STACK"
"""Environment variable by which every process of one run, grandchildren included, can be recognised."""

POLL = 0.05


@dataclass(frozen=True, slots=True)
class User:
    """The ids a child runs under; it gets no supplementary groups."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Command:
    """One child process to start."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    """Added to a minimal environment (PATH, HOME, LANG), nothing else is inherited."""
    cwd: Path | None = None
    user: User | None = None
    death_signal: str | None = "KILL"
    """What the kernel sends when this run dies; None leaves the process to the janitor."""
    log_mode: int = 0o600
    prefix: Sequence[str] = ()
    """What executes all this, still as root: `nsenter --net=…`, for a process of another network."""


class Child:
    """A started process with its log."""

    def __init__(self, command: Command, process: subprocess.Popen[bytes], log: Path) -> None:
        self.command = command
        self.log = log
        self._process = process

    @property
    def pid(self) -> int:
        """Process id, which is the process group's id too."""
        return self._process.pid

    def running(self) -> bool:
        """Whether it has not exited."""
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How it ended, negative for a signal; None while it runs."""
        return self._process.poll()

    def explain(self, what: str) -> SetupError:
        """An error about this child that shows the end of its log."""
        last = "\n  ".join(tail(self.log, 15))
        return SetupError(f"{self.command.name}: {what}; last lines of {self.log}:\n  {last}")

    def wait_until(self, ready: Callable[[], bool], seconds: float, what: str) -> None:
        """Waits for a condition; fails at once when the process exits, and at the deadline."""
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.running():
                raise self.explain(f"exited with {self._process.returncode} before {what}")
            if time.monotonic() > deadline:
                raise self.explain(f"not {what} within {seconds:.0f}s")
            time.sleep(POLL)

    def kill(self) -> None:
        """SIGKILL to the process group, and waits for its end: the crash of tests."""
        if self.running():
            self._signal(signal.SIGKILL)
            self._process.wait(timeout=10)

    def stop(self, grace: float = 10.0) -> None:
        """SIGTERM, after `grace` seconds SIGKILL, both to the whole process group."""
        if not self.running():
            # Its number may belong to somebody else by now; members of its group that are left are the janitor's.
            return
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=grace)
        except subprocess.TimeoutExpired:
            self.kill()

    def _signal(self, number: signal.Signals) -> None:
        # The group can be empty already; that is what is wanted.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


class _Spawner:
    """Starts every child from one thread that lives as long as the interpreter.

    The kernel ties the parent-death signal to the *thread* that forked: a child started from a worker thread
    would be killed when that worker ends.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], subprocess.Popen[bytes]], Future[subprocess.Popen[bytes]]]]
        self._jobs = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def start(self, job: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="spawner", daemon=True)
                self._thread.start()
        future: Future[subprocess.Popen[bytes]] = Future()
        self._jobs.put((job, future))
        return future.result(timeout=30)

    def _work(self) -> None:
        while True:
            job, future = self._jobs.get()
            try:
                future.set_result(job())
            except OSError as error:
                future.set_exception(error)


_spawner = _Spawner()


def base_environment() -> dict[str, str]:
    """What children inherit: enough to find programs, and no setting of the user's shell."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TZ") if name in os.environ}
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **kept}


def launcher(command: Command) -> list[str]:
    """The argument vector with the switch of user and the death signal in front."""
    return [*command.prefix, *_switched(command)]


def _switched(command: Command) -> list[str]:
    prefix: list[str] = []
    if command.death_signal is not None:
        prefix += ["--pdeathsig", command.death_signal]
    if command.user is not None and os.geteuid() == 0:
        prefix += [f"--reuid={command.user.uid}", f"--regid={command.user.gid}", "--clear-groups"]
        # setpriv still has root's capabilities when it executes its argument, and would reach programs that the
        # user cannot; `env` has none.
        return ["setpriv", *prefix, "--", "/usr/bin/env", *command.argv]
    return (["setpriv", *prefix, "--"] if prefix else []) + list(command.argv)


class Supervisor:
    """Starts children, keeps their logs in one folder, and stops them in reverse order."""

    def __init__(self, logs: Path, keep: Path | None = None) -> None:
        """`keep`: where a copy of the logs stays when the run fails; the logs themselves go with the run."""
        self.logs = logs
        self._keep = keep
        self.token = secrets.token_hex(16)
        self._children: list[Child] = []
        self._janitor: subprocess.Popen[bytes] | None = None
        self._outer_mark: str | None = None
        self._failure: BaseException | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        # Whatever this process runs from here on, build tools too, can be found by the janitor.
        self._outer_mark = os.environ.get(MARK_VARIABLE)
        os.environ[MARK_VARIABLE] = self.token
        environment = {**base_environment(), "PYTHONPATH": str(Path(__file__).parent.parent)}
        with (self.logs / "janitor.log").open("ab") as log:
            self._janitor = subprocess.Popen(
                [sys.executable, "-m", "localstack.janitor"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self.leave_to_janitor({"kill": self.token})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(value, SetupError):
            self.fail(value)
        self.close()

    @property
    def _plan(self) -> IO[bytes]:
        if self._janitor is None or self._janitor.stdin is None:
            raise RuntimeError("the supervisor is not open")
        return self._janitor.stdin

    def leave_to_janitor(self, task: Mapping[str, str], *, late: bool = False) -> None:
        """Adds a clean-up that the janitor does at the end, or right after a crash; those marked late come last."""
        with self._lock:
            self._plan.write(json.dumps({**task, **({"late": "yes"} if late else {})}).encode() + b"\n")
            self._plan.flush()

    def start(self, command: Command, *, token: str | None = None) -> Child:
        """Starts a process in its own session; its output goes to `<logs>/<name>.log`."""
        if self._janitor is None:
            raise SetupError(f"{command.name}: not started, this run is being stopped")
        environment = {**base_environment(), **command.env, MARK_VARIABLE: token or self.token}
        log = self.logs / f"{command.name}.log"

        def job() -> subprocess.Popen[bytes]:
            with log.open("ab") as output:
                log.chmod(command.log_mode)
                return subprocess.Popen(
                    launcher(command),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    cwd=command.cwd,
                    start_new_session=True,
                )

        child = Child(command, _spawner.start(job), log)
        with self._lock:
            self._children.append(child)
        return child

    def fail(self, error: BaseException) -> BaseException:
        """Remembers what made the run fail; gives the first one."""
        with self._lock:
            self._failure = self._failure or error
            return self._failure

    @property
    def folder(self) -> Path:
        """The run's state folder, which holds the logs."""
        return self.logs.parent

    def keep_logs(self) -> None:
        """Copies the logs of all parts, as they are now, to where they outlast the run; replaces an older copy."""
        if self._keep is None:
            return
        shutil.rmtree(self._keep, ignore_errors=True)
        shutil.copytree(self.logs, self._keep)
        say(f"the logs of all parts are kept in {self._keep}")

    def children(self) -> list[Child]:
        """Everything started so far, in order."""
        with self._lock:
            return list(self._children)

    def close(self) -> None:
        """Stops all children, last started first, then lets the janitor remove the rest and waits for it."""
        children = self.children()
        for child in reversed(children):
            # The others are the janitor's: it needs them for the clean-up (a Docker engine) and ends them last.
            if child.command.death_signal is not None:
                child.stop()
        with self._lock:
            self._children.clear()
            janitor, self._janitor = self._janitor, None
        if janitor is None or janitor.stdin is None:
            return
        if isinstance(self._failure, SetupError):
            self.keep_logs()
        if self._outer_mark is None:
            os.environ.pop(MARK_VARIABLE, None)
        else:
            os.environ[MARK_VARIABLE] = self._outer_mark
        janitor.stdin.close()
        janitor.wait(timeout=90)
        for child in children:
            child.stop()
