"""Networks of each egress, what the firewall makes of them, and names."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from support.engine.objects import desired_instance
from toolbox_dtma.engine.egress import NO_RESOLVER, egress_of, network_options
from toolbox_dtma.engine.firewall import Family, Rules
from toolbox_dtma.engine.models import Network
from toolbox_dtma.engine.names import HostNames
from toolbox_dtma.engine.spec import container_config
from toolbox_dtma.wire import Egress

NAMES = HostNames("7c5e4d6a-0f3b-4a53-9a43-0c1f9a5f8f11")
OTHER = HostNames("11111111-0f3b-4a53-9a43-0c1f9a5f8f11")
RESOLVER = "10.1.1.1"


def network(**shown: Any) -> Network:
    return Network.model_validate({"Id": "n1", "Name": "mtb-x"} | shown)


@pytest.mark.parametrize("egress", list(Egress))
@pytest.mark.parametrize("index", [0, 0x3FF])
def test_what_is_made_for_an_egress_is_recognised_as_that(egress: Egress, index: int) -> None:
    assert egress_of(network(**network_options(NAMES, index, egress)), NAMES) is egress
    assert egress_of(network(**network_options(OTHER, index, egress)), NAMES) is None


def test_only_none_is_an_internal_network() -> None:
    assert {egress: network_options(NAMES, 0, egress)["Internal"] for egress in Egress} == {
        Egress.NONE: True,
        Egress.INTERNET: False,
        Egress.ALL: False,
    }


def test_a_network_from_before_there_was_egress_is_one_for_the_internet() -> None:
    before = {"Options": {"com.docker.network.bridge.name": f"{NAMES.bridge_prefix}01f"}}
    assert egress_of(network(**before), NAMES) is Egress.INTERNET


@pytest.mark.parametrize(
    "shown",
    [
        {"Internal": False, "Options": {"com.docker.network.bridge.name": NAMES.bridge(1, Egress.NONE)}},
        {"Internal": True, "Options": {"com.docker.network.bridge.name": NAMES.bridge(1, Egress.INTERNET)}},
        {"Internal": True, "Options": {"com.docker.network.bridge.name": NAMES.bridge(1, Egress.ALL)}},
        {"Options": {"com.docker.network.bridge.name": "br-0123456789ab"}},
        {"Options": None},
        {},
    ],
)
def test_a_network_that_is_not_what_its_name_says_is_of_no_kind(shown: dict[str, Any]) -> None:
    assert egress_of(network(**shown), NAMES) is None


def test_names_of_networks_and_bridges_tell_the_kinds_apart() -> None:
    assert len({NAMES.network("i1", egress) for egress in Egress}) == 3
    assert NAMES.network("i1", Egress.INTERNET) == f"mtb-{NAMES.tag}-i1", "as it always was"
    assert NAMES.bridge(31, Egress.INTERNET) == f"mtb{NAMES.tag}01f", "as it always was"
    for index in range(0x400):
        for egress in (Egress.NONE, Egress.ALL):
            kinds = [kind for kind in Egress if NAMES.is_bridge(NAMES.bridge(index, egress), kind)]
            assert kinds == [egress]
            prefix = NAMES.bridges(egress).removesuffix("+")
            assert not NAMES.bridge(index, Egress.INTERNET).startswith(prefix)


def test_none_is_given_a_resolver_that_nothing_leads_to() -> None:
    def resolution(egress: str) -> dict[str, Any]:
        desired = desired_instance(security={"egress": egress})
        host: dict[str, Any] = container_config(NAMES, "i1", "cluster", desired, b"k" * 32, "net", "10.200.0.2")[
            "HostConfig"
        ]
        return {key: value for key, value in host.items() if key.startswith("Dns")}

    assert resolution("Internet") == resolution("All") == {}
    assert resolution("None")["Dns"] == [NO_RESOLVER]
    assert ip_address(NO_RESOLVER) in ip_network("192.0.2.0/24")


class Verdict:
    """Follows a packet that opens a connection through a chain, as the kernel does."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    def of(self, egress: Egress, destination: str, port: int = 443, *, out: str = "eth0", led: bool = False) -> str:
        """`RETURN` (the host's own rules go on) or what stopped it."""
        bridge, anywhere = NAMES.bridge(7, egress), "::/0" if ":" in destination else "0.0.0.0/0"
        for rule in self._rules.chains[NAMES.forward_chain]:
            words = rule.split()
            option = dict(zip(words[2::2], words[3::2], strict=True))
            target, state = option["-j"], option.get("--ctstate", "")
            if (
                _interface(option.get("-i"), bridge)
                and _interface(option.get("-o"), out)
                and ip_address(destination) in ip_network(option.get("-d", anywhere))
                and option.get("--dport", str(port)) == str(port)
                and (not state or (state == "DNAT" and led))
            ):
                return target
        return "RETURN"


def _interface(pattern: str | None, name: str) -> bool:
    return pattern is None or (name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern)


V4, V6 = (Verdict(Rules(NAMES, family, (ip_address(RESOLVER), ip_address("fd00::53")))) for family in ("v4", "v6"))
PUBLIC = ("8.8.8.8", "2001:db8::1")
PRIVATE = (
    *("10.0.0.1", "172.16.0.1", "172.31.255.254", "192.168.0.1", "100.64.0.1", "100.127.255.254", "198.18.0.1"),
    *("fc00::1", "fdff::1"),
)
NEVER = (
    *("169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "192.0.0.192", "224.0.0.1"),
    *("fd00:ec2::254", "fd20:ce::254", "fd00:42::42", "fe80::1", "ff02::1"),
)


def verdict(egress: Egress, destination: str, port: int = 443, *, out: str = "eth0", led: bool = False) -> str:
    return (V6 if ":" in destination else V4).of(egress, destination, port, out=out, led=led)


@pytest.mark.parametrize("destination", PUBLIC)
def test_public_addresses_are_reached_but_with_none(destination: str) -> None:
    assert [verdict(egress, destination) for egress in (Egress.NONE, Egress.INTERNET, Egress.ALL)] == [
        "REJECT",
        "RETURN",
        "RETURN",
    ]


@pytest.mark.parametrize("destination", PRIVATE)
def test_private_addresses_are_reached_with_all_only(destination: str) -> None:
    assert [verdict(egress, destination) for egress in (Egress.NONE, Egress.INTERNET, Egress.ALL)] == [
        "REJECT",
        "DROP",
        "RETURN",
    ]


@pytest.mark.parametrize("destination", NEVER)
def test_metadata_services_and_the_link_are_never_reached(destination: str) -> None:
    assert all(verdict(egress, destination) != "RETURN" for egress in Egress)


@pytest.mark.parametrize("egress", list(Egress))
@pytest.mark.parametrize("destination", ["10.200.0.2", "8.8.8.8", "fd00::2"])
def test_no_other_instance_of_any_host_is_ever_reached(egress: Egress, destination: str) -> None:
    for host in (NAMES, OTHER):
        for kind in Egress:
            assert verdict(egress, destination, 53, out=host.bridge(1, kind)) != "RETURN"


def test_a_port_that_the_host_publishes_is_the_host() -> None:
    assert verdict(Egress.ALL, "172.17.0.2", led=True, out="docker0") == "DROP"
    assert verdict(Egress.ALL, "203.0.113.9", led=True) == "DROP"


@pytest.mark.parametrize("destination", [RESOLVER, "fd00::53"])
def test_the_hosts_resolvers_answer_all_but_none(destination: str) -> None:
    assert [verdict(egress, destination, 53) for egress in (Egress.NONE, Egress.INTERNET, Egress.ALL)] == [
        "REJECT",
        "RETURN",
        "RETURN",
    ]
    assert verdict(Egress.INTERNET, destination, 80) == "DROP"


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_of_the_host_itself_none_reaches_not_even_a_resolver(family: Family) -> None:
    chain = Rules(NAMES, family, (ip_address(RESOLVER), ip_address("fd00::53"))).chains[NAMES.input_chain]
    refusal = next(index for index, rule in enumerate(chain) if f"-i {NAMES.bridges(Egress.NONE)}" in rule)
    assert "REJECT" in chain[refusal]
    assert refusal < min(index for index, rule in enumerate(chain) if "--dport 53" in rule)
    assert chain[-1].endswith("-j DROP")


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_a_connection_that_a_container_opened_is_judged_by_every_packet(family: Family) -> None:
    for chain in Rules(NAMES, family, ()).chains.values():
        assert [rule for rule in chain if "ESTABLISHED" in rule and "--ctdir REPLY" not in rule] == []
