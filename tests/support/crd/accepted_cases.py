"""Specs that are unusual and right: both API servers and the operator accept them."""

from __future__ import annotations

from dataclasses import dataclass

from support.crd.cases import CONNECTION, SERVER, STDIO, TOOLBOX, Edits
from toolbox_operator.api.meta import Kind


@dataclass(frozen=True, slots=True)
class AcceptedCase:
    """Something unusual that is right, alone or (`update`) as a change of the valid object."""

    name: str
    kind: Kind
    edits: Edits
    update: bool = False


ACCEPTED: tuple[AcceptedCase, ...] = (
    *(AcceptedCase(f"a minimal {kind}", kind, {}) for kind in Kind),
    AcceptedCase("a name of 63 characters", SERVER, {"metadata.name": "s" * 63}),
    AcceptedCase("an IPv6 endpoint", TOOLBOX, {"spec.endpoint": "https://[2001:db8::1]:30000"}),
    AcceptedCase("a URL that ends in a slash", TOOLBOX, {"spec.gatewayURL": "https://tbx-1.example.com/"}),
    AcceptedCase("the shortest lease", TOOLBOX, {"spec.leaseDuration": "20s"}),
    AcceptedCase("the longest lease", TOOLBOX, {"spec.leaseDuration": "60m"}),
    AcceptedCase("an image of a local registry", SERVER, {"spec.image": "localhost:5000/mcp-time"}),
    AcceptedCase("an image by digest", SERVER, {"spec.image": f"ghcr.io/a/b__c:1.0@sha256:{'0' * 64}"}),
    AcceptedCase("the root path", SERVER, {"spec.path": "/"}),
    AcceptedCase("a deep path", SERVER, {"spec.path": "/api/v1.2/mcp/"}),
    AcceptedCase("an empty variable", SERVER, {"spec.env": [{"name": "EMPTY", "value": ""}]}),
    AcceptedCase(
        "every namespace, by an empty selector",
        SERVER,
        {"spec.sharing.namespaces": {"from": "Selector", "selector": dict[str, str]()}},
    ),
    AcceptedCase(
        "the largest selector",
        TOOLBOX,
        {
            "spec.allowedServers.namespaces": {
                "from": "Selector",
                "selector": {
                    "matchLabels": {f"{'a' * 63}.example.com/{number:02}{'b' * 61}": "c" * 63 for number in range(16)},
                    "matchExpressions": [
                        {"key": f"k{number}", "operator": "NotIn", "values": ["", *(f"v{n}" for n in range(31))]}
                        for number in range(16)
                    ],
                },
            }
        },
    ),
    AcceptedCase("no tools at all", SERVER, {"spec.expose.tools.allow": []}),
    AcceptedCase("approved tools", SERVER, {"spec.expose.tools.approvedHash": f"sha256:{'0' * 64}"}),
    AcceptedCase("whole CPUs without quotes", SERVER, {"spec.resources.limits.cpu": 2}),
    AcceptedCase("bytes without quotes", SERVER, {"spec.resources.limits.memory": 6291456}),
    AcceptedCase("fractions", SERVER, {"spec.resources.limits": {"memory": "0.5Gi", "cpu": "0.25"}}),
    AcceptedCase(
        "256 variables with the longest names",
        SERVER,
        {"spec.env": [{"name": f"V{n:03d}".ljust(256, "x"), "value": "1"} for n in range(256)]},
    ),
    AcceptedCase("a server that speaks SSE", SERVER, {"spec.transport": "sse"}),
    AcceptedCase("a server that speaks SSE at a path", SERVER, {"spec.transport": "sse", "spec.path": "/events"}),
    AcceptedCase("a server that speaks stdio", SERVER, STDIO),
    AcceptedCase("sessions as they are without", SERVER, {**STDIO, "spec.sessions": {}}),
    AcceptedCase("the fewest sessions", SERVER, {**STDIO, "spec.sessions": {"maxSessions": 1, "idleTimeout": "1s"}}),
    AcceptedCase("the most sessions", SERVER, {**STDIO, "spec.sessions": {"maxSessions": 1000, "idleTimeout": "24h"}}),
    AcceptedCase(
        "16 volumes with the longest paths",
        SERVER,
        {
            "spec.volumes": [
                {"name": f"v{n:02d}".ljust(63, "x"), "mountPath": f"/{n:02d}".ljust(256, "x")} for n in range(16)
            ]
        },
    ),
    AcceptedCase(
        "volumes at paths that begin alike",
        SERVER,
        {
            "spec.volumes": [
                {"name": "1", "mountPath": "/data"},
                {"name": "a-1", "mountPath": "/data2", "readOnly": True},
                {"name": "b", "mountPath": "/processed/.cache/..x"},
            ],
            "spec.volumePolicy": "Retain",
        },
    ),
    AcceptedCase("volumes that stay", SERVER, {"spec.volumePolicy": "Retain"}, update=True),
    AcceptedCase("a volume more", SERVER, {"spec.volumes": [{"name": "a", "mountPath": "/a"}]}, update=True),
    AcceptedCase("a time with an offset", CONNECTION, {"spec.expiresAt": "2027-01-01T00:00:00.5+02:00"}),
    AcceptedCase("no limits, written out", CONNECTION, {"spec.limits": {}}),
    AcceptedCase(
        "the tightest limits",
        CONNECTION,
        {
            "spec.limits": {
                "requestsPerMinute": 1,
                "concurrentCalls": 1,
                "maxRequestBytes": 1024,
                "maxResponseBytes": "1Ki",
                "callTimeout": "1s",
            }
        },
    ),
    AcceptedCase(
        "the loosest limits",
        CONNECTION,
        {
            "spec.limits": {
                "requestsPerMinute": 600_000,
                "concurrentCalls": 10_000,
                "maxRequestBytes": "4Mi",
                "maxResponseBytes": "1Ti",
                "callTimeout": "1h",
            }
        },
    ),
    AcceptedCase("other limits", CONNECTION, {"spec.limits.concurrentCalls": 2}, update=True),
    AcceptedCase("another image", SERVER, {"spec.image": "registry.example.com/mcp-time:1.5"}, update=True),
    AcceptedCase("the default Secret name, written out", CONNECTION, {"spec.secretName": "example-mcp"}, update=True),
    AcceptedCase("a connection switched off", CONNECTION, {"spec.active": False}, update=True),
)
