"""The firewall around containers: they reach what the egress of their network lets them reach, and nothing else.

Rules match this host's bridges by name prefix, which tells the egress too, so a new container needs no new rule. They
stand in two chains of this host, which one jump each hooks into INPUT and into DOCKER-USER (FORWARD for IPv6, or where
Docker has no DOCKER-USER). Every change is one iptables-restore transaction: there is no moment with half of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from pathlib import Path
from typing import Literal, Protocol

import structlog

from toolbox_dtma.engine.failures import Failure
from toolbox_dtma.engine.names import ANY_BRIDGE, HostNames
from toolbox_dtma.wire import Egress, InstanceReason

log = structlog.stdlib.get_logger(__name__)

Family = Literal["v4", "v6"]
Address = IPv4Address | IPv6Address

_NEVER: dict[Family, tuple[str, ...]] = {
    "v4": (
        "169.254.0.0/16",  # cloud metadata
        "168.63.129.16/32",  # a cloud's host agent on a public address
        "100.100.100.200/32",  # cloud metadata on a shared address (RFC 6598)
        "192.0.0.0/24",  # protocol assignments; one cloud has its metadata there
        "224.0.0.0/4",
    ),
    # Cloud metadata, three times inside fc00::/7.
    "v6": ("fd00:ec2::254/128", "fd20:ce::254/128", "fd00:42::42/128", "fe80::/10", "ff00::/8"),
}
"""Destinations no container reaches."""

_PRIVATE: dict[Family, tuple[str, ...]] = {
    "v4": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15"),
    "v6": ("fc00::/7",),
}
"""Destinations that take `Egress.ALL`."""

_REJECT: dict[Family, str] = {
    "v4": "-j REJECT --reject-with icmp-port-unreachable",
    "v6": "-j REJECT --reject-with icmp6-port-unreachable",
}
"""Where nothing can be reached, a program learns so at once instead of waiting."""

_ANSWERS = "-m conntrack --ctstate RELATED,ESTABLISHED --ctdir REPLY -j RETURN"
"""What a container says on connections that it did not open. Of those it did, every packet is judged: whoever gets an
address next would else inherit what the one before was allowed."""
_ATTEMPTS = 3


class Runner(Protocol):
    """Runs one iptables program."""

    async def __call__(self, program: str, *arguments: str, stdin: str | None = None) -> str:
        """Its standard output. Raises `Failure` with `NETWORK_FAILED`."""
        ...


@dataclass(frozen=True, slots=True)
class Rules:
    """One address family's chains, as `iptables-save` prints rules."""

    names: HostNames
    family: Family
    resolvers: Sequence[Address]

    @property
    def chains(self) -> dict[str, tuple[str, ...]]:
        """Rules by chain."""
        return {self.names.input_chain: self._input(), self.names.forward_chain: self._forward()}

    def jump(self, parent: str) -> str:
        """The one rule that hooks our chain into a built-in one."""
        chain = self.names.input_chain if parent == "INPUT" else self.names.forward_chain
        return f"-A {parent} -i {self.names.bridge_prefix}+ -j {chain}"

    def _dns(self, chain: str) -> list[str]:
        version = 4 if self.family == "v4" else 6
        return [
            f"-A {chain} -d {address}/{address.max_prefixlen} -p {protocol} -m {protocol} --dport 53 -j RETURN"
            for address in self.resolvers
            if address.version == version and not address.is_loopback
            for protocol in ("udp", "tcp")
        ]

    def _input(self) -> tuple[str, ...]:
        chain = self.names.input_chain
        # RETURN instead of ACCEPT: the host's own rules go on deciding about what we have no opinion on.
        return (
            f"-A {chain} {_ANSWERS}",
            f"-A {chain} -i {self.names.bridges(Egress.NONE)} {_REJECT[self.family]}",
            *self._dns(chain),
            f"-A {chain} -j DROP",
        )

    def _forward(self) -> tuple[str, ...]:
        chain = self.names.forward_chain
        unrestricted = self.names.bridges(Egress.ALL)
        return (
            f"-A {chain} -i {self.names.bridges(Egress.NONE)} {_REJECT[self.family]}",
            f"-A {chain} -o {ANY_BRIDGE} -j DROP",
            f"-A {chain} {_ANSWERS}",
            *self._dns(chain),
            *(f"-A {chain} -d {destination} -j DROP" for destination in _NEVER[self.family]),
            # Led elsewhere by this machine: a published port, so the host by another name.
            f"-A {chain} -i {unrestricted} -m conntrack --ctstate DNAT -j DROP",
            f"-A {chain} -i {unrestricted} -j RETURN",
            *(f"-A {chain} -d {destination} -j DROP" for destination in _PRIVATE[self.family]),
        )


def transaction(rules: Rules, saved: str) -> str | None:
    """Input for `iptables-restore --noflush` that brings the table to the rules; none if it is there already.

    `saved` is the filter table as `iptables-save` prints it. A jump is in place only if nothing but jumps of hosts
    like this one stands before it: an earlier ACCEPT would be a hole.
    """
    lines = saved.splitlines()
    hook = "DOCKER-USER" if any(line.startswith(":DOCKER-USER ") for line in lines) else "FORWARD"
    out: list[str] = []
    present = {chain: tuple(line for line in lines if line.startswith(f"-A {chain} ")) for chain in rules.chains}
    if present != rules.chains or any(not any(x.startswith(f":{c} ") for x in lines) for c in rules.chains):
        # Declaring a chain empties it, within the same transaction that fills it.
        out += [f":{chain} - [0:0]" for chain in rules.chains]
        out += [rule for chain in rules.chains.values() for rule in chain]
    for parent in ("INPUT", "FORWARD", "DOCKER-USER"):
        wanted = parent in ("INPUT", hook)
        jump = rules.jump(parent)
        standing = [line for line in lines if line.startswith(f"-A {parent} ")]
        count = standing.count(jump)
        if wanted and count == 1 and all(_is_host_jump(line) for line in standing[: standing.index(jump)]):
            continue
        out += [f"-D{jump[2:]}"] * count
        if wanted:
            out.append(jump.replace(f"-A {parent} ", f"-I {parent} 1 "))
    return "\n".join(["*filter", *out, "COMMIT", ""]) if out else None


def removal(rules: Rules, saved: str) -> str | None:
    """Input for `iptables-restore --noflush` that removes everything of this host; none if nothing is there."""
    lines = saved.splitlines()
    out: list[str] = []
    for parent in ("INPUT", "FORWARD", "DOCKER-USER"):
        out += [f"-D{rules.jump(parent)[2:]}"] * lines.count(rules.jump(parent))
    chains = [chain for chain in rules.chains if any(line.startswith(f":{chain} ") for line in lines)]
    out = [*(f":{chain} - [0:0]" for chain in chains), *out, *(f"-X {chain}" for chain in chains)]
    return "\n".join(["*filter", *out, "COMMIT", ""]) if out else None


def _is_host_jump(line: str) -> bool:
    words = line.split()
    return len(words) == 6 and words[2] == "-i" and words[3].startswith("mtb") and words[5].startswith("MTB-")


def parse_resolvers(text: str) -> tuple[Address, ...]:
    """Name servers of a resolv.conf; scoped and unreadable entries are left out."""
    found: list[Address] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found.append(ip_address(words[1].partition("%")[0]))
            except ValueError:
                log.warning("unreadable name server in resolv.conf", entry=words[1])
    return tuple(dict.fromkeys(found))


def host_resolvers() -> tuple[Address, ...]:
    """Resolvers that Docker hands to containers: with a local stub it reads the file of the real ones."""
    found: list[Address] = []
    for path in (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")):
        try:
            found += parse_resolvers(path.read_text())
        except FileNotFoundError:
            continue
    return tuple(dict.fromkeys(found))


def reserved_networks(resolvers: Sequence[Address]) -> tuple[IPv4Network, ...]:
    """Addresses that no container network may cover."""
    return tuple(IPv4Network(address) for address in resolvers if isinstance(address, IPv4Address))


def iptables_runner(deadline: float) -> Runner:
    """Runs the host's iptables programs."""

    async def run(program: str, *arguments: str, stdin: str | None = None) -> str:
        try:
            process = await asyncio.create_subprocess_exec(
                program,
                *arguments,
                stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise Failure(InstanceReason.NETWORK_FAILED, f"{program} cannot be run on the host: {error}") from error
        try:
            async with asyncio.timeout(deadline):
                output, errors = await process.communicate(stdin.encode() if stdin is not None else None)
        except TimeoutError as error:
            raise Failure(InstanceReason.NETWORK_FAILED, f"{program} did not end within {deadline:g} s.") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise Failure(
                InstanceReason.NETWORK_FAILED,
                f"The host's firewall refused: {program}: {errors.decode(errors='replace')}",
            )
        return output.decode(errors="replace")

    return run


def ipv6_enabled() -> bool:
    """Whether the kernel has IPv6 at all; without it there is nothing to filter and ip6tables fails."""
    return Path("/proc/net/if_inet6").exists()


class Firewall:
    """Keeps the rules in place. `ensure` is cheap once asserted; `forget` makes the next one look again."""

    def __init__(
        self,
        names: HostNames,
        run: Runner,
        *,
        resolvers: Callable[[], Sequence[Address]] = host_resolvers,
        ipv6: Callable[[], bool] = ipv6_enabled,
    ) -> None:
        self._names = names
        self._run = run
        self._resolvers = resolvers
        self._ipv6 = ipv6
        self._lock = asyncio.Lock()
        self._asserted = False

    async def ensure(self) -> None:
        """Rules are in place when this returns. No container starts before. Raises `Failure`."""
        if not self._asserted:
            await self.assert_rules()

    def forget(self) -> None:
        """Something may have changed the tables."""
        self._asserted = False

    async def assert_rules(self) -> None:
        """Compare with the kernel, and repair. Raises `Failure`."""
        async with self._lock:
            for family in self._families():
                if await self._apply(family, transaction):
                    log.info("firewall rules set", family=family, host=self._names.host_id)
            self._asserted = True

    async def teardown(self) -> None:
        """Remove every rule and chain of this host."""
        async with self._lock:
            self._asserted = False
            for family in self._families():
                await self._apply(family, removal)

    def _families(self) -> tuple[Family, ...]:
        return ("v4", "v6") if self._ipv6() else ("v4",)

    async def _apply(self, family: Family, plan: Callable[[Rules, str], str | None]) -> bool:
        binary = "iptables" if family == "v4" else "ip6tables"
        for attempt in range(1, _ATTEMPTS + 1):
            saved = await self._run(f"{binary}-save", "-t", "filter")
            change = plan(Rules(self._names, family, self._resolvers()), saved)
            if change is None:
                return attempt > 1
            try:
                await self._run(f"{binary}-restore", "--noflush", "-w", "5", stdin=change)
            except Failure:
                # The table may have changed between save and restore; then the next plan fits.
                if attempt == _ATTEMPTS:
                    raise
                continue
            return True
        return False
