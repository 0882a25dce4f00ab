"""The install script on a bare Debian with Python, iptables and a Docker socket; and what it installs."""

from __future__ import annotations

import os
import secrets
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
import uuid
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from delivery import bundle, images
from localstack.docker import Engine
from localstack.ports import accepts, free_port
from localstack.processes import Supervisor
from support.poll import until
from toolbox_dtma.engine.names import HostNames
from toolbox_dtma.wire.base import OWNER_HEADER

pytestmark = [
    pytest.mark.integration,
    pytest.mark.install,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="a toolbox host needs root"),
]

UNITS = ("toolbox-dtma", "toolbox-gateway")


@dataclass(slots=True)
class Machine:
    """A container that stands for a Docker host: its own files and users, this machine's network and engine."""

    engine: Engine
    name: str
    folder: Path
    """The unpacked bundle."""
    management_port: int = field(default_factory=free_port)
    gateway_port: int = field(default_factory=free_port)
    host_id: str = ""

    def run(self, *argv: str, seconds: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Runs a command as root; its output and exit code."""
        command = ["docker", "exec", self.name, *argv]
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)

    def shell(self, script: str) -> str:
        """The output of a shell script that must succeed."""
        done = self.run("sh", "-euc", script)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def install(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Runs the script."""
        return self.run("/bundle/install.sh", "--no-systemd", *options)

    def first(self) -> subprocess.CompletedProcess[str]:
        """Runs it as for a new host, on loopback ports."""
        return self.install(
            *("--name", "tbx-9", "--address", "127.0.0.1", "--bind", "127.0.0.1", "--gateway-workers", "1"),
            *("--management-port", str(self.management_port), "--gateway-port", str(self.gateway_port)),
        )

    def exec_start(self, unit: str) -> str:
        """The command line of a unit."""
        lines = (self.folder / f"{unit}.service").read_text().splitlines()
        (line,) = [line.removeprefix("ExecStart=") for line in lines if line.startswith("ExecStart=")]
        return line

    def start(self, unit: str, prefix: str = "") -> None:
        """Starts what a unit would, without systemd."""
        script = f"echo $$ > /tmp/{unit}.pid; exec {prefix} {self.exec_start(unit)} > /tmp/{unit}.log 2>&1"
        self.engine.docker("exec", "--detach", self.name, "sh", "-c", script)

    def stop(self, unit: str) -> None:
        """SIGTERM, and waits for the end."""
        self.shell(f"kill $(cat /tmp/{unit}.pid)")
        until("ended", lambda: self.run("sh", "-c", f"kill -0 $(cat /tmp/{unit}.pid)").returncode, seconds=60)


@pytest.fixture(scope="module")
def machine(docker_engine: Engine, supervisor: Supervisor, state_folder: Path) -> Generator[Machine]:
    folder = state_folder / "bundle"
    folder.mkdir()
    folder.chmod(0o755)
    bundle.assemble(folder)
    name = f"mt-machine-{secrets.token_hex(4)}"
    label = f"magic-toolbox-test={secrets.token_hex(6)}"
    supervisor.leave_to_janitor({"label": label})
    flags = ("--network=host", "--cap-add=NET_ADMIN", f"--name={name}", f"--label={label}")
    volumes = (f"--volume={folder}:/bundle:ro", "--volume=/var/run/docker.sock:/var/run/docker.sock")
    base = images.base_image(docker_engine)
    docker_engine.docker("run", "--detach", "--init", *flags, *volumes, base, "sleep", "86400")
    machine = Machine(docker_engine, name, folder)
    yield machine
    docker_engine.docker("rm", "--force", name)
    if machine.host_id:
        supervisor.leave_to_janitor({"rules": f"MTB-{HostNames(machine.host_id).tag}-"})


def documents(printed: str) -> dict[str, Any]:
    """What was printed, by kind and name."""
    found = [document for document in yaml.safe_load_all(printed) if document]
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in found}


def test_it_says_what_is_missing_and_changes_nothing(docker_engine: Engine, machine: Machine) -> None:
    script = "rm /usr/sbin/iptables-restore /usr/bin/python3.11; /bundle/install.sh --name t --address 127.0.0.1"
    command = ["docker", "run", "--rm", "--network=none", f"--volume={machine.folder}:/bundle:ro"]
    done = subprocess.run(
        [*command, images.base_image(docker_engine), "bash", "-c", f"{script}; echo $?; ls /opt /var/lib"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("1\n")
    assert "magic-toolbox" not in done.stdout
    for lacking in ("Python >= 3.11", "iptables", "systemd"):
        assert f"  - {lacking}" in done.stderr, done.stderr
    assert "apt-get install" in done.stderr


def test_it_asks_for_what_only_a_person_knows(machine: Machine) -> None:
    done = machine.install()
    assert done.returncode == 1
    assert "give --name and --address the first time" in done.stderr
    assert done.stdout == ""


def test_a_bare_machine_becomes_a_toolbox_host(machine: Machine) -> None:
    done = machine.first()
    assert done.returncode == 0, done.stderr
    found = documents(done.stdout)
    assert set(found) == {"Secret/tbx-9-dtma", "Secret/tbx-9-ca", "Toolbox/tbx-9"}
    authority = found["Secret/tbx-9-ca"]["stringData"]["ca.crt"]
    token = found["Secret/tbx-9-dtma"]["stringData"]["token"]

    assert machine.shell("stat -c '%a %U' /var/lib/magic-toolbox /etc/magic-toolbox/gateway").splitlines() == [
        "700 root",
        "700 toolbox-gateway",
    ]
    assert machine.shell("id -nG toolbox-gateway").split() == ["toolbox-gateway"]
    machine.host_id = yaml.safe_load(machine.shell("cat /var/lib/magic-toolbox/host.json"))["host_id"]

    machine.start("toolbox-dtma")
    # As the unit does it: its own user, no other group, no capability.
    machine.start(
        "toolbox-gateway",
        "setpriv --reuid=toolbox-gateway --regid=toolbox-gateway --clear-groups --bounding-set=-all --no-new-privs",
    )
    context, owner = ssl.create_default_context(cadata=authority), str(uuid.uuid4())

    def answer() -> bytes:
        url = f"https://127.0.0.1:{machine.management_port}/v2/owners/{owner}"
        headers = {"Authorization": f"Bearer {token}", OWNER_HEADER: owner, "Content-Type": "application/json"}
        request = urllib.request.Request(url, method="PUT", data=b'{"epoch": 1}', headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5, context=context) as response:
                return bytes(response.read())
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            log = machine.run("tail", "-n", "5", "/tmp/toolbox-dtma.log").stdout
            return f"{error}\n{log}".encode()

    until("answering", answer, lambda body: body.startswith(b"{") and machine.host_id.encode() in body, seconds=120)
    until("the gateway listening", lambda: accepts(machine.gateway_port), seconds=120)


def test_running_it_again_keeps_everything_and_needs_no_options(machine: Machine) -> None:
    before = machine.shell("readlink /opt/magic-toolbox/current")
    again, once_more = machine.install(), machine.install()
    assert again.returncode == 0, again.stderr
    assert again.stdout == once_more.stdout
    assert machine.shell("readlink /opt/magic-toolbox/current") == before
    toolbox = documents(again.stdout)["Toolbox/tbx-9"]
    assert toolbox["spec"]["endpoint"] == f"https://127.0.0.1:{machine.management_port}"


def test_another_release_is_put_beside_the_one_before(machine: Machine) -> None:
    before = machine.shell("readlink /opt/magic-toolbox/current").strip()
    with (machine.folder / "requirements.txt").open("a") as file:
        file.write("# another release\n")
    done = machine.install()
    assert done.returncode == 0, done.stderr
    after = machine.shell("readlink /opt/magic-toolbox/current").strip()
    assert after != before
    assert machine.shell(f"{before}/bin/toolbox-dtma --help; {after}/bin/toolbox-dtma --help").count("usage:") == 2


def test_uninstalling_keeps_keys_until_they_are_asked_to_go(machine: Machine) -> None:
    for unit in reversed(UNITS):
        machine.stop(unit)
    assert f"MTB-{HostNames(machine.host_id).tag}-" in machine.shell("iptables-save")
    done = machine.install("--uninstall")
    assert done.returncode == 0, done.stderr
    assert machine.shell("ls -d /var/lib/magic-toolbox/token; ls /opt") == "/var/lib/magic-toolbox/token\n"

    assert machine.install("--uninstall", "--purge").returncode == 0
    assert machine.run("sh", "-c", "ls -d /var/lib/magic-toolbox /etc/magic-toolbox").returncode != 0
    assert machine.run("id", "toolbox-gateway").returncode != 0
    assert HostNames(machine.host_id).tag not in machine.shell("iptables-save; ip6tables-save")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "toolbox-dtma"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for unit in UNITS:
        text = (bundle.SOURCE / f"{unit}.service").read_text()
        # The program has to be there, and its user known to this machine.
        fitted = text.replace("/opt/magic-toolbox/current", str(tmp_path))
        fitted = fitted.replace("=toolbox-gateway\n", "=daemon\n")
        (tmp_path / f"{unit}.service").write_text(fitted)
    files = [str(tmp_path / f"{unit}.service") for unit in UNITS]
    verified = subprocess.run(
        ["systemd-analyze", "verify", *files], capture_output=True, text=True, timeout=60, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
@pytest.mark.parametrize(("unit", "most"), [("toolbox-gateway", 20), ("toolbox-dtma", 40)])
def test_the_units_leave_little_open(unit: str, most: int) -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={most}"]
    done = subprocess.run(
        [*command, str(bundle.SOURCE / f"{unit}.service")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout.splitlines()[-1:]
