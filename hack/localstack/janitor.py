"""Removes what a run leaves behind: started with the run, acts when the run closes its pipe or dies.

Reads one JSON task per line and does them in order at the end of the input, those with `"late"` last:

    {"kill": TOKEN}      ends every process that carries the token in its environment, grandchildren included
    {"label": "K=V"}     removes containers and networks of the Docker engine with that label
    {"images": PATTERN}  untags images of the Docker engine whose reference matches
    {"rules": TEXT}      removes firewall rules and chains whose specification contains TEXT
    {"engine": TOKEN}    ends a Docker engine whose processes carry the token, and whatever it started
    {"cgroup": NAME}     removes empty control groups of this name at the top, and those below them
    {"mounts": PATH}     unmounts everything at and below a path
    {"netns": NAME}      removes a network namespace
    {"blackhole": NET}   removes a blackhole route
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


def _parents() -> dict[int, int]:
    """The parent of every process."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The name before it, in parentheses, may hold anything.
                found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    return found


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def family(token: str) -> set[int]:
    """Processes that carry the token, and their descendants: containers have an environment of their own."""
    parents = _parents()
    found = set(carriers(token))
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def kill_engine(token: str, grace: float = GRACE) -> None:
    """SIGTERM to the daemon, so that it clears up after its containers; then SIGKILL to whatever is left."""
    daemons = [pid for pid in carriers(token) if _name(pid) == "dockerd"] if grace > 0 else []
    for pid in daemons:
        for number in (signal.SIGTERM, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    begin = time.monotonic()
    while time.monotonic() - begin < grace and any(pid in carriers(token) for pid in daemons):
        time.sleep(0.05)
    while pids := family(token):
        if time.monotonic() - begin > 3 * GRACE:
            raise RuntimeError(f"processes {sorted(pids)} do not end")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def remove_cgroups(name: str) -> None:
    """Control groups that an engine left behind when it was killed; one that is in use stays."""
    for top in (*Path("/sys/fs/cgroup").glob(name), *Path("/sys/fs/cgroup").glob(f"*/{name}")):
        if top.is_dir() and not top.is_symlink():
            for folder, _, _ in os.walk(top, topdown=False):
                Path(folder).rmdir()


def unmount(path: str) -> None:
    """Unmounts whatever is mounted at or below a path, the innermost first."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    # Blanks are written as octal numbers there.
    places = [line.split()[1].replace("\\040", " ") for line in lines]
    for place in reversed([place for place in places if place == path or place.startswith(f"{path}/")]):
        subprocess.run(["umount", "--lazy", place], capture_output=True, timeout=20, check=True)


def _ip(*args: str) -> None:
    done = subprocess.run(["ip", *args], capture_output=True, text=True, timeout=20, check=False)
    if done.returncode != 0:
        # Also when it is gone already, which is what was wanted.
        print(f"ip {' '.join(args)}: {done.stderr.strip()}", flush=True)


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
            case "engine":
                kill_engine(value)
            case "cgroup":
                remove_cgroups(value)
            case "mounts":
                unmount(value)
            case "netns":
                _ip("netns", "delete", value)
            case "blackhole":
                _ip("route", "delete", "blackhole", value)
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
