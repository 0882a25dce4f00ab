"""Toolboxes that do not lead to a host: wrong Secrets, wrong addresses, and hosts that are none."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from localstack.certificates import make_server_files
from localstack.ports import free_port
from localstack.quickstart import Target
from support.certificates import CA_PEM
from support.hosts.odd_hosts import odd_hosts
from support.hosts.spare_host import SpareHost
from support.system.space import Space

pytestmark = pytest.mark.faults

Cure = Callable[[Space, SpareHost, Target], None]


def put_the_secret_right(name: str) -> Cure:
    """What a person does who reads that something is wrong with it."""
    return lambda space, host, _: space.apply(host.secret(space.namespace, name))


def name_the_right_ca(space: Space, host: SpareHost, toolbox: Target) -> None:
    """An edit of the Toolbox."""
    space.world.patch(toolbox, {"spec": {"caSecretRef": {"name": "spare"}}})


def put_the_endpoint_right(space: Space, host: SpareHost, toolbox: Target) -> None:
    """An edit of the Toolbox."""
    space.world.patch(toolbox, {"spec": {"endpoint": host.endpoint, "caSecretRef": {"name": "spare"}}})


@dataclass(frozen=True)
class Odd:
    """One bad Toolbox."""

    name: str
    spec: dict[str, Any]
    reason: str
    says: tuple[str, ...]
    secret: dict[str, str] | None = None
    """Its own Secret `<name>`, applied with it."""
    cure: Cure | None = None
    port: str = ""
    """The odd host that its endpoint leads to."""
    phases: tuple[str, ...] = field(default=("Unreachable", "Lost"))

    def __str__(self) -> str:
        return self.name


def own(name: str) -> dict[str, Any]:
    return {"authSecretRef": {"name": name, "key": "token"}}


ODD = (
    Odd("no-secret", own("no-secret"), "SecretNotFound", ("Secret no-secret does not exist", "create it"),
        cure=put_the_secret_right("no-secret"), phases=("Pending", "Lost")),
    Odd("no-key", own("no-key"), "SecretKeyNotFound", ("has no key token", "add it"), {"other": "x"},
        cure=put_the_secret_right("no-key"), phases=("Pending", "Lost")),
    Odd("no-token", own("no-token"), "SecretInvalid", ("key token of the Secret no-token is not a token",),
        {"token": "two words"}, phases=("Pending", "Lost")),
    Odd("no-ca", {"caSecretRef": {"name": "no-ca", "key": "ca.crt"}}, "SecretInvalid",
        ("key ca.crt of the Secret no-ca is not a CA certificate",), {"ca.crt": "none"}, phases=("Pending", "Lost")),
    Odd("wrong-token", own("wrong-token"), "HostUnauthorized", ("authSecretRef", "current one"), {"token": "mistaken"},
        cure=put_the_secret_right("wrong-token")),
    Odd("wrong-ca", {"caSecretRef": {"name": "wrong-ca", "key": "ca.crt"}}, "HostTLSFailed",
        ("not trusted", "check caSecretRef"), {"ca.crt": CA_PEM}, cure=name_the_right_ca),
    Odd("wrong-ca-mended", {"caSecretRef": {"name": "wrong-ca-mended", "key": "ca.crt"}}, "HostTLSFailed",
        ("check caSecretRef",), {"ca.crt": CA_PEM}, cure=put_the_secret_right("wrong-ca-mended")),
    Odd("refused", {}, "HostUnreachable", ("cannot be reached", "spec.endpoint"), port="closed",
        cure=put_the_endpoint_right),
    Odd("silent", {}, "HostUnreachable", ("no answer in time", "spec.endpoint"), port="silent"),
    Odd("garbage", {}, "HostUnreachable", ("spec.endpoint",), port="garbage"),
    Odd("website", {}, "HostUnreachable", ("text/html", "spec.endpoint"), port="website", cure=put_the_endpoint_right),
    Odd("other-api", {}, "HostUnreachable", ("answered 404", "is this a Toolbox host?"), port="other-api"),
    Odd("empty-api", {}, "HostUnreachable", ("not a valid",), port="empty-api"),
    Odd("endless", {}, "HostUnreachable", ("larger than 16 MiB",), port="endless"),
)  # fmt: skip


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[dict[str, int], Path]]:
    """Ports of the odd hosts, and the authority that their certificates are from."""
    files = make_server_files(tmp_path_factory.mktemp("odd-hosts"))
    with odd_hosts(files) as found:
        yield {**found, "closed": free_port()}, files.ca


@pytest.fixture(scope="module", autouse=True)
def applied(space: Space, spare_host: SpareHost, ports: tuple[dict[str, int], Path]) -> None:
    """All of them at once."""
    numbers, authority = ports
    documents = [
        spare_host.secret(space.namespace, "spare"),
        spare_host.secret(space.namespace, "odd-ca", **{"ca.crt": authority.read_text()}),
    ]
    for odd in ODD:
        spec = dict(odd.spec)
        if odd.port:
            spec["endpoint"] = f"https://127.0.0.1:{numbers[odd.port]}"
            spec["caSecretRef"] = {"name": "odd-ca", "key": "ca.crt"}
        if odd.secret is not None:
            documents.append(spare_host.secret(space.namespace, odd.name, **odd.secret))
        documents.append(spare_host.toolbox(space.namespace, odd.name, **spec))
    space.apply(*documents)


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_a_toolbox_without_a_host_says_why_and_what_to_change(space: Space, spare_host: SpareHost, odd: Odd) -> None:
    world, toolbox = space.world, Target("Toolbox", space.namespace, odd.name)
    text = world.await_event(toolbox, odd.reason, seconds=60)
    for words in odd.says:
        assert words in text, text
    status = world.status(toolbox)
    assert status["phase"] in odd.phases
    assert "hostId" not in status, "what is not a host of ours is not remembered as one"
    ready = next(condition for condition in status["conditions"] if condition["type"] == "Ready")
    assert ready["status"] == "False"
    assert ready["reason"] in (odd.reason, "HostLost")
    for words in odd.says:
        assert words in ready["message"], ready["message"]
    if odd.cure is None:
        return
    odd.cure(space, spare_host, toolbox)
    world.await_condition(toolbox, "Ready", "True")
    assert world.status(toolbox)["hostId"] == spare_host.host.host_id
    space.delete(toolbox)
