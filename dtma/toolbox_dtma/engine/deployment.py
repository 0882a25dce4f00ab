"""A stdio server on this host: image and network, no container of its own; each session gets one (design §6).

What `plan` is for servers that listen, this is for those that do not: a pure decision, one step at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from toolbox_dtma.engine.api import Wanted
from toolbox_dtma.engine.networks import SUBNET_PREFIX, InstanceNetwork, sessions_prefix
from toolbox_dtma.engine.plan import Candidate, Do, Situation, Step, clear_away, towards_network
from toolbox_dtma.engine.spec import spec_hash
from toolbox_dtma.wire import DesiredInstance, InstancePhase, InstanceReason, InstanceState


@dataclass(frozen=True, slots=True)
class Deployment:
    """All that a session's container is made of."""

    id: str
    """Changes with what shapes containers, with the image and with the network; not with a restart of anything."""
    wanted: Wanted
    image_id: str
    network: InstanceNetwork

    def under(self, wanted: Wanted, key: bytes) -> Deployment | None:
        """This deployment as it stands with another wish; None if its containers would be other ones."""
        if not runs_sessions(wanted.desired) or not fits(self.network, wanted.desired):
            return None
        same = spec_hash(wanted.desired, key) == spec_hash(self.wanted.desired, key)
        return replace(self, wanted=wanted) if same and wanted.owner == self.wanted.owner else None


def has_sessions(desired: DesiredInstance) -> bool:
    """Whether a server has a container for each session, in place of one that stands."""
    return desired.transport == "stdio"


def runs_sessions(desired: DesiredInstance) -> bool:
    """Whether sessions are meant to be opened."""
    return has_sessions(desired) and desired.state is InstanceState.RUNNING


def prefix_for(desired: DesiredInstance) -> int:
    """The size of subnet that an instance needs."""
    return sessions_prefix(desired.sessions.max_sessions) if desired.sessions is not None else SUBNET_PREFIX


def fits(network: InstanceNetwork | None, desired: DesiredInstance) -> bool:
    """Whether a network has addresses for all sessions; none at all counts as fitting."""
    return network is None or network.subnet.prefixlen <= prefix_for(desired)


def deployed(
    step: Step, wanted: Wanted, image_id: str | None, network: InstanceNetwork | None, key: bytes
) -> Deployment | None:
    """What is there, named by what it consists of, if nothing is left to do and sessions can be opened."""
    if step.do is not Do.SETTLE or step.phase is not InstancePhase.STARTING or image_id is None or network is None:
        return None
    parts = (spec_hash(wanted.desired, key), image_id, network.id)
    return Deployment(hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32], wanted, image_id, network)


def decide_deployment(at: Situation, *, fitting: bool) -> Step:
    """The next step. `fitting`: whether the network, if there is one, is large enough."""
    if at.candidates:
        return _without_standing(at.candidates)
    if at.state is InstanceState.STOPPED:
        return Step(Do.SETTLE, InstancePhase.STOPPED, InstanceReason.STOPPED)
    if at.resolved_image is None:
        return Step(Do.PULL, InstancePhase.PENDING, InstanceReason.PULLING)
    if not fitting:
        return Step(
            Do.REPLACE_NETWORK, InstancePhase.PENDING, InstanceReason.CREATING, message="Making a larger network."
        )
    if not at.has_network:
        return towards_network(at, None)
    return Step(Do.SETTLE, InstancePhase.STARTING, InstanceReason.STARTING)


def _without_standing(candidates: Sequence[Candidate]) -> Step:
    """The object before had this id and listened: its container goes first."""
    return clear_away(candidates[0].container, "Removing the container of the server before.")
