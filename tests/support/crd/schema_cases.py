"""Mistakes that the schema refuses, every class of them once."""

from __future__ import annotations

from dataclasses import dataclass

from support.crd.cases import CONNECTION, REMOVE, SERVER, STDIO, TOOLBOX, Edits
from toolbox_operator.api.meta import Kind


@dataclass(frozen=True, slots=True)
class SchemaCase:
    """A mistake that the schema refuses.

    `served` is what both API servers say, `strict` what only those with strict field validation (≥ 1.25) say:
    older ones drop unknown fields. `older` is `served` in the words of
    servers before 1.25 where they differ. `ours` is the operator's text.
    """

    name: str
    kind: Kind
    edits: Edits
    ours: str
    served: str | None = None
    strict: str | None = None
    older: str | None = None


SCHEMA: tuple[SchemaCase, ...] = (
    SchemaCase(
        "a number written as text",
        SERVER,
        {"spec.port": "3001"},
        "spec.port: must be a whole number, without quotes",
        served="spec.port in body must be of type integer",
    ),
    SchemaCase(
        "a fraction where a whole number belongs",
        SERVER,
        {"spec.port": 3001.5},
        "spec.port: must be a whole number",
        served="spec.port in body must be of type int",
    ),
    SchemaCase(
        "a switch written as text",
        CONNECTION,
        {"spec.active": "false"},
        "spec.active: must be true or false, without quotes",
        served="spec.active in body must be of type boolean",
    ),
    SchemaCase(
        "a text written as a number",
        SERVER,
        {"spec.env": [{"name": "DEBUG", "value": 1}]},
        "spec.env[0].value: must be text; put it in quotes",
        served="spec.env[0].value in body must be of type string",
        older="spec.env.value in body must be of type string",
    ),
    SchemaCase(
        "an item of the wrong type",
        SERVER,
        {"spec.args": ["--port", 3001]},
        "spec.args[1]: must be text; put it in quotes",
        served="spec.args[1] in body must be of type string",
        older="spec.args in body must be of type string",
    ),
    SchemaCase(
        "one text instead of a list",
        SERVER,
        {"spec.command": "python -m server"},
        "spec.command: must be a list",
        served="spec.command in body must be of type array",
    ),
    SchemaCase(
        "a name instead of a reference",
        SERVER,
        {"spec.toolboxRef": "tbx-1"},
        "spec.toolboxRef: must be an object with fields",
        served="spec.toolboxRef in body must be of type object",
    ),
    SchemaCase(
        "a fraction of a CPU without quotes",
        SERVER,
        {"spec.resources.limits.cpu": 0.5},
        "spec.resources.limits.cpu: must be text; put it in quotes",
        served="spec.resources.limits.cpu in body must be of type integer",
    ),
    SchemaCase(
        "no spec",
        TOOLBOX,
        {"spec": REMOVE},
        "spec: required",
        served="spec: Required value",
    ),
    SchemaCase(
        "a required field left out",
        SERVER,
        {"spec.image": REMOVE},
        "spec.image: required; set it",
        served="spec.image: Required value",
    ),
    SchemaCase(
        "a required field of a reference left out",
        TOOLBOX,
        {"spec.authSecretRef.key": REMOVE},
        "spec.authSecretRef.key: required; set it",
        served="spec.authSecretRef.key: Required value",
    ),
    SchemaCase(
        "a word that is not one of the choices",
        SERVER,
        {"spec.state": "Paused"},
        "spec.state: must be one of Running, Stopped",
        served='spec.state: Unsupported value: "Paused"',
    ),
    SchemaCase(
        "an egress that is not one of the choices",
        SERVER,
        {"spec.security.egress": "Private"},
        "spec.security.egress: must be one of None, Internet, All",
        served='spec.security.egress: Unsupported value: "Private"',
    ),
    SchemaCase(
        "a transport that is not supported",
        SERVER,
        {"spec.transport": "websocket"},
        "spec.transport: must be one of streamable-http, sse, stdio",
        served='spec.transport: Unsupported value: "websocket"',
    ),
    SchemaCase(
        "a choice in the wrong case",
        SERVER,
        {"spec.sharing.namespaces.from": "all"},
        "spec.sharing.namespaces.from: must be one of Same, All, Selector",
        served='spec.sharing.namespaces.from: Unsupported value: "all"',
    ),
    SchemaCase(
        "labels as a list",
        SERVER,
        {"spec.sharing.namespaces": {"from": "Selector", "selector": {"matchLabels": ["team"]}}},
        "spec.sharing.namespaces.selector.matchLabels: must be an object with keys and values",
        served="spec.sharing.namespaces.selector.matchLabels in body must be of type object",
    ),
    SchemaCase(
        "a label whose value is a switch",
        TOOLBOX,
        {"spec.allowedServers.namespaces": {"from": "Selector", "selector": {"matchLabels": {"tools": True}}}},
        "spec.allowedServers.namespaces.selector.matchLabels.tools: must be text; put it in quotes",
        served="spec.allowedServers.namespaces.selector.matchLabels.tools in body must be of type string",
    ),
    SchemaCase(
        "a label value that Kubernetes would not take",
        SERVER,
        {"spec.sharing.namespaces": {"from": "Selector", "selector": {"matchLabels": {"team": "team a"}}}},
        "spec.sharing.namespaces.selector.matchLabels.team: must match ",
        served="spec.sharing.namespaces.selector.matchLabels.team in body should match",
    ),
    SchemaCase(
        "more labels than a selector may have",
        SERVER,
        {
            "spec.sharing.namespaces": {
                "from": "Selector",
                "selector": {"matchLabels": {f"label-{number}": "x" for number in range(17)}},
            }
        },
        "spec.sharing.namespaces.selector.matchLabels: must have at most 16 entries",
        served="spec.sharing.namespaces.selector.matchLabels",
    ),
    SchemaCase(
        "an operator that selectors do not have",
        SERVER,
        {
            "spec.sharing.namespaces": {
                "from": "Selector",
                "selector": {"matchExpressions": [{"key": "team", "operator": "Is", "values": ["a"]}]},
            }
        },
        "spec.sharing.namespaces.selector.matchExpressions[0].operator: must be one of In, NotIn, Exists, DoesNotExist",
        served='selector.matchExpressions[0].operator: Unsupported value: "Is"',
        older='selector.matchExpressions.operator: Unsupported value: "Is"',
    ),
    SchemaCase(
        "a name that Kubernetes would not take",
        CONNECTION,
        {"spec.agent.name": "Research Bot"},
        "spec.agent.name: must match ^[a-z0-9]",
        served="spec.agent.name in body should match",
    ),
    SchemaCase(
        "a quantity with an unknown unit",
        SERVER,
        {"spec.resources.limits.memory": "256MB"},
        "spec.resources.limits.memory: must match ",
        served="spec.resources.limits.memory in body should match",
    ),
    SchemaCase(
        "a duration without a unit",
        TOOLBOX,
        {"spec.leaseDuration": "40"},
        "spec.leaseDuration: must match ",
        served="spec.leaseDuration in body should match",
    ),
    SchemaCase(
        "a time without its offset",
        CONNECTION,
        {"spec.expiresAt": "2027-01-01T00:00:00"},
        "spec.expiresAt: must be a time with its offset, like 2027-01-01T00:00:00Z",
        served="spec.expiresAt in body should match",
    ),
    SchemaCase(
        "a day that is not in the calendar",
        CONNECTION,
        {"spec.expiresAt": "2027-02-30T00:00:00Z"},
        "spec.expiresAt: must be a time of the calendar, like 2027-01-01T00:00:00Z",
        served="spec.expiresAt in body must be of type date-time",
    ),
    SchemaCase(
        "an empty text",
        SERVER,
        {"spec.image": ""},
        "spec.image: must have at least 1 characters",
        served="spec.image in body should be at least 1 chars long",
    ),
    SchemaCase(
        "a text that is too long",
        SERVER,
        {"spec.args": ["x" * 4097]},
        "spec.args[0]: must have at most 4096 characters",
        served="spec.args[0]: Too long: may not be more than 4096",
        older="spec.args in body should be at most 4096 chars long",
    ),
    SchemaCase(
        "a number that is too small",
        SERVER,
        {"spec.port": 0},
        "spec.port: must be at least 1",
        served="spec.port in body should be greater than or equal to 1",
    ),
    SchemaCase(
        "a number that is too large",
        SERVER,
        {"spec.port": 65536},
        "spec.port: must be at most 65535",
        served="spec.port in body should be less than or equal to 65535",
    ),
    SchemaCase(
        "a container that would run as root",
        SERVER,
        {"spec.security.runAsUser": 0},
        "spec.security.runAsUser: must be at least 1",
        served="spec.security.runAsUser in body should be greater than or equal to 1",
    ),
    SchemaCase(
        "no sessions at all",
        SERVER,
        {**STDIO, "spec.sessions.maxSessions": 0},
        "spec.sessions.maxSessions: must be at least 1",
        served="spec.sessions.maxSessions in body should be greater than or equal to 1",
    ),
    SchemaCase(
        "more sessions than a host has containers for",
        SERVER,
        {**STDIO, "spec.sessions.maxSessions": 1001},
        "spec.sessions.maxSessions: must be at most 1000",
        served="spec.sessions.maxSessions in body should be less than or equal to 1000",
    ),
    SchemaCase(
        "an idle timeout without a unit",
        SERVER,
        {**STDIO, "spec.sessions.idleTimeout": "1800"},
        "spec.sessions.idleTimeout: must match ",
        served="spec.sessions.idleTimeout in body should match",
    ),
    SchemaCase(
        "no calls at all",
        CONNECTION,
        {"spec.limits.concurrentCalls": 0},
        "spec.limits.concurrentCalls: must be at least 1",
        served="spec.limits.concurrentCalls in body should be greater than or equal to 1",
    ),
    SchemaCase(
        "more requests than anybody makes",
        CONNECTION,
        {"spec.limits.requestsPerMinute": 600_001},
        "spec.limits.requestsPerMinute: must be at most 600000",
        served="spec.limits.requestsPerMinute in body should be less than or equal to 600000",
    ),
    SchemaCase(
        "a list that is too long",
        SERVER,
        {"spec.expose.tools.deny": ["x"] * 257},
        "spec.expose.tools.deny: must have at most 256 entries",
        served="spec.expose.tools.deny",
    ),
    SchemaCase(
        "a variable set twice",
        SERVER,
        {"spec.env": [{"name": "TZ", "value": "UTC"}, {"name": "TZ", "value": "CET"}]},
        "spec.env: TZ is there more than once; keep one",
        served='spec.env[1]: Duplicate value: {"name":"TZ"}',
        older="spec.env[1]: Duplicate value",
    ),
    SchemaCase(
        "a pull secret named twice",
        SERVER,
        {"spec.imagePullSecrets": [{"name": "registry"}, {"name": "registry"}]},
        "spec.imagePullSecrets: registry is there more than once; keep one",
        served='spec.imagePullSecrets[1]: Duplicate value: {"name":"registry"}',
        older="spec.imagePullSecrets[1]: Duplicate value",
    ),
    SchemaCase(
        "a volume twice",
        SERVER,
        {"spec.volumes": [{"name": "data", "mountPath": "/a"}, {"name": "data", "mountPath": "/b"}]},
        "spec.volumes: data is there more than once; keep one",
        served='spec.volumes[1]: Duplicate value: {"name":"data"}',
        older="spec.volumes[1]: Duplicate value",
    ),
    SchemaCase(
        "17 volumes",
        SERVER,
        {"spec.volumes": [{"name": f"v{n}", "mountPath": f"/v{n}"} for n in range(17)]},
        "spec.volumes: must have at most 16 entries",
        served="spec.volumes",
    ),
    SchemaCase(
        "a volume without its path",
        SERVER,
        {"spec.volumes": [{"name": "data"}]},
        "spec.volumes[0].mountPath: required; set it",
        served="spec.volumes[0].mountPath: Required value",
        older="spec.volumes.mountPath: Required value",
    ),
    SchemaCase(
        "a volume of the host's",
        SERVER,
        {"spec.volumes": [{"name": "data", "mountPath": "/data", "source": "/etc"}]},
        "spec.volumes[0].source: unknown field; known are mountPath, name, readOnly",
        strict='unknown field "spec.volumes[0].source"',
    ),
    SchemaCase(
        "a policy for volumes that there is not",
        SERVER,
        {"spec.volumePolicy": "Keep"},
        "spec.volumePolicy: must be one of Delete, Retain",
        served='spec.volumePolicy: Unsupported value: "Keep"',
    ),
    SchemaCase(
        "a misspelt field",
        SERVER,
        {"spec.prot": 3001},
        "spec.prot: unknown field; did you mean port?",
        strict='unknown field "spec.prot"',
    ),
    SchemaCase(
        "a field in the wrong place",
        SERVER,
        {"spec.resources.memory": "256Mi"},
        "spec.resources.memory: unknown field; known are limits",
        strict='unknown field "spec.resources.memory"',
    ),
    SchemaCase(
        "an unknown field in an entry of a list",
        SERVER,
        {"spec.env": [{"name": "TZ", "value": "UTC", "secret": True}]},
        "spec.env[0].secret: unknown field; known are name, value, valueFrom",
        strict='unknown field "spec.env[0].secret"',
    ),
)
