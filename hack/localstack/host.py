"""A toolbox host on this machine: DTMA as root, its gateway under a uid of its own."""

from __future__ import annotations

import os
import ssl
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import yaml

from localstack import runtime
from localstack.kubernetes import REPOSITORY, Manifest
from localstack.ports import accepts, free_port
from localstack.processes import Child, Command, Supervisor, User
from localstack.progress import SetupError, capture, step
from toolbox_dtma.engine.names import LABEL_HOST, HostNames
from toolbox_dtma.state.files import read_record
from toolbox_dtma.state.records import HostRecord

GATEWAY_USER = User(61750, 61750)
"""Unprivileged, without a name, a home or any group: in particular not in the group of the Docker socket."""

NAME = "tbx-1"
NAMESPACE = "mcp-system"
DTMA = "toolbox_dtma"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a host of the local stack may vary in."""

    name: str = NAME
    namespace: str = NAMESPACE
    gateway_workers: int = 1
    address: str = "127.0.0.1"
    docker_url: str | None = None
    """Its Docker engine; the machine's by default."""
    prefix: Sequence[str] = ()
    """What executes its processes: `nsenter --net=…`, for a host in a network of its own."""
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    """Added to that of `init` and DTMA."""
    wrapper: Sequence[str] = ()
    """What executes DTMA and gateway, under their own users."""
    serve_module: str = DTMA
    """What is started instead of `python -m toolbox_dtma serve`, with the same arguments; it can have no broker."""


class Host:
    """One DTMA with its gateway; each can be stopped, killed and started again."""

    def __init__(self, supervisor: Supervisor, folder: Path, settings: Settings | None = None) -> None:
        self._supervisor = supervisor
        self.settings = settings or Settings()
        self.folder = folder
        self.state_dir = folder / "state"
        self.gateway_dir = folder / "gateway"
        self.runtime_dir = folder / "run"
        self.management_port = free_port()
        self.gateway_port = free_port()
        self.manifests: list[Manifest] = []
        self.dtma: Child | None = None
        self.gateway: Child | None = None
        self._shared_runtime: runtime.Runtime | None = None

    @property
    def _env(self) -> dict[str, str]:
        return {"PYTHONPATH": str(REPOSITORY / "dtma"), **self.settings.environment}

    def _runtime(self) -> runtime.Runtime:
        """Python that the gateway's user can run: of the gateway, and of DTMA, whose session broker is this user's."""
        if self._shared_runtime is None:
            self._shared_runtime = runtime.for_user(GATEWAY_USER)
        return self._shared_runtime

    def _log(self, part: str) -> str:
        """How a process and its log are called: those of further hosts by the host's name too."""
        return part if self.settings.name == NAME else f"{part}-{self.settings.name}"

    @property
    def host_id(self) -> str:
        """The UUID that `init` made, by which everything of this host is labelled."""
        return read_record(self.state_dir / "host.json", HostRecord).host_id

    @property
    def ca_file(self) -> Path:
        """The authority of both endpoints, taken from the printed Secret."""
        return self.folder / "ca.crt"

    def init(self) -> None:
        """Makes keys, certificates and token; keeps the Toolbox and Secrets it printed in `manifests`."""
        if os.geteuid() != 0:
            raise SetupError("a toolbox host needs root (firewall, users, Docker): sudo make demo")
        self.folder.mkdir(parents=True)
        self.folder.chmod(0o755)
        argv = [sys.executable, "-m", "toolbox_dtma", "init"]
        argv += ["--state-dir", str(self.state_dir), "--gateway-dir", str(self.gateway_dir)]
        argv += ["--runtime-dir", str(self.runtime_dir), "--address", self.settings.address]
        argv += ["--bind", self.settings.address]
        argv += ["--docker-url", self.settings.docker_url] if self.settings.docker_url is not None else []
        argv += ["--management-port", str(self.management_port), "--gateway-port", str(self.gateway_port)]
        argv += ["--gateway-user", str(GATEWAY_USER.uid), "--gateway-workers", str(self.settings.gateway_workers)]
        argv += ["--name", self.settings.name, "--namespace", self.settings.namespace]
        printed = capture(argv, seconds=60, env={**os.environ, **self._env})
        documents = cast("list[Manifest | None]", list(yaml.safe_load_all(printed)))
        self.manifests = [document for document in documents if document]
        names = HostNames(self.host_id)
        self._supervisor.leave_to_janitor({"label": f"{LABEL_HOST}={self.host_id}"})
        self._supervisor.leave_to_janitor({"rules": f"MTB-{names.tag}-"})
        for manifest in self.manifests:
            if manifest["kind"] == "Secret" and "ca.crt" in manifest.get("stringData", {}):
                self.ca_file.write_text(manifest["stringData"]["ca.crt"])

    def start_dtma(self) -> Child:
        """Starts DTMA and waits until its management API is healthy."""
        python, env = sys.executable, self._env
        if self.settings.serve_module == DTMA:
            used = self._runtime()
            python, env = used.python, {**used.env, **self.settings.environment}
        argv = [*self.settings.wrapper, python, "-m", self.settings.serve_module, "serve"]
        argv += ["--state-dir", str(self.state_dir)]
        command = Command(self._log("dtma"), argv, env=env, death_signal="TERM", prefix=self.settings.prefix)
        child = self._supervisor.start(command)
        self.dtma = child
        child.wait_until(self._healthy, 30, "healthy")
        return child

    def start_gateway(self) -> Child:
        """Starts the gateway under its own uid and waits until it accepts connections."""
        used = self._runtime()
        argv = [*self.settings.wrapper, used.python, "-m", "toolbox_dtma", "gateway"]
        argv += ["--config", str(self.gateway_dir / "gateway.json")]
        command = Command(
            self._log("gateway"),
            argv,
            env=used.env,
            cwd=Path("/"),
            user=GATEWAY_USER,
            death_signal="TERM",
            prefix=self.settings.prefix,
        )
        child = self._supervisor.start(command)
        self.gateway = child
        child.wait_until(lambda: accepts(self.gateway_port, self.settings.address), 30, "accepting connections")
        return child

    def start(self) -> None:
        """Init, DTMA and gateway."""
        with step("toolbox host (DTMA and gateway)"):
            self.init()
            self.start_dtma()
            self.start_gateway()

    def metric(self, name: str) -> float:
        """The value of a metric without labels, as DTMA shows it. Raises `OSError`, `KeyError`."""
        samples = dict(line.rsplit(" ", 1) for line in self._read("/metrics").splitlines() if not line.startswith("#"))
        return float(samples[name])

    def _healthy(self) -> bool:
        try:
            self._read("/healthz")
        except OSError:
            return False
        return True

    def _read(self, path: str) -> str:
        """A page of the management API. Raises `OSError`, also for any status but 200."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        # Without the token it is open on loopback only.
        token = (self.state_dir / "token").read_text().strip()
        url = f"https://{self.settings.address}:{self.management_port}{path}"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=2, context=context) as answer:
            return answer.read().decode()
