"""A Docker engine of one test host: it can be killed, stopped, hung and started again, unlike the machine's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from localstack import janitor
from localstack.docker import running_version
from localstack.processes import Child, Command, Supervisor
from localstack.progress import capture
from support.poll import until


class FarEngine:
    """One `dockerd` with folders, socket and containerd of its own."""

    def __init__(self, supervisor: Supervisor, folder: Path, prefix: Sequence[str], name: str) -> None:
        """Nothing runs before `start`. `prefix` leads into its network; `folder` must not exist."""
        self.folder = folder
        self.data_root = folder / "data"
        self.socket = folder / "docker.sock"
        self._supervisor = supervisor
        self._prefix = prefix
        self._name = name
        self._token = f"{name}-{supervisor.token}"
        self._child: Child | None = None
        self.data_root.mkdir(parents=True)
        # The mounts after the engine, which unmounts most of them itself.
        self._clean_up = {"engine": self._token, "cgroup": name, "mounts": str(folder)}
        supervisor.leave_to_janitor(self._clean_up)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"unix://{self.socket}"

    @property
    def command_line(self) -> tuple[str, ...]:
        """The command line client that asks this engine."""
        return ("docker", "--host", self.url)

    def docker(self, *arguments: str, seconds: float = 60.0) -> str:
        """Runs the command line client; its standard output."""
        return capture([*self.command_line, *arguments], seconds=seconds)

    def start(self) -> None:
        """Starts it and waits until it answers."""
        argv = ["dockerd", "--data-root", str(self.data_root), "--exec-root", str(self.folder / "run")]
        argv += ["--pidfile", str(self.folder / "docker.pid"), "--host", self.url]
        argv += ["--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", f"/{self._name}"]
        # Of its own also where a containerd of the machine is found and used.
        argv += ["--containerd-namespace", self._name, "--containerd-plugins-namespace", f"{self._name}-plugins"]
        command = Command(f"dockerd-{self._name}", argv, death_signal=None, prefix=self._prefix)
        self._child = self._supervisor.start(command, token=self._token)
        self._child.wait_until(self.answers, 60, "answering")

    @property
    def log(self) -> Path:
        """What it wrote, over all its starts."""
        return self._started.log

    def answers(self) -> bool:
        """Whether it can be asked."""
        return running_version(self.socket) is not None

    def load(self, image: str) -> None:
        """Copies an image of the machine's engine."""
        with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saving:
            assert saving.stdout is not None
            subprocess.run(
                [*self.command_line, "load", "--quiet"],
                stdin=saving.stdout,
                check=True,
                capture_output=True,
                timeout=120,
            )
        assert saving.returncode == 0

    def kill(self) -> None:
        """SIGKILL: containers run on until it is started again."""
        self._started.kill()
        self._without_containerd()

    def stop(self) -> None:
        """SIGTERM to itself only: it stops its containers first, and needs its containerd for that."""
        os.kill(self._started.pid, signal.SIGTERM)
        until("the engine ended", self.running, lambda runs: not runs, seconds=60)
        self._without_containerd()
        # One that ends between a container's end and its own cleaning up leaves the file system mounted, and the
        # next one can never remove it (Docker 20.10).
        janitor.unmount(str(self.data_root / "overlay2"))

    def hang(self) -> None:
        """SIGSTOP: connections are taken, and nothing is answered. To be ended by `go_on`."""
        os.kill(self._started.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        os.kill(self._started.pid, signal.SIGCONT)

    def running(self) -> bool:
        """Whether its process is there."""
        return self._child is not None and self._child.running()

    def power_off(self) -> None:
        """Ends it and its containers at once, with what a kernel keeps in memory of them."""
        janitor.kill_engine(self._token, grace=0.0)
        self._without_containerd()
        janitor.unmount(str(self.folder / "data"))
        janitor.unmount(str(self.folder / "run"))
        shutil.rmtree(self.folder / "run")

    def close(self) -> None:
        """Ends it and everything it started, and unmounts what it leaves."""
        janitor.do(self._clean_up)

    @property
    def _started(self) -> Child:
        assert self._child is not None, "the engine was not started"
        return self._child

    def _without_containerd(self) -> None:
        """Waits for the end of its containerd, which another daemon would take for its own, and lose a moment later."""
        file = self.folder / "run" / "containerd" / "containerd.pid"
        if not file.exists():
            return
        pid = int(file.read_text())
        until("its containerd gone", lambda: _state(pid), lambda state: state in (None, "Z"))
        # An init process that is slow to reap leaves a number behind that looks alive.
        file.unlink(missing_ok=True)


def _state(pid: int) -> str | None:
    """The letter the kernel gives for a process; None when there is no such."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return None
