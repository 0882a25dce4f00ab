"""Rules a schema cannot say: each is declared once, emitted as CEL into `crds/` and enforced here.

The API server evaluates `cel` when somebody writes an object. The operator evaluates `predicate` on what it
reads, so that a rule also holds where CEL is absent or an object is older than the rule. Both give the same
message, which says what to change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from toolbox_dtma.wire import volumes
from toolbox_operator.api.conditions import Reason
from toolbox_operator.api.connection import ResolvedConnection
from toolbox_operator.api.mcpserver import ResolvedServer
from toolbox_operator.api.meta import Body, Key, Kind
from toolbox_operator.api.quantity import DURATION_PATTERN, parse_cpu, parse_duration, parse_memory
from toolbox_operator.api.refs import From
from toolbox_operator.api.selector import MAX_LABEL_KEY, Operator

Resolved = ResolvedServer | ResolvedConnection


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition on the value at one place of an object.

    `path` names the schema node the rule is attached to (`""` the object, `spec.env[]` each entry of a list);
    a node that is absent is not checked. `predicate` gets the JSON value there. `field` names the field below
    the node that the message is about, for the error's path.
    """

    path: str
    cel: str
    message: str
    predicate: Callable[[Any], bool]
    field: str = ""
    reason: Reason = Reason.SPEC_INVALID


@dataclass(frozen=True, slots=True)
class Immutable:
    """A field that keeps the value it was first accepted with, recorded in `status.resolved`.

    `current` gives the effective value of the spec (defaults filled in), `accepted` the recorded one.
    """

    path: str
    cel: str
    message: str
    current: Callable[[Body], str]
    accepted: Callable[[Any], str]
    field: str = ""
    reason: Reason = Reason.IMMUTABLE_FIELD


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that an object breaks, and where."""

    path: str
    message: str
    reason: Reason

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


_PORT = "(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})"
_HOST = r"([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])"
BASE_URL = f"^https://{_HOST}(:{_PORT})?/?$"

_REPOSITORY = "[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*"
_REGISTRY = f"([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:{_PORT})?/)?"
IMAGE = f"^{_REGISTRY}{_REPOSITORY}(/{_REPOSITORY})*(:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(@sha256:[0-9a-f]{{64}})?$"

HTTP_PATH = "^/([A-Za-z0-9._~!$&()*+,;=:@-]+/)*([A-Za-z0-9._~!$&()*+,;=:@-]+)?$"

VOLUME_NAME = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"

TOOLS_HASH = "^sha256:[0-9a-f]{64}$"

MIN_LEASE, MAX_LEASE = "20s", "1h"
MIN_MEMORY, MAX_MEMORY = "6Mi", "1024Ti"
MIN_CPU, MAX_CPU = "10m", "1000"
MIN_BODY, MAX_REQUEST, MAX_RESPONSE = "1Ki", "4Mi", "1Ti"
MIN_CALL, MAX_CALL = "1s", "1h"
MIN_IDLE, MAX_IDLE = "1s", "24h"

MOST_OF_ANYBODY = ", the most that the gateway takes of anybody"
OR_NO_LIMIT = ", or leave it out for no limit"


def _matches(pattern: str) -> tuple[str, Callable[[Any], bool]]:
    """The CEL and the predicate of "the value matches"; `pattern` is in the common subset of RE2 and Python."""
    compiled = re.compile(pattern)
    literal = pattern.replace("\\", "\\\\").replace("'", "\\'")
    return f"self.matches('{literal}')", lambda value: compiled.fullmatch(value) is not None


def _name(kind: Kind) -> Rule:
    return Rule(
        path="",
        cel="self.metadata.name.size() <= 63 && !self.metadata.name.contains('.')",
        message=f"name the {kind} with at most 63 lower-case letters, digits and '-', without dots",
        predicate=lambda body: len(body["metadata"]["name"]) <= 63 and "." not in body["metadata"]["name"],
        field="metadata.name",
    )


def _base_url(path: str, example: str) -> Rule:
    cel, predicate = _matches(BASE_URL)
    return Rule(path, cel, f"write a URL of the form {example}: https, a host, no path and no credentials", predicate)


def _image() -> Rule:
    cel, predicate = _matches(IMAGE)
    message = "write an image reference such as registry.example.com/team/server:1.4, the repository in lower case"
    return Rule("spec.image", cel, message, predicate)


def _choice_of_namespaces(path: str) -> tuple[Rule, ...]:
    """The rules of a `namespaces` below this path."""
    expressions = f"{path}.selector.matchExpressions[]"
    return (
        Rule(
            path=path,
            cel="(has(self.from) && self.from == 'Selector') == has(self.selector)",
            message="set selector with from: Selector, and only with it",
            predicate=lambda choice: (choice.get("from") == From.SELECTOR) == ("selector" in choice),
        ),
        Rule(
            path=f"{path}.selector.matchLabels",
            cel=f"self.all(key, key.size() <= {MAX_LABEL_KEY})",
            message=f"write label keys of at most {MAX_LABEL_KEY} characters",
            predicate=lambda labels: all(len(key) <= MAX_LABEL_KEY for key in labels),
        ),
        Rule(
            path=expressions,
            cel="(self.operator == 'In' || self.operator == 'NotIn') == (has(self.values) && self.values.size() > 0)",
            message="give values with In and NotIn, and none with Exists and DoesNotExist",
            predicate=lambda each: (each["operator"] in (Operator.IN, Operator.NOT_IN)) == bool(each.get("values")),
            field="values",
        ),
    )


def _approved_hash() -> Rule:
    cel, predicate = _matches(TOOLS_HASH)
    message = "copy the value of status.toolsHash: sha256: and 64 hexadecimal digits in lower case"
    return Rule("spec.expose.tools.approvedHash", cel, message, predicate)


def _http_path() -> Rule:
    cel, predicate = _matches(HTTP_PATH)
    return Rule(
        path="spec.path",
        cel=f"{cel} && !self.contains('..')",
        message="write an absolute path such as /mcp, without '..', '//', escapes, query or fragment",
        predicate=lambda value: predicate(value) and ".." not in value,
    )


def _volumes() -> tuple[Rule, ...]:
    named, has_name = _matches(VOLUME_NAME)
    clean, _ = _matches(volumes.PATH)
    return (
        Rule(
            path="spec.volumes[].name",
            cel=named,
            message="name the volume with lower-case letters, digits and '-', a letter or digit at both ends",
            predicate=has_name,
        ),
        Rule(
            path="spec.volumes[].mountPath",
            cel=f"{clean} && !self.matches('{volumes.DOTS}')",
            message="write an absolute path such as /data: letters, digits, ._@+~-, and no '.', '..', '//' or last '/'",
            predicate=volumes.clean_path,
        ),
        Rule(
            path="spec.volumes[].mountPath",
            cel=f"!self.matches('{volumes.RESERVED}')",
            message="choose a path outside of /proc, /sys, /dev and /tmp, which every container gets from its host",
            predicate=lambda path: not volumes.reserved_path(path),
        ),
        Rule(
            path="spec.volumes",
            cel=(
                "self.all(outer, self.all(inner, outer.name == inner.name || "
                "!(inner.mountPath + '/').startsWith(outer.mountPath + '/')))"
            ),
            message="mount each volume at a path of its own, none inside another",
            predicate=lambda found: volumes.apart([volume["mountPath"] for volume in found]),
        ),
    )


def _between(parse: Callable[[str], int], low: str, high: str) -> Callable[[Any], bool]:
    return lambda value: parse(low) <= parse(str(value)) <= parse(high)


def _quantity(path: str, what: str, parse: Callable[[str], int], low: str, high: str, advice: str = "") -> Rule:
    value = "quantity(string(self))"
    within = f"{value}.compareTo(quantity('{low}')) >= 0 && {value}.compareTo(quantity('{high}')) <= 0"
    return Rule(
        path=path,
        cel=f"isQuantity(string(self)) && {within}",
        message=f"choose a {what} from {low} to {high}{advice}",
        predicate=_between(parse, low, high),
    )


def _duration(path: str, low: str, high: str, advice: str = "") -> Rule:
    # CEL runs although the schema's pattern failed, and duration() of a malformed text is an error of its own.
    wellformed, _ = _matches(DURATION_PATTERN)
    within = f"duration(self) >= duration('{low}') && duration(self) <= duration('{high}')"
    return Rule(
        path=path,
        cel=f"self.size() > 1 && {wellformed} && {within}",
        message=f"choose a duration from {low} to {high}{advice}",
        predicate=_between(parse_duration, low, high),
    )


def _listening_only(field: str, message: str) -> Rule:
    return Rule(
        path="spec",
        cel=f"!has(self.{field}) || self.transport != 'stdio'",
        message=message,
        predicate=lambda spec: field not in spec or spec["transport"] != "stdio",
        field=field,
    )


def _ref(body: Body, field: str) -> str:
    ref = body["spec"][field]
    return str(Key(ref.get("namespace", body["metadata"]["namespace"]), ref["name"]))


def _same(path: str, message: str, current: Callable[[Body], str], accepted: Callable[[Any], str]) -> Immutable:
    return Immutable(path, "self == oldSelf", message, current, accepted)


def secret_name(connection: str, chosen: str | None) -> str:
    """The name of a connection's Secret: `spec.secretName`, or `<name>-mcp`."""
    return chosen or f"{connection}-mcp"


def _secret_name_cel(obj: str) -> str:
    return f"(has({obj}.spec.secretName) ? {obj}.spec.secretName : {obj}.metadata.name + '-mcp')"


RULES: dict[Kind, tuple[Rule | Immutable, ...]] = {
    Kind.TOOLBOX: (
        _name(Kind.TOOLBOX),
        _base_url("spec.endpoint", "https://203.0.113.10:30000"),
        _base_url("spec.gatewayURL", "https://toolbox.example.com:30443"),
        _duration("spec.leaseDuration", MIN_LEASE, MAX_LEASE),
        *_choice_of_namespaces("spec.allowedServers.namespaces"),
    ),
    Kind.MCP_SERVER: (
        _name(Kind.MCP_SERVER),
        *_choice_of_namespaces("spec.sharing.namespaces"),
        _same(
            "spec.toolboxRef",
            "the Toolbox of a server cannot change: delete this MCPServer and create one that names the other Toolbox",
            lambda body: _ref(body, "toolboxRef"),
            lambda resolved: resolved.toolbox,
        ),
        _same(
            "spec.transport",
            "the transport of a server cannot change: delete this MCPServer and create one with the other transport",
            lambda body: body["spec"]["transport"],
            lambda resolved: resolved.transport,
        ),
        Rule(
            path="spec",
            cel="has(self.port) || self.transport == 'stdio'",
            message="set spec.port to the port the server listens on",
            predicate=lambda spec: "port" in spec or spec["transport"] == "stdio",
            field="port",
        ),
        _listening_only("port", "remove spec.port: a server that speaks stdio listens on none"),
        _listening_only("path", "remove spec.path: a server that speaks stdio answers on none"),
        Rule(
            path="spec",
            cel="!has(self.sessions) || self.transport == 'stdio'",
            message="remove spec.sessions: only a server that speaks stdio has a container for each session",
            predicate=lambda spec: "sessions" not in spec or spec["transport"] == "stdio",
            field="sessions",
        ),
        _duration("spec.sessions.idleTimeout", MIN_IDLE, MAX_IDLE),
        _image(),
        _http_path(),
        _approved_hash(),
        Rule(
            path="spec.env[]",
            cel="has(self.value) != has(self.valueFrom)",
            message="set exactly one of value and valueFrom",
            predicate=lambda entry: ("value" in entry) != ("valueFrom" in entry),
        ),
        Rule(
            path="spec.env[].valueFrom",
            cel="has(self.secretKeyRef) != has(self.configMapKeyRef)",
            message="set exactly one of secretKeyRef and configMapKeyRef",
            predicate=lambda source: ("secretKeyRef" in source) != ("configMapKeyRef" in source),
        ),
        _quantity("spec.resources.limits.memory", "memory limit", parse_memory, MIN_MEMORY, MAX_MEMORY),
        _quantity("spec.resources.limits.cpu", "CPU limit", parse_cpu, MIN_CPU, MAX_CPU),
        *_volumes(),
    ),
    Kind.CONNECTION: (
        _name(Kind.CONNECTION),
        Rule(
            path="spec.expose.tools",
            cel="!has(self.approvedHash)",
            message="remove approvedHash: the owner of the MCPServer approves its tools there, for all connections",
            predicate=lambda tools: "approvedHash" not in tools,
            field="approvedHash",
        ),
        _same(
            "spec.agent",
            "the agent of a connection cannot change: create another AgentMCPConnection for the other agent",
            lambda body: body["spec"]["agent"]["name"],
            lambda resolved: resolved.agent,
        ),
        _same(
            "spec.serverRef",
            "the server of a connection cannot change: create another AgentMCPConnection for the other server",
            lambda body: _ref(body, "serverRef"),
            lambda resolved: resolved.server,
        ),
        Immutable(
            path="",
            cel=f"{_secret_name_cel('self')} == {_secret_name_cel('oldSelf')}",
            message="the Secret of a connection cannot change its name: create another AgentMCPConnection",
            current=lambda body: secret_name(body["metadata"]["name"], body["spec"].get("secretName")),
            accepted=lambda resolved: resolved.secret_name,
            field="spec.secretName",
        ),
        _quantity(
            "spec.limits.maxRequestBytes",
            "size",
            parse_memory,
            MIN_BODY,
            MAX_REQUEST,
            ", the most that the gateway takes of anybody",
        ),
        _quantity(
            "spec.limits.maxResponseBytes",
            "size",
            parse_memory,
            MIN_BODY,
            MAX_RESPONSE,
            ", or leave it out for no limit",
        ),
        _duration("spec.limits.callTimeout", MIN_CALL, MAX_CALL, ", or leave it out for no limit"),
    ),
}


def violations(kind: Kind, body: Body, resolved: Resolved | None = None) -> list[Violation]:
    """The rules that a schema-valid object breaks, in the order they are declared.

    `resolved` is `status.resolved`: what immutable fields were first accepted with. Without it nothing was
    accepted yet, and nothing is immutable.
    """
    found: list[Violation] = []
    for rule in RULES[kind]:
        if isinstance(rule, Rule):
            broken = [path for path, value in _values(body, rule.path) if not rule.predicate(value)]
        elif resolved is not None and rule.current(body) != rule.accepted(resolved):
            broken = [rule.path]
        else:
            broken = []
        found += [Violation(_join(path, rule.field), rule.message, rule.reason) for path in broken]
    return found


def _join(path: str, field: str) -> str:
    return ".".join(part for part in (path, field) if part)


def _values(body: Body, path: str) -> Iterator[tuple[str, Any]]:
    """Every value at a schema path, with the concrete path to it."""
    found: list[tuple[str, Any]] = [("", body)]
    for step in path.split(".") if path else ():
        name = step.removesuffix("[]")
        found = [(_join(where, name), value[name]) for where, value in found if name in value]
        if step.endswith("[]"):
            found = [(f"{where}[{index}]", item) for where, items in found for index, item in enumerate(items)]
    yield from found
