"""Mistakes that a rule refuses: by CEL on the API server and by the operator, with the same message."""

from __future__ import annotations

from dataclasses import dataclass, field

from support.crd.cases import CONNECTION, REMOVE, SERVER, SERVER_RESOLVED, STDIO, TOOLBOX, Edits
from toolbox_operator.api.connection import ResolvedConnection
from toolbox_operator.api.meta import Kind
from toolbox_operator.api.rules import Resolved


@dataclass(frozen=True, slots=True)
class RuleCase:
    """A mistake that a rule refuses.

    With `before`, the object exists with those edits and is updated to have `edits`. `resolved` replaces the
    recorded values the operator compares with.
    """

    name: str
    kind: Kind
    edits: Edits
    path: str
    message: str
    update: bool = False
    resolved: Resolved | None = None
    before: Edits = field(default_factory=dict[str, object])


_HASH = "copy the value of status.toolsHash: sha256: and 64 hexadecimal digits in lower case"
_SERVER_FIXED = "delete this MCPServer and create one"
_NAME = "with at most 63 lower-case letters, digits and '-', without dots"
_URL = "https, a host, no path and no credentials"
_PATH = "write an absolute path such as /mcp, without '..', '//', escapes, query or fragment"
_IMAGE = "write an image reference such as registry.example.com/team/server:1.4, the repository in lower case"

_CHOICES = ((TOOLBOX, "spec.allowedServers.namespaces"), (SERVER, "spec.sharing.namespaces"))
"""Kinds that choose namespaces, and where."""


def _expressions(*expressions: object) -> dict[str, object]:
    return {"from": "Selector", "selector": {"matchExpressions": list(expressions)}}


RULES: tuple[RuleCase, ...] = (
    *(
        RuleCase(
            f"a {kind} with {what}",
            kind,
            {path: choice},
            path,
            "set selector with from: Selector, and only with it",
        )
        for kind, path in _CHOICES
        for what, choice in (
            ("from: Selector and no selector", {"from": "Selector"}),
            ("a selector and from: All", {"from": "All", "selector": {"matchLabels": {"team": "a"}}}),
            ("a selector and no from", {"selector": dict[str, str]()}),
        )
    ),
    *(
        RuleCase(
            f"a {kind} that selects by a key of 318 characters",
            kind,
            {path: {"from": "Selector", "selector": {"matchLabels": {f"{'a' * 316}/b": "c"}}}},
            f"{path}.selector.matchLabels",
            "write label keys of at most 317 characters",
        )
        for kind, path in _CHOICES
    ),
    *(
        RuleCase(
            f"a {kind} that selects by {what}",
            kind,
            {path: _expressions({"key": "tier", "operator": "Exists"}, expression)},
            f"{path}.selector.matchExpressions[1].values",
            "give values with In and NotIn, and none with Exists and DoesNotExist",
        )
        for kind, path in _CHOICES
        for what, expression in (
            ("In without values", {"key": "team", "operator": "In"}),
            ("NotIn of no values", {"key": "team", "operator": "NotIn", "values": list[str]()}),
            ("Exists with a value", {"key": "team", "operator": "Exists", "values": ["a"]}),
            ("DoesNotExist with a value", {"key": "team", "operator": "DoesNotExist", "values": [""]}),
        )
    ),
    RuleCase(
        "a toolbox name with a dot", TOOLBOX, {"metadata.name": "tbx.one"}, "metadata.name", f"name the Toolbox {_NAME}"
    ),
    RuleCase(
        "a server name of 64 characters",
        SERVER,
        {"metadata.name": "s" * 64},
        "metadata.name",
        f"name the MCPServer {_NAME}",
    ),
    RuleCase(
        "a connection name with a dot",
        CONNECTION,
        {"metadata.name": "a.b"},
        "metadata.name",
        f"name the AgentMCPConnection {_NAME}",
    ),
    *(
        RuleCase(
            f"an endpoint {what}",
            TOOLBOX,
            {"spec.endpoint": url},
            "spec.endpoint",
            f"write a URL of the form https://203.0.113.10:30000: {_URL}",
        )
        for what, url in (
            ("without TLS", "http://203.0.113.10:30000"),
            ("without a scheme", "203.0.113.10:30000"),
            ("with a path", "https://203.0.113.10:30000/v2"),
            ("with credentials", "https://user:secret@203.0.113.10:30000"),
            ("with an impossible port", "https://203.0.113.10:65536"),
            ("that ends in a line break", "https://203.0.113.10:30000\n"),
        )
    ),
    RuleCase(
        "a gateway URL without TLS",
        TOOLBOX,
        {"spec.gatewayURL": "http://tbx-1.example.com"},
        "spec.gatewayURL",
        f"write a URL of the form https://toolbox.example.com:30443: {_URL}",
    ),
    RuleCase(
        "a lease that is too short",
        TOOLBOX,
        {"spec.leaseDuration": "19s"},
        "spec.leaseDuration",
        "choose a duration from 20s to 1h",
    ),
    RuleCase(
        "a lease that is too long",
        TOOLBOX,
        {"spec.leaseDuration": "1h0m1s"},
        "spec.leaseDuration",
        "choose a duration from 20s to 1h",
    ),
    RuleCase(
        "a server without its port",
        SERVER,
        {"spec.port": REMOVE},
        "spec.port",
        "set spec.port to the port the server listens on",
    ),
    *(
        RuleCase(f"an image {what}", SERVER, {"spec.image": image}, "spec.image", _IMAGE)
        for what, image in (
            ("in upper case", "registry.example.com/MCP-Time:1.4"),
            ("with a scheme", "https://registry.example.com/mcp-time:1.4"),
            ("with a space", "mcp-time :1.4"),
            ("with an empty tag", "mcp-time:"),
            ("with a short digest", "mcp-time@sha256:abcd"),
        )
    ),
    *(
        RuleCase(f"a path {what}", SERVER, {"spec.path": path}, "spec.path", _PATH)
        for what, path in (
            ("that is relative", "mcp"),
            ("that climbs", "/a/../mcp"),
            ("with an empty segment", "/a//mcp"),
            ("with a query", "/mcp?x=1"),
            ("with a fragment", "/mcp#x"),
            ("with an escape", "/a%2fmcp"),
            ("with a space", "/my mcp"),
        )
    ),
    RuleCase(
        "a variable without a value",
        SERVER,
        {"spec.env": [{"name": "TZ"}]},
        "spec.env[0]",
        "set exactly one of value and valueFrom",
    ),
    RuleCase(
        "a variable with two values",
        SERVER,
        {
            "spec.env": [
                {"name": "A", "value": "1"},
                {"name": "KEY", "value": "x", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            ]
        },
        "spec.env[1]",
        "set exactly one of value and valueFrom",
    ),
    RuleCase(
        "a variable from nowhere",
        SERVER,
        {"spec.env": [{"name": "KEY", "valueFrom": dict[str, str]()}]},
        "spec.env[0].valueFrom",
        "set exactly one of secretKeyRef and configMapKeyRef",
    ),
    RuleCase(
        "a variable from two places",
        SERVER,
        {
            "spec.env": [
                {
                    "name": "KEY",
                    "valueFrom": {
                        "secretKeyRef": {"name": "s", "key": "k"},
                        "configMapKeyRef": {"name": "c", "key": "k"},
                    },
                }
            ]
        },
        "spec.env[0].valueFrom",
        "set exactly one of secretKeyRef and configMapKeyRef",
    ),
    *(
        RuleCase(
            f"a memory limit {what}",
            SERVER,
            {"spec.resources.limits.memory": memory},
            "spec.resources.limits.memory",
            "choose a memory limit from 6Mi to 1024Ti",
        )
        for what, memory in (
            ("that is too small", "6291455"),
            ("without its unit", 256),
            ("that is too large", "1025Ti"),
        )
    ),
    RuleCase(
        "a CPU limit that is too small",
        SERVER,
        {"spec.resources.limits.cpu": "9m"},
        "spec.resources.limits.cpu",
        "choose a CPU limit from 10m to 1000",
    ),
    RuleCase(
        "a CPU limit that is too large",
        SERVER,
        {"spec.resources.limits.cpu": 1001},
        "spec.resources.limits.cpu",
        "choose a CPU limit from 10m to 1000",
    ),
    RuleCase(
        "a server moved to another toolbox",
        SERVER,
        {"spec.toolboxRef.name": "tbx-2"},
        "spec.toolboxRef",
        f"the Toolbox of a server cannot change: {_SERVER_FIXED} that names the other Toolbox",
        update=True,
    ),
    RuleCase(
        "a server moved to a toolbox of another namespace",
        SERVER,
        {"spec.toolboxRef.namespace": "elsewhere"},
        "spec.toolboxRef",
        f"the Toolbox of a server cannot change: {_SERVER_FIXED} that names the other Toolbox",
        update=True,
    ),
    RuleCase(
        "a server that is to speak stdio from now on",
        SERVER,
        STDIO,
        "spec.transport",
        f"the transport of a server cannot change: {_SERVER_FIXED} with the other transport",
        update=True,
    ),
    RuleCase(
        "a server that is to speak SSE from now on",
        SERVER,
        {"spec.transport": "sse"},
        "spec.transport",
        f"the transport of a server cannot change: {_SERVER_FIXED} with the other transport",
        update=True,
    ),
    RuleCase(
        "a server that speaks SSE without a port",
        SERVER,
        {"spec.transport": "sse", "spec.port": REMOVE},
        "spec.port",
        "set spec.port to the port the server listens on",
    ),
    RuleCase(
        "sessions of a server that speaks SSE",
        SERVER,
        {"spec.transport": "sse", "spec.sessions": {"maxSessions": 2}},
        "spec.sessions",
        "remove spec.sessions: only a server that speaks stdio has a container for each session",
    ),
    RuleCase(
        "a server that is to listen from now on",
        SERVER,
        {},
        "spec.transport",
        f"the transport of a server cannot change: {_SERVER_FIXED} with the other transport",
        update=True,
        before=STDIO,
        resolved=SERVER_RESOLVED.model_copy(update={"transport": "stdio", "port": None, "path": None}),
    ),
    RuleCase(
        "a port of a server that speaks stdio",
        SERVER,
        {"spec.transport": "stdio"},
        "spec.port",
        "remove spec.port: a server that speaks stdio listens on none",
    ),
    RuleCase(
        "a path of a server that speaks stdio",
        SERVER,
        {**STDIO, "spec.path": "/mcp"},
        "spec.path",
        "remove spec.path: a server that speaks stdio answers on none",
    ),
    *(
        RuleCase(
            f"sessions of a server that listens, {what}",
            SERVER,
            {"spec.sessions": sessions},
            "spec.sessions",
            "remove spec.sessions: only a server that speaks stdio has a container for each session",
        )
        for what, sessions in (("set", {"maxSessions": 2}), ("empty", dict[str, int]()))
    ),
    *(
        RuleCase(
            f"an idle timeout {what}",
            SERVER,
            {**STDIO, "spec.sessions": {"idleTimeout": duration}},
            "spec.sessions.idleTimeout",
            "choose a duration from 1s to 24h",
        )
        for what, duration in (("of nothing", "0s"), ("that is too long", "24h1s"))
    ),
    *(
        RuleCase(
            f"a largest request {what}",
            CONNECTION,
            {"spec.limits.maxRequestBytes": size},
            "spec.limits.maxRequestBytes",
            "choose a size from 1Ki to 4Mi, the most that the gateway takes of anybody",
        )
        for what, size in (("that is too small", 1023), ("above the gateway's own", "4097Ki"))
    ),
    *(
        RuleCase(
            f"a largest response {what}",
            CONNECTION,
            {"spec.limits.maxResponseBytes": size},
            "spec.limits.maxResponseBytes",
            "choose a size from 1Ki to 1Ti, or leave it out for no limit",
        )
        for what, size in (("that is too small", "0"), ("that is too large", "1025Gi"))
    ),
    *(
        RuleCase(
            f"a call timeout {what}",
            CONNECTION,
            {"spec.limits.callTimeout": duration},
            "spec.limits.callTimeout",
            "choose a duration from 1s to 1h, or leave it out for no limit",
        )
        for what, duration in (("of nothing", "0s"), ("that is too long", "61m"))
    ),
    RuleCase(
        "a connection given to another agent",
        CONNECTION,
        {"spec.agent.name": "other-bot"},
        "spec.agent",
        "the agent of a connection cannot change: create another AgentMCPConnection for the other agent",
        update=True,
    ),
    RuleCase(
        "a connection pointed at another server",
        CONNECTION,
        {"spec.serverRef.name": "weather"},
        "spec.serverRef",
        "the server of a connection cannot change: create another AgentMCPConnection for the other server",
        update=True,
    ),
    RuleCase(
        "a connection whose Secret gets a name",
        CONNECTION,
        {"spec.secretName": "my-secret"},
        "spec.secretName",
        "the Secret of a connection cannot change its name: create another AgentMCPConnection",
        update=True,
    ),
    RuleCase(
        "a connection whose Secret loses its name",
        CONNECTION,
        {},
        "spec.secretName",
        "the Secret of a connection cannot change its name: create another AgentMCPConnection",
        update=True,
        before={"spec.secretName": "my-secret"},
        resolved=ResolvedConnection(agent="research-bot", server="mcp-system/time", secret_name="my-secret"),
    ),
    *(
        RuleCase(
            f"approved tools by {what}",
            SERVER,
            {"spec.expose.tools.approvedHash": value},
            "spec.expose.tools.approvedHash",
            _HASH,
        )
        for what, value in (
            ("a hash without its kind", "0" * 64),
            ("a hash in upper case", f"sha256:{'A' * 64}"),
            ("a hash that is cut", f"sha256:{'0' * 63}"),
            ("a word", "latest"),
        )
    ),
    RuleCase(
        "a connection that approves tools",
        CONNECTION,
        {"spec.expose.tools.approvedHash": f"sha256:{'0' * 64}"},
        "spec.expose.tools.approvedHash",
        "remove approvedHash: the owner of the MCPServer approves its tools there, for all connections",
    ),
    *(
        RuleCase(
            f"a volume named {what}",
            SERVER,
            {"spec.volumes": [{"name": name, "mountPath": "/data"}]},
            "spec.volumes[0].name",
            "name the volume with lower-case letters, digits and '-', a letter or digit at both ends",
        )
        for what, name in (("in upper case", "Data"), ("like a folder", "a/b"), ("with a dash at its end", "data-"))
    ),
    *(
        RuleCase(
            f"a volume at a path {what}",
            SERVER,
            {"spec.volumes": [{"name": "data", "mountPath": path}]},
            "spec.volumes[0].mountPath",
            "write an absolute path such as /data: letters, digits, ._@+~-, and no '.', '..', '//' or last '/'",
        )
        for what, path in (
            ("that is relative", "data"),
            ("that is the root", "/"),
            ("that climbs", "/data/../etc"),
            ("that climbs at its end", "/data/.."),
            ("that stays", "/./data"),
            ("with an empty segment", "//data"),
            ("that ends in a slash", "/data/"),
            ("with a space", "/my data"),
            ("with a colon", "/data:ro"),
            ("that ends in a line break", "/data\n"),
        )
    ),
    *(
        RuleCase(
            f"a volume at {path}",
            SERVER,
            {"spec.volumes": [{"name": "data", "mountPath": path}]},
            "spec.volumes[0].mountPath",
            "choose a path outside of /proc, /sys, /dev and /tmp, which every container gets from its host",
        )
        for path in ("/proc", "/sys/fs/cgroup", "/dev/shm", "/tmp", "/tmp/cache")
    ),
    *(
        RuleCase(
            f"two volumes {what}",
            SERVER,
            {"spec.volumes": [{"name": "one", "mountPath": one}, {"name": "two", "mountPath": two}]},
            "spec.volumes",
            "mount each volume at a path of its own, none inside another",
        )
        for what, one, two in (
            ("at one path", "/data", "/data"),
            ("of which the second is inside the first", "/data", "/data/cache"),
            ("of which the first is inside the second", "/srv/a/b", "/srv"),
        )
    ),
)
