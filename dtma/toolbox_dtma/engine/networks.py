"""One bridge network per instance: /28 subnets from a pool of the host's own, the container always at `.2`.

Docker's default pools end at 30 networks; and a fixed address spares an inspect after each start.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, ip_network
from pathlib import Path

from toolbox_dtma.engine.client import DockerClient
from toolbox_dtma.engine.egress import egress_of, network_options
from toolbox_dtma.engine.failures import DockerRefused, Failure, network_failure
from toolbox_dtma.engine.models import Network
from toolbox_dtma.engine.names import LABEL_HOST, LABEL_OWNER, LABEL_POOL, HostNames
from toolbox_dtma.wire import Egress, InstanceReason

RANGE = IPv4Network("10.192.0.0/10")
AVOIDED = (IPv4Network("10.244.0.0/16"), IPv4Network("10.255.0.0/16"))
"""Common pod networks and the end of the range, where people put routers and resolvers."""

POOL_PREFIX = 18
SUBNET_PREFIX = 28
_ATTEMPTS = 8
_NEVER_FREE = 3
"""Addresses of any subnet that no container gets: its own, the bridge's and the broadcast one."""
_PROBES = 2
"""Sessions of probes that a subnet has room for, beside those of connections."""


@dataclass(frozen=True, slots=True)
class InstanceNetwork:
    """The network of an instance."""

    id: str
    name: str
    subnet: IPv4Network
    egress: Egress | None
    """None for a network that was not made by this host, though it has its labels: no container belongs there."""

    @property
    def address(self) -> str:
        """Address of the instance's container; `.1` is the bridge."""
        return str(self.subnet.network_address + 2)


def pools(host_id: str) -> Iterator[IPv4Network]:
    """Every pool a host may use, each host beginning somewhere else."""
    candidates = [
        pool for pool in RANGE.subnets(new_prefix=POOL_PREFIX) if not any(pool.overlaps(avoided) for avoided in AVOIDED)
    ]
    start = int.from_bytes(hashlib.sha256(host_id.encode()).digest()[:4], "big") % len(candidates)
    yield from candidates[start:]
    yield from candidates[:start]


def choose_pool(host_id: str, taken: Sequence[IPv4Network]) -> IPv4Network | None:
    """The host's first pool that overlaps nothing taken."""
    return next((pool for pool in pools(host_id) if not any(pool.overlaps(other) for other in taken)), None)


def sessions_prefix(max_sessions: int) -> int:
    """Prefix of the subnet of a server that has a container for each session: /28 for up to 11.

    >>> sessions_prefix(10), sessions_prefix(1000)
    (28, 22)
    """
    addresses = max_sessions + _PROBES + _NEVER_FREE
    return min(SUBNET_PREFIX, 32 - (addresses - 1).bit_length())


def free_subnets(
    pool: IPv4Network, taken: Sequence[IPv4Network], prefix: int = SUBNET_PREFIX
) -> Iterator[tuple[int, IPv4Network]]:
    """Free subnets of a pool, lowest first, with the index of the smallest subnet that begins where they do."""
    near = [other for other in taken if other.overlaps(pool)]
    for number, subnet in enumerate(pool.subnets(new_prefix=prefix)):
        if not any(subnet.overlaps(other) for other in near):
            yield number << (SUBNET_PREFIX - prefix), subnet


def parse_routes(text: str) -> tuple[IPv4Network, ...]:
    """Destinations in `/proc/net/route`, without the default route."""
    found: list[IPv4Network] = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8 or fields[7] == "00000000":
            continue
        address = IPv4Address(int.from_bytes(bytes.fromhex(fields[1]), "little"))
        mask = IPv4Address(int.from_bytes(bytes.fromhex(fields[7]), "little"))
        found.append(IPv4Network(f"{address}/{mask}", strict=False))
    return tuple(found)


def host_routes() -> tuple[IPv4Network, ...]:
    """What the host already routes somewhere."""
    return parse_routes(Path("/proc/net/route").read_text())


class Networks:
    """Finds, makes and removes instance networks."""

    def __init__(
        self,
        client: DockerClient,
        names: HostNames,
        *,
        routes: Callable[[], Iterable[IPv4Network]] = host_routes,
        reserved: Callable[[], Iterable[IPv4Network]] = tuple,
    ) -> None:
        self._client = client
        self._names = names
        self._routes = routes
        self._reserved = reserved
        self._allocating = asyncio.Lock()

    async def of(self, instance_id: str) -> tuple[InstanceNetwork, ...]:
        """The instance's networks, the oldest first: one, but after a change of egress or a lost answer."""
        listed = await self._client.networks(self._names.labels(instance_id))
        return tuple(
            parsed
            for network in sorted(listed, key=lambda item: (item.created, item.id))
            if (parsed := self._instance_network(network)) is not None
        )

    async def make(self, instance_id: str, owner: str, egress: Egress, prefix: int = SUBNET_PREFIX) -> InstanceNetwork:
        """Create the instance's network, of this kind and with a subnet of this size. Raises `Failure`."""
        # Held during the call to Docker, so that two instances never try the same subnet.
        async with self._allocating:
            refused_subnets: list[IPv4Network] = []
            for _ in range(_ATTEMPTS):
                existing = await self._client.networks()
                pool = self._pool(existing)
                taken = [*_v4(existing), *self._foreign_routes(pool), *refused_subnets]
                index, subnet = next(free_subnets(pool, taken, prefix), (-1, pool))
                if index < 0:
                    raise Failure(
                        InstanceReason.NETWORK_FAILED,
                        f"Of the host's {1 << (prefix - POOL_PREFIX)} subnets of the size /{prefix} none is free.",
                    )
                try:
                    return await self._create(instance_id, owner, egress, pool, index, subnet)
                except DockerRefused as refused:
                    if "overlap" not in refused.message.lower():
                        raise network_failure(refused) from refused
                    # Somebody else on this machine was faster, or has an interface that isn't routed yet.
                    refused_subnets.append(subnet)
            raise Failure(InstanceReason.NETWORK_FAILED, "No free subnet was found for the container's network.")

    async def remove(self, instance_id: str) -> None:
        """Remove the instance's networks. Raises `DockerRefused` while something is attached."""
        for network in await self._client.networks(self._names.labels(instance_id)):
            await self._client.remove_network(network.id)

    async def discard(self, network: InstanceNetwork) -> None:
        """Remove one network. Raises `DockerRefused` while something is attached."""
        await self._client.remove_network(network.id)

    def _pool(self, existing: Sequence[Network]) -> IPv4Network:
        for network in existing:
            label = network.labels.get(LABEL_POOL)
            if label and network.labels.get(LABEL_HOST) == self._names.host_id:
                return IPv4Network(label)
        pool = choose_pool(self._names.host_id, [*_v4(existing), *self._routes(), *self._reserved()])
        if pool is None:
            raise Failure(InstanceReason.NETWORK_FAILED, f"No free address range for containers within {RANGE}.")
        return pool

    def _foreign_routes(self, pool: IPv4Network) -> list[IPv4Network]:
        # A route that contains the whole pool is somebody's wide route, which our own bridges override.
        return [route for route in (*self._routes(), *self._reserved()) if not pool.subnet_of(route)]

    async def _create(
        self, instance_id: str, owner: str, egress: Egress, pool: IPv4Network, index: int, subnet: IPv4Network
    ) -> InstanceNetwork:
        name = self._names.network(instance_id, egress)
        network_id = await self._client.create_network(
            {
                "Name": name,
                "CheckDuplicate": True,
                "Driver": "bridge",
                "EnableIPv6": False,
                "Attachable": False,
                "Labels": self._names.labels(instance_id) | {LABEL_OWNER: owner, LABEL_POOL: str(pool)},
                "IPAM": {
                    "Driver": "default",
                    "Config": [{"Subnet": str(subnet), "Gateway": str(subnet.network_address + 1)}],
                },
            }
            | network_options(self._names, index, egress)
        )
        return InstanceNetwork(network_id, name, subnet, egress)

    def _instance_network(self, network: Network) -> InstanceNetwork | None:
        subnets = _v4((network,))
        if not subnets:
            return None
        return InstanceNetwork(network.id, network.name, subnets[0], egress_of(network, self._names))


def _v4(networks: Iterable[Network]) -> list[IPv4Network]:
    parsed = (ip_network(text, strict=False) for network in networks for text in network.subnets)
    return [subnet for subnet in parsed if isinstance(subnet, IPv4Network)]
