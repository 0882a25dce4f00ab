"""What a container may reach is a matter of the network it is on.

The kind of a network is in the name of its bridge, which the firewall's rules match by prefix: no rule comes or goes
with an instance, and a network made before there were kinds has the name of the kind it always was.
"""

from __future__ import annotations

from typing import Any

from toolbox_dtma.engine.models import Network
from toolbox_dtma.engine.names import HostNames
from toolbox_dtma.wire import Egress

_BRIDGE = "com.docker.network.bridge.name"

NO_RESOLVER = "192.0.2.1"
"""An address nobody has (RFC 5737)."""


def egress_of(network: Network, names: HostNames) -> Egress | None:
    """What a network lets out, by the facts the engine shows; none for one that this host would not make."""
    bridge = network.options.get(_BRIDGE, "")
    found = next((egress for egress in Egress if names.is_bridge(bridge, egress)), None)
    return found if network.internal is (found is Egress.NONE) else None


def network_options(names: HostNames, index: int, egress: Egress) -> dict[str, Any]:
    """Members of the create request of a network that let out no more than asked for."""
    internal = egress is Egress.NONE
    return {
        "Internal": internal,
        "Options": {
            _BRIDGE: names.bridge(index, egress),
            "com.docker.network.bridge.enable_icc": "false",
            "com.docker.network.bridge.enable_ip_masquerade": "false" if internal else "true",
        },
    }


def name_resolution(egress: Egress) -> dict[str, Any]:
    """Members of a container's HostConfig that say whom its names are looked up with.

    Docker's own resolver passes on to the host's what a container asks, and some versions do it from the host's side
    even for an internal network (CVE-2024-29018): so it is given one that nothing leads to, and told to give up soon.
    """
    if egress is not Egress.NONE:
        return {}
    return {"Dns": [NO_RESOLVER], "DnsSearch": ["."], "DnsOptions": ["timeout:1", "attempts:1"]}
