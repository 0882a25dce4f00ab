"""One look at an instance in the engine, and how it is reported."""

from __future__ import annotations

from dataclasses import dataclass

from toolbox_dtma.engine.api import Seen, Wanted
from toolbox_dtma.engine.deployment import Deployment
from toolbox_dtma.engine.failures import bounded
from toolbox_dtma.engine.models import Container
from toolbox_dtma.engine.names import LABEL_SESSION
from toolbox_dtma.engine.networks import InstanceNetwork
from toolbox_dtma.engine.plan import Candidate, Step
from toolbox_dtma.engine.spec import same_spec
from toolbox_dtma.engine.world import World
from toolbox_dtma.wire import ContainerReport, InstancePhase, InstanceReason


@dataclass(frozen=True, slots=True)
class Observed:
    """The instance's containers, without those of sessions, against what was desired when looking."""

    wanted: Wanted
    candidates: tuple[Candidate, ...]
    network: InstanceNetwork | None
    """The network of the kind that is desired."""
    spares: tuple[InstanceNetwork, ...]
    """The instance's other networks that no container of it is on."""


async def observe(world: World, wanted: Wanted) -> Observed:
    """Ask the engine. Raises `EngineUnavailable`."""
    listed = await world.client.containers(world.names.labels(wanted.id))
    inspected = [await world.client.container(item.id) for item in listed if LABEL_SESSION not in item.labels]
    networks = await world.networks.of(wanted.id)
    network = next((item for item in networks if item.egress is wanted.desired.security.egress), None)
    candidates = tuple(
        Candidate(
            container,
            same_spec(container.config.labels, wanted.desired, world.spec_key),
            _on_network(container, network),
        )
        for container in inspected
        if container is not None
    )
    containers = [item.container for item in candidates]
    spares = tuple(item for item in networks if item is not network and not any(_attached(c, item) for c in containers))
    return Observed(wanted, candidates, network, spares)


def _attached(container: Container, network: InstanceNetwork) -> bool:
    # One that was never started names its network, and shows no id.
    return any(
        endpoint.network_id == network.id or (not endpoint.network_id and name == network.name)
        for name, endpoint in container.network_settings.networks.items()
    )


def _on_network(container: Container, network: InstanceNetwork | None) -> bool:
    if network is None:
        # It is made again before the container starts; one that was attached to the old one is replaced then.
        return True
    endpoint = container.network_settings.networks.get(network.name)
    return endpoint is not None and endpoint.network_id in ("", network.id)


async def as_seen(world: World, observed: Observed, step: Step, container: Container | None, *, restarts: int) -> Seen:
    """What is reported of a server that listens while `step` is the next one and `container` the one to show."""
    running = container if container is not None and container.state.status == "running" else None
    return Seen(
        generation=observed.wanted.desired.generation,
        inputs_hash=observed.wanted.desired.inputs_hash,
        phase=step.phase,
        reason=step.reason,
        message=bounded(step.message),
        container=await _report(world, container, step, restarts) if container else None,
        address=_address(running, observed.network) if running else None,
        incarnation=running.incarnation if running else None,
    )


def deployment_seen(wanted: Wanted, step: Step, deployment: Deployment | None) -> Seen:
    """What is reported of a server that has sessions while `step` is the next one."""
    return Seen(
        generation=wanted.desired.generation,
        inputs_hash=wanted.desired.inputs_hash,
        phase=step.phase,
        reason=step.reason,
        message=bounded(step.message),
        incarnation=deployment.id if deployment is not None else None,
    )


def without_sight(wanted: Wanted, last: Seen | None, reason: InstanceReason, message: str) -> Seen:
    """An error, with the container as it was last seen: it may well go on serving."""
    return Seen(
        generation=wanted.desired.generation,
        inputs_hash=wanted.desired.inputs_hash,
        phase=InstancePhase.ERROR,
        reason=reason,
        message=bounded(message),
        container=last.container if last else None,
        address=last.address if last else None,
        incarnation=last.incarnation if last else None,
    )


async def _report(world: World, container: Container, step: Step, restarts: int) -> ContainerReport:
    ended = container.state.status in {"exited", "dead"}
    failed = ended and step.phase is InstancePhase.ERROR
    return ContainerReport(
        name=container.name.lstrip("/"),
        id=container.id,
        image=container.config.image,
        image_digest=await world.images.digest(container.image, container.config.image),
        state=container.state.status,
        started_at=container.started_at,
        restarts=restarts,
        exit_code=container.state.exit_code if ended else None,
        reason=step.reason.value if failed else None,
        message=bounded(step.message) if failed else None,
    )


def _address(container: Container, network: InstanceNetwork | None) -> str | None:
    endpoint = container.network_settings.networks.get(network.name) if network else None
    return endpoint.ip_address or None if endpoint else None
