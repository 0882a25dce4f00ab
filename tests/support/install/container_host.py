"""A toolbox host whose DTMA and gateway run as containers, started with the flags that docs/install.md gives."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from localstack.docker import Engine
from localstack.kubernetes import REPOSITORY, Manifest
from localstack.ports import free_port
from localstack.processes import Supervisor
from toolbox_dtma.engine.names import LABEL_HOST, HostNames

PAGE = REPOSITORY / "docs" / "install.md"
STATE, GATEWAY, RUNTIME = "/var/lib/magic-toolbox", "/etc/magic-toolbox", "/run/magic-toolbox"
IMAGE = "registry.example.com/magic-toolbox/dtma:0.1.0"


def documented(command: str) -> list[str]:
    """The words of the `docker run` in docs/install.md that ends with this command of toolbox-dtma."""
    for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["docker", "run"] and IMAGE in words and words[words.index(IMAGE) + 1] == command:
                return words[1:]
    raise AssertionError(f"docs/install.md shows no docker run … {command}")


@dataclass(slots=True)
class ContainerHost:
    """One host in containers; its folders lie below `folder`, its ports on loopback."""

    engine: Engine
    supervisor: Supervisor
    image: str
    label: str
    folder: Path
    name: str = "tbx-1"
    management_port: int = field(default_factory=free_port)
    gateway_port: int = field(default_factory=free_port)
    manifests: list[Manifest] = field(default_factory=list[Manifest])

    def container(self, part: str) -> str:
        """The name of a part's container."""
        return f"mt-{part}-{self.folder.name}"

    @property
    def runtime_dir(self) -> str:
        """The folder of the gateway's socket; below /run, which DTMA's container has as the host has it."""
        return f"{self.folder}/socket"

    def _run(self, command: str, *more: str) -> str:
        words = documented(command)
        at = words.index(IMAGE)
        here = {place: str(self.folder / place.strip("/")) for place in (STATE, GATEWAY)}
        flags: list[str] = []
        for word in words[:at]:
            source, _, target = word.removeprefix("--volume=").partition(":")
            if word.startswith("--name="):
                flags.append(f"--name={self.container(command)}")
            elif word.startswith("--volume=") and source in here:
                flags.append(f"--volume={here[source]}:{target}")
            else:
                flags.append(word.replace(RUNTIME, self.runtime_dir))
        given = ("init", *more) if command == "init" else words[at + 1 :]
        return self.engine.docker(*flags, f"--label={self.label}", self.image, *given, seconds=90)

    def init(self) -> None:
        """Makes identity and keys; what it printed is in `manifests`."""
        self.folder.mkdir(parents=True)
        self.folder.chmod(0o755)
        printed = self._run(
            "init",
            *("--state-dir", STATE, "--gateway-dir", f"{GATEWAY}/gateway", "--runtime-dir", self.runtime_dir),
            *("--address", "127.0.0.1", "--bind", "127.0.0.1", "--name", self.name),
            *("--management-port", str(self.management_port), "--gateway-port", str(self.gateway_port)),
            *("--gateway-user", "61750", "--gateway-workers", "1"),
        )
        self.manifests = [document for document in yaml.safe_load_all(printed) if document]
        self.supervisor.leave_to_janitor({"label": f"{LABEL_HOST}={self.host_id}"})
        self.supervisor.leave_to_janitor({"rules": f"MTB-{HostNames(self.host_id).tag}-"})

    @property
    def host_id(self) -> str:
        """The identity that `init` made."""
        record = json.loads((self.folder / STATE.strip("/") / "host.json").read_text())
        return str(record["host_id"])

    def start(self) -> None:
        """Starts DTMA and the gateway."""
        self._run("serve")
        self._run("gateway")

    def running(self, part: str) -> bool:
        """Whether a part's container runs."""
        shown = self.engine.docker("inspect", "--format", "{{.State.Running}}", self.container(part))
        return shown.strip() == "true"

    def servers(self) -> list[str]:
        """Ids of the containers that DTMA runs."""
        flags = ("--quiet", "--no-trunc", "--filter", f"label={LABEL_HOST}={self.host_id}")
        return self.engine.docker("ps", "--all", *flags).split()

    def remove(self) -> None:
        """Removes both containers."""
        for part in ("gateway", "serve"):
            self.engine.docker("rm", "--force", self.container(part))
