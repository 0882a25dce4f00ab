"""The create request for the container of one session of a stdio server."""

from __future__ import annotations

from typing import Any

from toolbox_dtma.engine.deployment import Deployment
from toolbox_dtma.engine.names import LABEL_SESSION, HostNames
from toolbox_dtma.engine.spec import container_config


def session_config(names: HostNames, deployment: Deployment, session: str, key: bytes) -> dict[str, Any]:
    """As a server's container, with the same limits and fences, but for what a session needs."""
    wanted, network = deployment.wanted, deployment.network
    config = container_config(names, wanted.id, wanted.owner, wanted.desired, key, network.name, network.address)
    config["Labels"] |= {LABEL_SESSION: session}
    # By its id: every session of a deployment runs the same image, however its name moves.
    config["Image"] = deployment.image_id
    # Once: stdin ends with the connection of whoever is attached, so that the process sees its session's end even if
    # nobody is left to stop it.
    config |= {"OpenStdin": True, "StdinOnce": True, "AttachStdin": True, "AttachStdout": True, "AttachStderr": True}
    # What a session says is the session's: the broker reads it, and nothing of it is kept on the host.
    config["HostConfig"]["LogConfig"] = {"Type": "none", "Config": {}}
    config["NetworkingConfig"] = {"EndpointsConfig": {network.name: {}}}
    return config
