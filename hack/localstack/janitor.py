"""Removes what a run leaves behind: started with the run, acts when the run closes its pipe or dies.

Reads one JSON task per line and does them in order at the end of the input, those with `"late"` last:

    {"kill": TOKEN}      ends every process that carries the token in its environment, grandchildren included
    {"label": "K=V"}     removes containers and networks of the Docker engine with that label
    {"images": PATTERN}  untags images of the Docker engine whose reference matches
    {"rules": TEXT}      removes firewall rules and chains whose specification contains TEXT
    {"folder": PATH}     removes a folder

Only the standard library: this process must not depend on a work folder that is being removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from localstack import firewall

GRACE = 8.0


def carriers(token: str) -> list[int]:
    """Processes whose environment holds the token; those of other users are seen only by root."""
    wanted = f"MAGIC_TOOLBOX_STACK={token}".encode()
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:  # ended meanwhile, or another user's
            continue
        if wanted in environment.split(b"\0"):
            found.append(int(entry.name))
    return found


def kill_carriers(token: str) -> None:
    """SIGTERM, then SIGKILL, until no process with the token is left."""
    begin = time.monotonic()
    terminated: set[int] = set()
    while pids := carriers(token):
        late = time.monotonic() - begin > GRACE
        if time.monotonic() - begin > 3 * GRACE:
            raise RuntimeError(f"processes {pids} do not end")
        for pid in pids:
            if pid not in terminated or late:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
                terminated.add(pid)
        time.sleep(0.05)


def _docker(*args: str) -> list[str]:
    done = subprocess.run(["docker", *args], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        # Also when no engine is running: then there is nothing of ours in it either.
        print(f"docker {' '.join(args)}: {done.stderr.strip()}", flush=True)
    return done.stdout.split()


def remove_labelled(label: str) -> None:
    """Containers with their volumes, then networks, that carry the label."""
    if containers := _docker("ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={label}"):
        _docker("rm", "--force", "--volumes", *containers)
    if networks := _docker("network", "ls", "--quiet", "--no-trunc", "--filter", f"label={label}"):
        _docker("network", "rm", *networks)


def remove_images(pattern: str) -> None:
    """Image names that match, e.g. `127.0.0.1:5000/*`; layers with another name stay."""
    form = "{{.Repository}}|{{.Tag}}|{{.Digest}}"
    for line in _docker("images", "--digests", "--filter", f"reference={pattern}", "--format", form):
        repository, tag, digest = line.split("|")
        # What was pulled by digest has no tag.
        _docker("rmi", "--force", f"{repository}@{digest}" if tag == "<none>" else f"{repository}:{tag}")


def do(task: dict[str, str]) -> None:
    """Carries out one task."""
    for kind, value in task.items():
        match kind:
            case "late":
                continue
            case "kill":
                kill_carriers(value)
            case "label":
                remove_labelled(value)
            case "images":
                remove_images(value)
            case "rules":
                firewall.remove(value)
            case "folder":
                shutil.rmtree(value, ignore_errors=True)
            case _:
                raise ValueError(f"unknown task {kind}")


def main() -> int:
    """Reads the plan until the run ends, then carries it out; one failed task does not stop the others."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    tasks: list[dict[str, str]] = [json.loads(line) for line in sys.stdin]
    failed = 0
    for task in sorted(tasks, key=lambda task: "late" in task):
        try:
            do(task)
        except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
            failed += 1
            print(f"{task}: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
