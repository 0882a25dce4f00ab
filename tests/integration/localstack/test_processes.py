"""Nothing that a run starts outlives it, however the run ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from localstack.janitor import carriers
from localstack.processes import Child, Command, Supervisor
from localstack.progress import SetupError

pytestmark = pytest.mark.integration

# A run with a child, a grandchild in a session of its own, and a state folder; it says when all of them are there.
RUN = """
import sys, threading, time
from localstack import stack
from localstack.processes import Command
with stack.workspace("magic-toolbox-crash-") as supervisor:
    inner = "import subprocess, sys; subprocess.Popen(['sleep', '600'], start_new_session=True).wait()"
    starter = threading.Thread(target=lambda: supervisor.start(Command("child", [sys.executable, "-c", inner])))
    starter.start()
    starter.join()
    from localstack.janitor import carriers
    while len(carriers(supervisor.token)) < 2:
        time.sleep(0.02)
    print(supervisor.token, supervisor.folder, supervisor._janitor.pid, flush=True)
    time.sleep(600)
"""


def wait_for(condition: Callable[[], bool], seconds: float, what: Callable[[], object]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"last seen: {what()}"
        time.sleep(0.05)


def start_run() -> tuple[subprocess.Popen[str], str, Path, int]:
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    run = subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE, text=True, env=environment)
    assert run.stdout is not None
    token, folder, janitor = run.stdout.readline().split()
    return run, token, Path(folder), int(janitor)


def end(run: subprocess.Popen[str]) -> None:
    run.kill()
    run.wait(10)
    if run.stdout is not None:
        run.stdout.close()


def test_a_killed_run_leaves_no_process_and_no_folder() -> None:
    run, token, folder, _ = start_run()
    try:
        assert len(carriers(token)) == 2
    finally:
        end(run)
    wait_for(lambda: not carriers(token) and not folder.exists(), 20, lambda: (carriers(token), folder.exists()))


def test_children_die_with_the_run_even_when_its_janitor_was_killed_too() -> None:
    run, token, folder, janitor = start_run()
    try:
        (child,) = [pid for pid in carriers(token) if _parent(pid) == run.pid]
        os.kill(janitor, signal.SIGKILL)
    finally:
        end(run)
    try:
        wait_for(lambda: child not in carriers(token), 10, lambda: carriers(token))
    finally:
        for pid in carriers(token):
            os.kill(pid, signal.SIGKILL)
        subprocess.run(["rm", "-r", str(folder)], check=True)


def _parent(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[1])


def test_a_child_survives_the_thread_that_started_it(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs") as supervisor:
        started: list[Child] = []
        command = Command("sleeper", ["sleep", "600"])
        starter = threading.Thread(target=lambda: started.append(supervisor.start(command)))
        starter.start()
        starter.join()
        with pytest.raises(subprocess.TimeoutExpired):
            subprocess.run(["tail", f"--pid={started[0].pid}", "-f", "/dev/null"], timeout=0.5, check=False)
        assert started[0].running()
    assert not started[0].running()


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs") as supervisor:
        script = "trap '' TERM; echo set; while :; do sleep 1; done"
        child = supervisor.start(Command("stubborn", ["sh", "-c", script]))
        child.wait_until(lambda: "set" in child.log.read_text(), 10, "set")
        child.stop(grace=0.2)
        assert not child.running()


def test_a_child_that_dies_early_explains_itself_by_its_log(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs") as supervisor:
        child = supervisor.start(Command("broken", ["sh", "-c", "echo bad flag; exit 7"]))
        with pytest.raises(SetupError, match=r"broken: exited with 7 before ready(.|\n)*bad flag"):
            child.wait_until(lambda: False, 10, "ready")


def test_the_environment_of_the_caller_is_not_inherited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_CREDENTIAL", "secret")
    with Supervisor(tmp_path / "logs") as supervisor:
        child = supervisor.start(Command("env", ["sh", "-c", "env; echo finished"]))
        wait_for(lambda: "finished" in child.log.read_text(), 10, child.log.read_text)
        assert "SOME_CREDENTIAL" not in child.log.read_text()
