"""A network namespace joined to the machine by a veth pair, which can be cut like a cable."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from localstack import janitor
from localstack.processes import Supervisor
from localstack.progress import SetupError, capture

RANGE = IPv4Network("198.18.0.0/15")
"""Set aside for tests of networks: nothing on the machine lives there, and no network it reaches."""

_PREFIX = 30
_ATTEMPTS = 50
_FAR = "uplink"


@dataclass(frozen=True, slots=True)
class Uplink:
    """A namespace with one address, reached from the machine and reaching nothing but the machine."""

    namespace: str
    subnet: IPv4Network

    @property
    def address(self) -> str:
        """Its address."""
        return str(self.subnet[2])

    @property
    def prefix(self) -> tuple[str, ...]:
        """What executes a program in it. Not `ip netns exec`, which hides the cgroup mounts that Docker needs."""
        return ("nsenter", f"--net=/var/run/netns/{self.namespace}")

    def run(self, *command: str, seconds: float = 30.0) -> str:
        """Runs a program in it; its standard output."""
        return capture([*self.prefix, *command], seconds=seconds)

    def cut(self, ports: Sequence[int] = ()) -> None:
        """Drops every packet, or those of some TCP ports, both ways; nobody is told. To be undone with `heal`.

        The link stays up: without it packets would take the machine's default route.
        """
        selections = [("-p", "tcp", "{}", str(port)) for port in ports] or [()]
        for selection in selections:
            # A table of its own, so that Docker's and DTMA's rules stay where they want them.
            for chain, device, side in (("PREROUTING", "-i", "--dport"), ("OUTPUT", "-o", "--sport")):
                chosen = [part.format(side) for part in selection]
                self.run("iptables", "-w", "-t", "raw", "-A", chain, device, _FAR, *chosen, "-j", "DROP")

    def heal(self) -> None:
        """Lets everything pass again."""
        self.run("iptables", "-w", "-t", "raw", "-F")
        for rule in self.run("iptables-save", "-t", "filter").splitlines():
            if rule.startswith(f"-A INPUT -i {_FAR} "):
                self.run("iptables", "-w", "-t", "filter", *rule.replace("-A", "-D", 1).split())

    def refuse(self, port: int) -> None:
        """Resets what a TCP port is asked, present connections too. To be undone with `heal`."""
        reject = ("-j", "REJECT", "--reject-with", "tcp-reset")
        self.run(
            "iptables", "-w", "-t", "filter", "-A", "INPUT", "-i", _FAR, "-p", "tcp", "--dport", str(port), *reject
        )
        self.run("ss", "--kill", "--tcp", "sport", "=", f":{port}")

    def forget(self) -> None:
        """What a reboot forgets: every rule, and every interface but the link."""
        for program in ("iptables", "ip6tables"):
            for table in ("filter", "nat", "raw"):
                self.run(program, "-w", "-t", table, "-F")
                self.run(program, "-w", "-t", table, "-X")
        links = self.run("ip", "-o", "link", "show", "type", "bridge").splitlines()
        for line in links:
            self.run("ip", "link", "delete", line.split(":")[1].strip())

    def close(self) -> None:
        """Removes it; what still runs in it should have ended."""
        janitor.do(_clean_up(self.namespace, self.subnet))


def make(supervisor: Supervisor) -> Uplink:
    """A new namespace on a subnet that nobody else uses."""
    tag = secrets.token_hex(4)
    # Ends what is sent there after the namespace is gone; and only one run can add it, so the subnet is ours.
    subnet = _claim()
    link = Uplink(f"mtx-{tag}", subnet)
    supervisor.leave_to_janitor(_clean_up(link.namespace, subnet))
    near = f"mtx{tag}"
    try:
        capture(["ip", "netns", "add", link.namespace])
        capture(["ip", "link", "add", near, "type", "veth", "peer", "name", _FAR, "netns", link.namespace])
        capture(["ip", "address", "add", f"{subnet[1]}/{_PREFIX}", "dev", near])
        capture(["ip", "link", "set", near, "up"])
        capture(["ip", "-n", link.namespace, "address", "add", f"{link.address}/{_PREFIX}", "dev", _FAR])
        for device in (_FAR, "lo"):
            capture(["ip", "-n", link.namespace, "link", "set", device, "up"])
    except SetupError:
        link.close()
        raise
    return link


def _claim() -> IPv4Network:
    for _ in range(_ATTEMPTS):
        offset = secrets.randbelow(RANGE.num_addresses >> 2) << 2
        subnet = IPv4Network((IPv4Address(int(RANGE.network_address) + offset), _PREFIX))
        if capture(["ip", "-4", "route", "show", "root", str(subnet)]).strip():
            continue
        try:
            capture(["ip", "route", "add", "blackhole", str(subnet), "metric", "4096"])
        except SetupError as error:
            if "File exists" in str(error):
                continue
            raise
        return subnet
    raise SetupError(f"no free subnet in {RANGE}")


def _clean_up(namespace: str, subnet: IPv4Network) -> dict[str, str]:
    return {"netns": namespace, "blackhole": str(subnet)}
