"""From the JSON of the API server to typed objects, once, at the edge.

The API server has checked the schema already; parsing checks it again, since an object may be older than the
schema. An object that does not parse is a value like any other, with the reason in `problem`: nothing here
raises for what a person wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar, cast

from pydantic import ValidationError

from toolbox_operator.api.conditions import Condition, Reason
from toolbox_operator.api.connection import AgentMCPConnectionSpec, AgentMCPConnectionStatus
from toolbox_operator.api.explain import explain
from toolbox_operator.api.mcpserver import MCPServerSpec, MCPServerStatus
from toolbox_operator.api.meta import ApiModel, Body, Key, Kind, StatusModel
from toolbox_operator.api.rules import Resolved, Violation, violations
from toolbox_operator.api.toolbox import ToolboxSpec, ToolboxStatus

SpecT = TypeVar("SpecT", bound=ApiModel)
StatusT = TypeVar("StatusT", bound=StatusModel)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an object cannot be acted on until somebody edits it."""

    reason: Reason
    message: str


class SpecInvalid(ValueError):
    """A spec that does not fit its schema. The text names each field and what to change."""


@dataclass(frozen=True, slots=True)
class ApiObject(Generic[SpecT, StatusT]):
    """One object of this group: identity, intent and last reported truth.

    `spec` is None exactly when `spec_error` says why. `violations` are the rules broken, those against
    `status.resolved` included. `body` is the JSON it came from.
    """

    kind: Kind
    key: Key
    uid: str
    generation: int
    resource_version: str
    annotations: Mapping[str, str]
    labels: Mapping[str, str]
    finalizers: tuple[str, ...]
    deletion_timestamp: datetime | None
    spec: SpecT | None
    spec_error: str | None
    violations: tuple[Violation, ...]
    status: StatusT
    body: Body = field(repr=False)

    @property
    def deleting(self) -> bool:
        """Whether somebody asked for its deletion."""
        return self.deletion_timestamp is not None

    @property
    def problem(self) -> Problem | None:
        """Everything that is wrong with the object, as one reason and one text; None when it can be acted on."""
        if self.spec_error is not None:
            return Problem(Reason.SPEC_INVALID, _sentence(self.spec_error))
        if self.violations:
            return Problem(self.violations[0].reason, _sentence("; ".join(str(v) for v in self.violations)))
        return None


class ToolboxObject(ApiObject[ToolboxSpec, ToolboxStatus]):
    """A Toolbox."""

    __slots__ = ()


class ServerObject(ApiObject[MCPServerSpec, MCPServerStatus]):
    """An MCPServer."""

    __slots__ = ()


class ConnectionObject(ApiObject[AgentMCPConnectionSpec, AgentMCPConnectionStatus]):
    """An AgentMCPConnection."""

    __slots__ = ()


def parse_toolbox(body: Body) -> ToolboxObject:
    """The Toolbox of a body as the API server sends it."""
    status = parse_status(ToolboxStatus, body.get("status"))
    return ToolboxObject(**_common(Kind.TOOLBOX, body, ToolboxSpec, None), status=status)


def parse_server(body: Body) -> ServerObject:
    """The MCPServer of a body as the API server sends it."""
    status = parse_status(MCPServerStatus, body.get("status"))
    return ServerObject(**_common(Kind.MCP_SERVER, body, MCPServerSpec, status.resolved), status=status)


def parse_connection(body: Body) -> ConnectionObject:
    """The AgentMCPConnection of a body as the API server sends it."""
    status = parse_status(AgentMCPConnectionStatus, body.get("status"))
    return ConnectionObject(**_common(Kind.CONNECTION, body, AgentMCPConnectionSpec, status.resolved), status=status)


def parse_spec(model: type[SpecT], spec: Any) -> SpecT:
    """The spec as its model. Raises `SpecInvalid`."""
    if not isinstance(spec, Mapping):
        raise SpecInvalid("spec: required; describe what you want there")
    text = json.dumps(_without_nulls(spec))
    try:
        # Strict JSON: a number written as text is refused, as the API server does.
        return model.model_validate_json(text, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        raise SpecInvalid(explain(model, error)) from None


def parse_status(model: type[StatusT], status: Any) -> StatusT:
    """The status as its model, without the parts that do not fit (another version's, or edited by hand)."""
    remaining = dict(cast("Mapping[str, Any]", status)) if isinstance(status, Mapping) else {}
    if isinstance(remaining.get("conditions"), list):
        remaining["conditions"] = [c for c in remaining["conditions"] if _fits(Condition, c)]
    while True:
        try:
            return model.model_validate_json(json.dumps(remaining), by_alias=True, by_name=False)
        except ValidationError as error:
            misfits = {str(d["loc"][0]) for d in error.errors(include_url=False, include_input=False) if d["loc"]}
            kept = {name: value for name, value in remaining.items() if name not in misfits}
            # An error that names no member (text that is not Unicode) leaves nothing to keep.
            remaining = kept if len(kept) < len(remaining) else {}


def _sentence(text: str) -> str:
    return text if text.endswith((".", "…")) else f"{text}."


def _fits(model: type[StatusModel], value: Any) -> bool:
    try:
        model.model_validate_json(json.dumps(value), by_alias=True, by_name=False)
    except ValidationError:
        return False
    return True


def _common(kind: Kind, body: Body, model: type[SpecT], resolved: Resolved | None) -> dict[str, Any]:
    meta = cast("Mapping[str, Any]", body["metadata"])
    spec: SpecT | None = None
    error: str | None = None
    broken: tuple[Violation, ...] = ()
    try:
        spec = parse_spec(model, body.get("spec"))
        # Rules are about these two; a status may be long.
        ruled = {"metadata": body["metadata"], "spec": _without_nulls(body["spec"])}
        broken = tuple(violations(kind, ruled, resolved))
    except SpecInvalid as invalid:
        error = str(invalid)
    deleted = meta.get("deletionTimestamp")
    return {
        "kind": kind,
        "key": Key.of(body),
        "uid": meta["uid"],
        "generation": meta.get("generation", 0),
        "resource_version": meta.get("resourceVersion", ""),
        "annotations": dict(meta.get("annotations") or {}),
        "labels": dict(meta.get("labels") or {}),
        "finalizers": tuple(meta.get("finalizers") or ()),
        "deletion_timestamp": datetime.fromisoformat(deleted) if deleted else None,
        "spec": spec,
        "spec_error": error,
        "violations": broken,
        "body": body,
    }


def _without_nulls(value: Any) -> Any:
    """The value without null members: the API server drops them where a field is not nullable, and none is."""
    if isinstance(value, Mapping):
        members = cast("Mapping[str, Any]", value)
        return {name: _without_nulls(member) for name, member in members.items() if member is not None}
    if isinstance(value, (list, tuple)):
        return [_without_nulls(item) for item in cast("list[Any]", value)]
    return value
