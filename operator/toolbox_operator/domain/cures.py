"""What every reason in a condition means, and what cures it: the page docs/conditions.md.

Total over both enums (a test holds it to that), so that a reason cannot be added without its cure.
`python -m toolbox_operator.domain.cures` prints the page.
"""

# ruff: noqa: E501  (each cure is one cell of a table)

from __future__ import annotations

from typing import Final

from toolbox_dtma.wire import InstanceReason
from toolbox_operator.api.conditions import Reason
from toolbox_operator.domain.policy import INSTANCES

_NONE = "nothing to do"
_WAIT = "goes on by itself"

CURES: Final[dict[Reason, tuple[str, str]]] = {
    Reason.READY: ("it does what its spec says", _NONE),
    Reason.ACCEPTED: ("what it refers to takes it", _NONE),
    Reason.RESOLVED: ("every Secret and ConfigMap it names is there", _NONE),
    Reason.DEPLOYED: ("the host runs what this generation says", _NONE),
    Reason.PROGRAMMED: ("every gateway worker of the host knows this generation", _NONE),
    Reason.REACHABLE: ("the host answers", _NONE),
    Reason.CONNECTED: ("the agent can call the server", _NONE),
    Reason.CLOCK_SKEWED: (
        "the host answers, but its clock is far from the operator's",
        "set the clock on the host (or the node): chronyd, systemd-timesyncd. Expiry is judged by both clocks",
    ),
    Reason.PENDING: ("nothing is known yet", _WAIT),
    Reason.RECONCILING: ("the host has not reported this generation yet", _WAIT),
    Reason.DELETING: (
        "it is being removed from the host",
        f"{_WAIT}; if it does not, the message says what it waits for",
    ),
    Reason.STOPPED: ("the server is stopped, as `spec.state` wants", "to start it: `state: Running`"),
    Reason.STOPPING: ("the server is about to stop", _WAIT),
    Reason.INACTIVE: ("the connection is switched off", "to open it: `active: true`"),
    Reason.EXPIRED: ("`spec.expiresAt` has passed", "set a later `expiresAt`"),
    Reason.SERVER_NOT_READY: (
        "the connection is all right, its MCPServer is not",
        "look at the MCPServer that the message names",
    ),
    Reason.REVOCATION_PENDING: (
        "access is withdrawn, but not every gateway worker has confirmed it",
        f"{_WAIT}, once the host answers. The host itself refuses expired access also while it is cut off",
    ),
    Reason.ACK_PENDING: (
        "the host knows it, not every gateway worker has confirmed it",
        f"{_WAIT}; if it stays: `journalctl -u toolbox-gateway` on the host",
    ),
    Reason.ROTATING: ("the new token is on its way to the host", _WAIT),
    Reason.IN_USE: (
        "a Toolbox that is being deleted waits for the MCPServers on it",
        "delete the MCPServers that the message names",
    ),
    Reason.TOOLS_APPROVED: ("the server has the tools that were approved again (an Event only)", _NONE),
    Reason.TOOLS_CHANGED: (
        "the tools are others than before, and nobody edited the spec; or some of the approved ones are gone",
        "look at `status.tools`. To have such changes hidden: `expose.tools.approvedHash`. Any edit of the spec ends it; with approvedHash, the new hash does",
    ),
    Reason.TOOLS_NOT_APPROVED: (
        "the server has tools that `expose.tools.approvedHash` does not approve; they are hidden, and calls of them refused",
        "look at `status.tools`, then set `expose.tools.approvedHash` to `status.toolsHash`",
    ),
    Reason.TOOLBOX_NOT_FOUND: (
        "there is no Toolbox of that name",
        "create it, or create the server anew with another `toolboxRef`",
    ),
    Reason.TOOLBOX_NOT_READY: ("the Toolbox is there and not Ready", "look at the Toolbox that the message names"),
    Reason.SERVER_NOT_FOUND: (
        "there is no MCPServer of that name",
        "create it, or create the connection anew with another `serverRef`",
    ),
    Reason.SECRET_NOT_FOUND: ("a Secret that the spec names is not there", "create it in the object's own namespace"),
    Reason.SECRET_KEY_NOT_FOUND: ("the Secret has no such key", "add the key, or correct `key`"),
    Reason.SECRET_INVALID: (
        "the Secret's value cannot be what it has to be",
        "replace the value; the message says what is wrong with it",
    ),
    Reason.CONFIG_MAP_NOT_FOUND: (
        "a ConfigMap that the spec names is not there",
        "create it in the object's own namespace",
    ),
    Reason.CONFIG_MAP_KEY_NOT_FOUND: ("the ConfigMap has no such key", "add the key, or correct `key`"),
    Reason.NOT_PERMITTED: (
        "what it refers to does not take objects of this namespace",
        "its owner changes `allowedServers` (Toolbox) or `sharing` (MCPServer), or this one moves to that namespace; where labels decide, whoever may label its namespace can cure it too",
    ),
    Reason.NAMESPACE_UNKNOWN: (
        "labels of its namespace decide, and the operator does not know them; what was open stays open, nothing new is opened",
        f"{_WAIT}, mostly at once. If not, the operator may not list namespaces: apply `manifests/` again",
    ),
    Reason.SECRET_CONFLICT: (
        "a Secret of the connection's name is there and belongs to somebody else",
        "remove that Secret, or create the connection anew with another `secretName`",
    ),
    Reason.HOST_UNREACHABLE: (
        "no connection to the host's management API",
        "check `spec.endpoint`, the host's firewall for that port, and `systemctl status toolbox-dtma` there",
    ),
    Reason.HOST_UNAUTHORIZED: (
        "the host refuses the token",
        "apply again what `toolbox-dtma init` prints on the host: it holds the current token",
    ),
    Reason.HOST_TLS_FAILED: (
        "the host's certificate is not trusted, or not for that name",
        "apply again what `toolbox-dtma init` prints; for another name, run init with `--address` for each name first",
    ),
    Reason.HOST_REJECTED: (
        "the host answers, and refuses or fails",
        "the message quotes it; mostly another version ([upgrade.md](upgrade.md)), or Docker away on the host. All codes: [failures.md](failures.md)",
    ),
    Reason.HOST_LOST: (
        "no contact for longer than `leaseDuration`; what runs there is Unknown, agents may well go on",
        "bring the host back. Nothing is removed meanwhile. If it never comes back: [uninstall.md](uninstall.md), break-glass",
    ),
    Reason.DISK_FULL: (
        "the host cannot write its state",
        "free space on the host: `docker system df`, `df -h /var/lib`",
    ),
    Reason.KUBERNETES_REFUSED: (
        "the API server refuses a write of the operator",
        "the message says which; mostly an admission webhook, a quota, or RBAC that was changed (apply `manifests/` again)",
    ),
    Reason.INTERNAL_ERROR: (
        "an error nobody planned for; it is tried again",
        "the operator's log has it with its traceback: please report it",
    ),
    Reason.SPEC_INVALID: (
        "the spec breaks a rule that the API server did not check",
        "edit the spec as the message says",
    ),
    Reason.IMMUTABLE_FIELD: (
        "a field was edited that cannot change",
        "set it back, or delete the object and create it anew",
    ),
    Reason.INSTANCE_ID_IN_USE: (
        "another object, or another cluster, has the same instance id on the host",
        "delete one of the two, or create this one anew without the annotation `magictoolbox.dev/instance-id`; after a move to another cluster: [backup.md](backup.md)",
    ),
    Reason.INSTANCE_ID_INVALID: (
        "the annotation `magictoolbox.dev/instance-id` is not a UUID, or was changed",
        "set it back to `status.instanceId`, or create the object anew without it",
    ),
    Reason.HOST_CLAIMED: ("another Toolbox already stands for this host", "delete one of the two"),
    Reason.HOST_CHANGED: (
        "the endpoint leads to another host than before",
        "correct `endpoint`, or create another Toolbox for the other host",
    ),
    Reason.GATEWAY_UNAVAILABLE: (
        "no gateway worker runs on the host, so agents reach nothing there",
        "`systemctl start toolbox-gateway` on the host; `journalctl -u toolbox-gateway` says why it ended",
    ),
    Reason.CLEANUP_BLOCKED: (
        "deletion waits for the host, which does not confirm it",
        'bring the host back, or let go without it: `magictoolbox.dev/abandon: "true"` ([uninstall.md](uninstall.md), break-glass)',
    ),
    Reason.ABANDONED: (
        "it was let go without the host's word",
        "what is left on the host goes when the host comes back; else remove it there by hand",
    ),
}
"""(what it means, what cures it)"""

HOST_CURES: Final[dict[InstanceReason, str]] = {
    InstanceReason.PULLING: _WAIT,
    InstanceReason.CREATING: _WAIT,
    InstanceReason.STARTING: f"{_WAIT}; after 60 s without an answer it is an error",
    InstanceReason.READY: _NONE,
    InstanceReason.STOPPED: "to start it: `state: Running`",
    InstanceReason.IMAGE_NOT_FOUND: "correct `spec.image`, or push it",
    InstanceReason.IMAGE_PULL_FAILED: "make the registry reachable from the host: `docker pull IMAGE` there shows the same",
    InstanceReason.IMAGE_INVALID: "correct `spec.image`, or build it for the host's architecture (`status.agent.arch` of the Toolbox)",
    InstanceReason.REGISTRY_UNAUTHORIZED: "name a Secret of type docker-registry with valid credentials in `spec.imagePullSecrets`",
    InstanceReason.CREATE_FAILED: "the message quotes Docker; mostly a value in the spec that this engine does not take",
    InstanceReason.START_FAILED: "correct `command` and `args`; the program has to be in the image and executable",
    InstanceReason.CONTAINER_EXITED: "read the end of its log (`docker logs` on the host; the message has its last lines). It is restarted, ever less often. With stdio: the message has the last line that it wrote to standard error",
    InstanceReason.OUT_OF_MEMORY: "raise `spec.resources.limits.memory`",
    InstanceReason.PORT_NOT_LISTENING: "set `spec.port` to where the server listens, and let it listen on 0.0.0.0, not on 127.0.0.1",
    InstanceReason.PROBE_FAILED: "check `spec.port` and `spec.path`, and that the server speaks `spec.transport` there: streamable HTTP, or with `sse` a stream whose first event names the endpoint. With stdio: that `command` and `args` start a server that speaks MCP on standard input and output, and logs to standard error only",
    InstanceReason.DISK_FULL: "free space on the host: `docker system df`, `df -h /var/lib`",
    InstanceReason.NETWORK_FAILED: "the message quotes iptables or Docker; `iptables-save` has to work on the host, and addresses must be left",
    InstanceReason.VOLUME_FAILED: "the message quotes Docker, or names the volume that is not as DTMA makes it; `docker volume ls`, [volumes.md](volumes.md)",
    InstanceReason.ENGINE_UNAVAILABLE: "start Docker on the host: `systemctl start docker`",
}


def as_markdown() -> str:
    """The page."""
    lines = [
        "# Conditions: every reason with its cure",
        "",
        "Written by `make crds` from `toolbox_operator/domain/cures.py`. `kubectl describe` shows type, status, reason and message; the",
        "message is the first thing to read, it names the objects. *Goes on by itself*: is tried again, at most 30 s apart.",
        "",
        "## Reasons the operator gives",
        "",
        "| reason | means | cure |",
        "|---|---|---|",
    ]
    lines += [f"| {reason} | {means} | {cure} |" for reason, (means, cure) in CURES.items()]
    lines += [
        "",
        "## Reasons a host reports of a server",
        "",
        "| reason | means | cure |",
        "|---|---|---|",
    ]
    lines += [f"| {reason} | {INSTANCES[reason][1]} | {cure} |" for reason, cure in HOST_CURES.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")
