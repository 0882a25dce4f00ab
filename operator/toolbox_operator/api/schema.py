"""From pydantic models to the structural OpenAPI v3 schemas that Kubernetes accepts."""

from __future__ import annotations

from typing import Any, cast

from pydantic import BaseModel

Schema = dict[str, Any]

_COPIED = ("minLength", "maxLength", "pattern", "format", "minimum", "maximum", "minItems", "maxItems", "maxProperties")
_LARGEST_INT32 = 2_147_483_647
_ORDER = (
    "description",
    "type",
    "format",
    "enum",
    "default",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "maxProperties",
    "x-kubernetes-int-or-string",
    "anyOf",
    "required",
    "properties",
    "additionalProperties",
    "items",
    "x-kubernetes-map-type",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-validations",
)


class NotStructural(TypeError):
    """A model that a CRD cannot express, or that leaves a size unbounded."""


def structural(model: type[BaseModel], *, defaults: bool) -> Schema:
    """The model as a structural schema: references inlined, optional fields merely absent, every size bounded.

    With `defaults`, static defaults are emitted, so that people see them in the stored object. Raises
    `NotStructural` naming the field.
    """
    root: Schema = model.model_json_schema(by_alias=True)
    return _Inliner(root.get("$defs", {}), defaults).convert(root, model.__name__)


class _Inliner:
    def __init__(self, definitions: dict[str, Schema], defaults: bool):
        self._definitions = definitions
        self._defaults = defaults

    def convert(self, source: Schema, where: str) -> Schema:
        node = self._flatten(source)
        kind: str | None = node.get("type")
        if "const" in node:
            node["enum"] = [node.pop("const")]
        out: Schema = {name: node[name] for name in _COPIED if name in node}
        out |= {name: value for name, value in node.items() if name.startswith("x-kubernetes-")}
        if "description" in node:
            out["description"] = " ".join(node["description"].split())
        if "enum" in node:
            out["enum"] = node["enum"]
        if kind not in {"object", "array", "string", "integer", "boolean"}:
            raise NotStructural(f"{where}: type {kind}")
        out["type"] = kind
        if kind == "object":
            self._object(node, out, where)
        elif kind == "array":
            out["items"] = self.convert(node["items"], f"{where}[]")
            _bounded(out, "maxItems", where)
        elif kind == "integer":
            out["format"] = "int32" if out.get("maximum", _LARGEST_INT32 + 1) <= _LARGEST_INT32 else "int64"
        elif kind == "string" and "enum" not in out and out.get("format") != "date-time":
            _bounded(out, "maxLength", where)
        if out.get("x-kubernetes-int-or-string"):
            del out["type"]
            out["anyOf"] = [{"type": "integer"}, {"type": "string"}]
        self._default(node, out)
        return {name: out[name] for name in sorted(out, key=_ORDER.index)}

    def _object(self, node: Schema, out: Schema, where: str) -> None:
        if isinstance(node.get("additionalProperties"), dict):
            # A map. What its keys may be is for a rule to say.
            out["additionalProperties"] = self.convert(node["additionalProperties"], f"{where}{{}}")
            _bounded(out, "maxProperties", where)
            return
        if "properties" not in node:
            raise NotStructural(f"{where}: an object without fields of its own")
        properties = cast("dict[str, Schema]", node["properties"])
        out["properties"] = {name: self.convert(child, f"{where}.{name}") for name, child in properties.items()}
        if node.get("required"):
            out["required"] = node["required"]

    def _default(self, node: Schema, out: Schema) -> None:
        """Static defaults only. An object's is `{}` when a field below has one: the API server fills in the rest."""
        if not self._defaults or "default" not in node:
            return
        value: Any = node["default"]
        if out.get("type") == "object":
            if any("default" in child for child in out.get("properties", {}).values()):
                out["default"] = {}
        elif value is not None and value != []:
            out["default"] = value

    def _flatten(self, source: Schema) -> Schema:
        """The node with its reference or its one non-null choice merged in; what the node itself says wins."""
        node = dict(source)
        if "$ref" in node:
            name = cast("str", node.pop("$ref")).rsplit("/", 1)[1]
            return self._flatten(self._definitions[name]) | node
        if "anyOf" in node:
            choices = [choice for choice in node.pop("anyOf") if choice.get("type") != "null"]
            if len(choices) != 1:
                raise NotStructural(f"a choice between {len(choices)} types")
            return self._flatten(choices[0]) | node
        return node


def _bounded(out: Schema, bound: str, where: str) -> None:
    if bound not in out:
        raise NotStructural(f"{where}: {bound} is missing; every size must have a maximum")
