"""Rules and the transactions that bring them about."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from toolbox_dtma.engine.failures import Failure
from toolbox_dtma.engine.firewall import Family, Firewall, Rules, parse_resolvers, removal, transaction
from toolbox_dtma.engine.names import HostNames
from toolbox_dtma.wire import InstanceReason

NAMES = HostNames("7c5e4d6a-0f3b-4a53-9a43-0c1f9a5f8f11")
RESOLVERS = tuple(map(ip_address, ("10.1.1.1", "127.0.0.53", "fd00::53")))
EMPTY = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n-A DOCKER-USER -j RETURN\nCOMMIT\n"
WITHOUT_DOCKER = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"


def rules(family: Family = "v4") -> Rules:
    return Rules(NAMES, family, RESOLVERS)


def applied(saved: str, change: str | None) -> str:
    """A small iptables-restore --noflush."""
    chains: dict[str, list[str]] = {}
    for line in saved.splitlines() + (change or "").splitlines():
        words = line.split()
        if line.startswith(":"):
            chains[words[0][1:]] = []
        elif line.startswith("-A"):
            chains[words[1]].append(line)
        elif line.startswith("-I"):
            chains[words[1]].insert(int(words[2]) - 1, " ".join(["-A", words[1], *words[3:]]))
        elif line.startswith("-D"):
            chains[words[1]].remove(f"-A{line[2:]}")
        elif line.startswith("-X"):
            assert not chains.pop(words[1])
    declared = [f":{chain} - [0:0]" for chain in chains]
    return "\n".join(["*filter", *declared, *(rule for found in chains.values() for rule in found), "COMMIT", ""])


@pytest.mark.parametrize("saved", [EMPTY, WITHOUT_DOCKER])
@pytest.mark.parametrize("family", ["v4", "v6"])
def test_one_transaction_is_enough_and_a_second_one_is_not_needed(saved: str, family: Family) -> None:
    table = applied(saved, transaction(rules(family), saved))
    assert transaction(rules(family), table) is None
    assert f"-A INPUT -i {NAMES.bridge_prefix}+ -j {NAMES.input_chain}" in table


def test_forwarding_is_hooked_into_dockers_chain_where_there_is_one() -> None:
    assert f"-I DOCKER-USER 1 -i {NAMES.bridge_prefix}+" in (transaction(rules(), EMPTY) or "")
    assert f"-I FORWARD 1 -i {NAMES.bridge_prefix}+" in (transaction(rules(), WITHOUT_DOCKER) or "")


def test_the_hook_moves_when_docker_brings_its_chain() -> None:
    before = applied(WITHOUT_DOCKER, transaction(rules(), WITHOUT_DOCKER))
    with_docker = before.replace("*filter\n", "*filter\n:DOCKER-USER - [0:0]\n")
    after = applied(with_docker, transaction(rules(), with_docker))
    assert "-A FORWARD -i mtb" not in after and "-A DOCKER-USER -i mtb" in after


def test_a_removed_rule_comes_back() -> None:
    table = applied(EMPTY, transaction(rules(), EMPTY))
    damaged = table.replace(f"-A {NAMES.forward_chain} -d 169.254.0.0/16 -j DROP\n", "")
    assert damaged != table
    assert applied(damaged, transaction(rules(), damaged)) == table


def test_an_accept_before_our_jump_is_overtaken_but_not_the_jump_of_another_host() -> None:
    table = applied(EMPTY, transaction(rules(), EMPTY))
    jump = rules().jump("INPUT")
    accept = table.replace(jump, f"-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n{jump}")
    assert transaction(rules(), accept) is not None
    other = table.replace(jump, f"-A INPUT -i mtb123456+ -j MTB-123456-IN\n{jump}")
    assert transaction(rules(), other) is None


def test_doubled_jumps_become_one() -> None:
    table = applied(EMPTY, transaction(rules(), EMPTY))
    jump = rules().jump("INPUT")
    doubled = table.replace(jump, f"{jump}\n{jump}")
    assert applied(doubled, transaction(rules(), doubled)) == table


def test_teardown_leaves_what_was_there_before() -> None:
    table = applied(EMPTY, transaction(rules(), EMPTY))
    again = applied(table, removal(rules(), table))
    assert "mtb" not in again.lower() and "-A DOCKER-USER -j RETURN" in again
    assert removal(rules(), EMPTY) is None


def test_resolvers_are_let_through_before_their_range_is_refused_and_only_for_dns() -> None:
    chain = rules().chains[NAMES.forward_chain]
    allowed = [index for index, rule in enumerate(chain) if "-d 10.1.1.1/32" in rule]
    refused = next(index for index, rule in enumerate(chain) if "-d 10.0.0.0/8" in rule)
    assert len(allowed) == 2 and max(allowed) < refused
    assert all("--dport 53" in chain[index] for index in allowed)
    assert not any("127.0.0.53" in rule or "fd00::53" in rule for rule in chain)
    assert any("fd00::53/128" in rule for rule in rules("v6").chains[NAMES.forward_chain])


def test_resolv_conf_is_read_with_its_oddities() -> None:
    text = (
        "# comment\nnameserver 10.1.1.1\nnameserver fe80::1%eth0\nnameserver nonsense\nsearch x\nnameserver 10.1.1.1\n"
    )
    assert [str(address) for address in parse_resolvers(text)] == ["10.1.1.1", "fe80::1"]


async def test_a_table_that_changed_under_us_is_planned_again() -> None:
    tables = [EMPTY, WITHOUT_DOCKER]
    restored: list[str] = []

    async def run(program: str, *arguments: str, stdin: str | None = None) -> str:
        if program.endswith("-save"):
            return tables[0]
        if len(tables) == 2:
            tables.pop(0)
            raise Failure(InstanceReason.NETWORK_FAILED, "line 3 failed")
        restored.append(stdin or "")
        return ""

    await Firewall(NAMES, run, resolvers=tuple, ipv6=lambda: False).ensure()
    assert len(restored) == 1 and "-I FORWARD 1" in restored[0]


async def test_rules_are_asserted_once_until_something_may_have_changed() -> None:
    calls: list[str] = []

    async def run(program: str, *arguments: str, stdin: str | None = None) -> str:
        calls.append(program)
        return EMPTY if program.endswith("-save") else ""

    firewall = Firewall(NAMES, run, resolvers=tuple, ipv6=lambda: False)
    await firewall.ensure()
    await firewall.ensure()
    assert calls == ["iptables-save", "iptables-restore"]
    firewall.forget()
    await firewall.ensure()
    assert len(calls) == 4
