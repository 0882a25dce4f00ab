"""A second real host on this machine: a network namespace with a Docker engine, DTMA and gateway of its own.

Its engine can be restarted, and the host be cut off, without anybody else noticing. Everything goes with `close`, and
with a crashed run by the janitor.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from localstack import janitor
from localstack import registry as registry_module
from localstack.host import Host, Settings
from localstack.kubernetes import Manifest
from localstack.processes import Child, Command, Supervisor
from localstack.progress import SetupError, capture
from localstack.registry import Registry
from support.engine.images import busybox_image
from support.hosts import clocks, uplink
from support.hosts.far_engine import FarEngine
from support.hosts.state_files import records_in
from support.hosts.variants import settings_for
from support.system.space import toolbox_documents
from toolbox_dtma.engine.names import LABEL_HOST, LABEL_INSTANCE

_BRISK = settings_for("support.hosts.brisk_dtma")


@dataclass(frozen=True, slots=True)
class Variation:
    """What a host may have of its own."""

    data_size: str | None = None
    """Its engine's folder is a file system of this size (`64m`)."""
    state_size: str | None = None
    """DTMA's state folder is a file system of this size."""
    broker: bool = False
    """Its DTMA is the product itself, delays and all: the one that can have a session broker."""


class FarHost:
    """One host. `start` brings everything up; the parts can be ended and started one by one."""

    def __init__(self, supervisor: Supervisor, variation: Variation | None = None) -> None:
        """Makes the namespace; nothing runs before `start`."""
        self.variation = variation or Variation()
        self.link = uplink.make(supervisor)
        self.folder = supervisor.folder / f"far-{secrets.token_hex(3)}"
        self.engine = FarEngine(supervisor, self.folder / "engine", self.link.prefix, self.link.namespace)
        supervisor.leave_to_janitor({"mounts": str(self.folder)})
        self._supervisor = supervisor
        settings = Settings(
            name=self.link.namespace,
            address=self.link.address,
            docker_url=self.engine.url,
            prefix=self.link.prefix,
            **({} if self.variation.broker else _BRISK),
        )
        self.host = Host(supervisor, self.folder / "host", settings)
        self.image = busybox_image()
        """What `tiny_server` runs in; on the host from the start."""

    @property
    def host_id(self) -> str:
        """Its UUID."""
        return self.host.host_id

    def start(self) -> None:
        """Engine, image, identity, DTMA and gateway."""
        if self.variation.data_size is not None:
            _mount(self.engine.data_root, self.variation.data_size)
        self.engine.start()
        self.engine.load(self.image)
        self.host.init()
        if self.variation.state_size is not None:
            self._move_state(self.variation.state_size)
        self.host.start_dtma()
        self.host.start_gateway()

    def restore(self) -> None:
        """Whatever was cut, hung or ended: as after `start`."""
        self.link.heal()
        if self.engine.running():
            self.engine.go_on()
        else:
            self.engine.start()
        if not _runs(self.host.dtma):
            self.host.start_dtma()
        if not _runs(self.host.gateway):
            self.host.start_gateway()

    def power_off(self) -> None:
        """Everything at once, without a word to anybody: containers too."""
        for child in (self.host.dtma, self.host.gateway):
            if child is not None:
                child.kill()
        self.engine.power_off()
        self.link.forget()

    def close(self) -> None:
        """Ends and removes it."""
        for child in (self.host.dtma, self.host.gateway):
            if child is not None:
                child.kill()
        self.engine.close()
        janitor.do({"mounts": str(self.folder)})
        self.link.close()

    def leave(self) -> None:
        """Nobody can talk to DTMA, and it goes on with everything else: out of contact at once. Undone by `heal`."""
        self.link.refuse(self.host.management_port)

    def cut(self, *, management_only: bool = False) -> None:
        """Drops its packets, or only those of DTMA's port; undone by `heal`."""
        self.link.cut((self.host.management_port,) if management_only else ())

    def heal(self) -> None:
        """Ends `cut` and `leave`."""
        self.link.heal()

    def mirror(self, registry: Registry) -> None:
        """Serves the images of a registry of the machine in the host's network, under the same name."""
        config = {
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(registry.blobs)}},
            "http": {"addr": registry.address, "secret": secrets.token_hex(16)},
        }
        path = self.folder / "registry.yml"
        path.write_text(yaml.safe_dump(config))
        argv = [str(registry_module.program()), "serve", str(path)]
        command = Command(f"registry-{self.link.namespace}", argv, prefix=self.link.prefix)
        child = self._supervisor.start(command)
        child.wait_until(lambda: self._listens(registry.port), 30, "listening")

    def turn_clock(self, seconds: int) -> None:
        """Starts DTMA and gateway again, with a wall clock this far from the machine's; 0 puts it right."""
        for child in (self.host.dtma, self.host.gateway):
            assert child is not None
            child.stop()
        self.host.settings = replace(self.host.settings, wrapper=clocks.turned(seconds) if seconds else ())
        self.host.start_dtma()
        self.host.start_gateway()

    def documents(self, namespace: str, name: str, **spec: Any) -> list[Manifest]:
        """Toolbox and Secrets to apply in a namespace."""
        found: list[Manifest] = []
        for document in toolbox_documents(self.host.manifests, **spec):
            metadata = {**document["metadata"], "namespace": namespace}
            if document["kind"] == "Toolbox":
                metadata["name"] = name
            found.append({**document, "metadata": metadata})
        return found

    def containers(self, instance: str | None = None, *, running_only: bool = False) -> list[str]:
        """Ids of its containers, by its engine; all, or those of one instance."""
        labels = [f"{LABEL_HOST}={self.host_id}", *([f"{LABEL_INSTANCE}={instance}"] if instance else [])]
        flags = [part for label in labels for part in ("--filter", f"label={label}")]
        return self.engine.docker("ps", *([] if running_only else ["--all"]), "--quiet", "--no-trunc", *flags).split()

    def leftovers(self, owner: str) -> list[str]:
        """What it still has of a cluster (the UID of its `kube-system`), and what it has of nobody at all."""
        instances, grants = self.instances(), self.grants()
        theirs = [f"instance {key}" for key, record in instances.items() if record["owner"] == owner]
        theirs += [f"grant {key}" for key, record in grants.items() if record["owner"] == owner]
        flags = ("--filter", f"label={LABEL_HOST}={self.host_id}", "--format")
        listings = (
            ("container", "ID", ("ps", "--all", "--no-trunc")),
            ("network", "ID", ("network", "ls", "--no-trunc")),
            ("volume", "Name", ("volume", "ls")),
        )
        for kind, id_field, listing in listings:
            shown = f'{{{{.{id_field}}}}} {{{{.Label "{LABEL_INSTANCE}"}}}}'
            for line in self.engine.docker(*listing, *flags, shown).splitlines():
                id_, _, instance = line.partition(" ")
                if instance not in instances:
                    theirs.append(f"{kind} {id_}")
        return theirs

    def instances(self) -> dict[str, Any]:
        """What DTMA has on disk of instances, by id."""
        return _by_name(self.host.state_dir / "instances")

    def grants(self) -> dict[str, Any]:
        """What DTMA has on disk of grants, by connection UID."""
        return _by_name(self.host.state_dir / "grants")

    def firewall(self) -> list[str]:
        """Rules in force in its network."""
        return self.link.run("iptables-save", "-t", "filter").splitlines()

    def _listens(self, port: int) -> bool:
        try:
            self.link.run("bash", "-c", f"</dev/tcp/127.0.0.1/{port}")
        except SetupError:
            return False
        return True

    def _move_state(self, size: str) -> None:
        state = self.host.state_dir
        aside = state.with_name("aside")
        state.rename(aside)
        state.mkdir(mode=0o700)
        _mount(state, size)
        capture(["cp", "--archive", f"{aside}/.", str(state)])


def _mount(folder: Path, size: str) -> None:
    capture(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)])


def resize(folder: Path, size: str) -> None:
    """Another size for a file system of `Variation`."""
    capture(["mount", "-o", f"remount,size={size}", str(folder)])


def _runs(child: Child | None) -> bool:
    return child is not None and child.running()


def _by_name(folder: Path) -> dict[str, Any]:
    return {path.stem: record for path, record in records_in(folder).items()}
