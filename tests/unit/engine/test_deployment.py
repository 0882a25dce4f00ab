"""What a stdio instance consists of, the next step towards it, and the container of one session."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Any

import pytest

from support.engine.objects import candidate, container, desired_instance
from toolbox_dtma.engine.api import Wanted
from toolbox_dtma.engine.deployment import Deployment, decide_deployment, deployed, fits
from toolbox_dtma.engine.names import LABEL_SESSION, HostNames
from toolbox_dtma.engine.networks import InstanceNetwork, free_subnets, sessions_prefix
from toolbox_dtma.engine.plan import Candidate, Do, Situation, Step
from toolbox_dtma.engine.session_spec import session_config
from toolbox_dtma.engine.spec import container_config
from toolbox_dtma.wire import DesiredInstance, Egress, InstancePhase, InstanceState

KEY = b"k" * 32
NAMES = HostNames("7c5e4d6a-0f3b-4a53-9a43-0c1f9a5f8f11")
NETWORK = InstanceNetwork("net-1", "mtb-net", IPv4Network("10.200.0.0/28"), Egress.INTERNET)


def desired(**changes: Any) -> DesiredInstance:
    stdio: dict[str, Any] = {"transport": "stdio", "port": None, "path": None, "sessions": {"max_sessions": 10}}
    return desired_instance(**(stdio | changes))


def situation(
    *candidates: Candidate,
    state: InstanceState = InstanceState.RUNNING,
    image: str | None = "sha256:aa",
    network: bool = True,
    spare: bool = False,
) -> Situation:
    return Situation(state, candidates, False, image, network, None, None, 0.0, 100.0, spare_network=spare)


@pytest.mark.parametrize(
    ("at", "fitting", "do", "phase"),
    [
        (situation(), True, Do.SETTLE, InstancePhase.STARTING),
        (situation(image=None), True, Do.PULL, InstancePhase.PENDING),
        (situation(network=False), True, Do.MAKE_NETWORK, InstancePhase.PENDING),
        (situation(network=False, spare=True), True, Do.REMOVE_NETWORK, InstancePhase.PENDING),
        (situation(), False, Do.REPLACE_NETWORK, InstancePhase.PENDING),
        (situation(state=InstanceState.STOPPED), True, Do.SETTLE, InstancePhase.STOPPED),
        # A stopped server needs neither image nor network, and what it has may stay too small.
        (situation(state=InstanceState.STOPPED, image=None, network=False), False, Do.SETTLE, InstancePhase.STOPPED),
    ],
)
def test_a_stdio_server_is_image_and_network(at: Situation, fitting: bool, do: Do, phase: InstancePhase) -> None:
    step = decide_deployment(at, fitting=fitting)
    assert (step.do, step.phase, step.container) == (do, phase, None)


@pytest.mark.parametrize("state", list(InstanceState))
@pytest.mark.parametrize(
    ("status", "do"),
    [("running", Do.STOP), ("paused", Do.UNPAUSE), ("exited", Do.REMOVE), ("created", Do.REMOVE), ("dead", Do.REMOVE)],
)
def test_a_container_that_stands_under_its_id_goes_first(status: str, do: Do, state: InstanceState) -> None:
    assert decide_deployment(situation(candidate(container(status)), state=state), fitting=True).do is do


def deployment(**changes: Any) -> Deployment:
    settled = Step(Do.SETTLE, InstancePhase.STARTING, decide_deployment(situation(), fitting=True).reason)
    made = deployed(settled, Wanted("i-1", "cluster", desired(**changes)), "sha256:aa", NETWORK, KEY)
    assert made is not None
    return made


def test_only_what_is_settled_and_meant_to_run_is_deployed() -> None:
    wanted = Wanted("i-1", "cluster", desired())
    for step in (
        decide_deployment(situation(image=None), fitting=True),
        decide_deployment(situation(state=InstanceState.STOPPED), fitting=True),
    ):
        assert deployed(step, wanted, "sha256:aa", NETWORK, KEY) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"generation": 2},
        {"expose": {"tools": {"allow": []}}},
        {"sessions": {"max_sessions": 5, "idle_seconds": 5.0}},
        {"registry_credentials": ({"registry": "registry.example.com", "username": "u", "password": "p"},)},
    ],
)
def test_what_shapes_no_container_keeps_the_deployment(changes: dict[str, Any]) -> None:
    wanted = Wanted("i-1", "cluster", desired(**changes))
    kept = deployment().under(wanted, KEY)
    assert kept is not None and kept.id == deployment().id and kept.wanted == wanted
    assert deployment(**changes).id == deployment().id


@pytest.mark.parametrize(
    "changes",
    [
        {"env": ({"name": "A", "value": "1"},)},
        {"restart_token": "again"},
        {"command": ("other",)},
        {"limits": {"memory_bytes": 64 * 1024 * 1024}},
    ],
)
def test_what_shapes_containers_is_another_deployment(changes: dict[str, Any]) -> None:
    assert deployment().under(Wanted("i-1", "cluster", desired(**changes)), KEY) is None
    assert deployment(**changes).id != deployment().id


@pytest.mark.parametrize("changes", [{"state": "Stopped"}, {"sessions": {"max_sessions": 100}}])
def test_a_stopped_server_and_one_that_needs_a_larger_network_are_not_deployed_for_now(
    changes: dict[str, Any],
) -> None:
    assert deployment().under(Wanted("i-1", "cluster", desired(**changes)), KEY) is None


def test_another_owner_or_a_server_that_listens_is_another_deployment() -> None:
    assert deployment().under(Wanted("i-1", "another", desired()), KEY) is None
    assert deployment().under(Wanted("i-1", "cluster", desired_instance()), KEY) is None


@pytest.mark.parametrize(("sessions", "prefix"), [(1, 28), (10, 28), (11, 28), (12, 27), (100, 25), (1000, 22)])
def test_a_subnet_has_an_address_for_every_session_and_for_probes(sessions: int, prefix: int) -> None:
    assert sessions_prefix(sessions) == prefix
    # Its own address, the bridge's and the broadcast one are not for containers.
    assert 2 ** (32 - prefix) - 3 >= sessions + 2


def test_a_network_fits_if_it_is_large_enough() -> None:
    assert fits(None, desired()) and fits(NETWORK, desired())
    assert not fits(NETWORK, desired(sessions={"max_sessions": 12}))
    assert fits(InstanceNetwork("n", "n", IPv4Network("10.200.0.0/22"), Egress.INTERNET), desired())


def test_larger_subnets_have_bridges_of_their_own_beside_smaller_ones() -> None:
    pool = IPv4Network("10.200.0.0/18")
    small = dict(free_subnets(pool, ()))
    large = dict(free_subnets(pool, (IPv4Network("10.200.0.0/28"),), 22))
    assert min(large) == 64 and large[64] == IPv4Network("10.200.4.0/22")
    assert all(small[index].network_address == subnet.network_address for index, subnet in large.items())


def test_a_sessions_container_is_a_servers_but_for_its_streams_its_log_and_its_label() -> None:
    wanted = Wanted("i-1", "cluster", desired(security={"run_as_user": 1000}, env=({"name": "A", "value": "1"},)))
    plain = container_config(NAMES, "i-1", "cluster", wanted.desired, KEY, NETWORK.name, NETWORK.address)
    config = session_config(NAMES, Deployment("d", wanted, "sha256:aa", NETWORK), "s-1", KEY)
    assert config["Labels"] == plain["Labels"] | {LABEL_SESSION: "s-1"}
    assert config["HostConfig"] == plain["HostConfig"] | {"LogConfig": {"Type": "none", "Config": {}}}
    changed = {key for key in config if config[key] != plain.get(key)}
    assert changed == {
        "Image", "Labels", "HostConfig", "NetworkingConfig",
        "OpenStdin", "StdinOnce", "AttachStdin", "AttachStdout", "AttachStderr",
    }  # fmt: skip
    assert config["NetworkingConfig"] == {"EndpointsConfig": {NETWORK.name: {}}} and config["Image"] == "sha256:aa"


def test_containers_of_sessions_never_share_a_name() -> None:
    names = {NAMES.session_container("i-1", "n" * 63, f"s-{number}") for number in range(100)}
    assert len(names) == 100 and max(len(name) for name in names) <= 63
