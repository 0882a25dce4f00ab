"""An API server in memory, as far as reconcilers can tell: versions, finalizers, subresources, generations."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from toolbox_operator.api.meta import Body, Key
from toolbox_operator.kube.api import (
    CONNECTIONS,
    MCP_SERVERS,
    TOOLBOXES,
    AlreadyExists,
    Conflict,
    Missing,
    Refused,
    Resource,
)

Json = dict[str, Any]
OnWrite = Callable[[Resource, Body, bool], None]
"""(resource, body, gone): called for every change, as a watch would deliver it."""

_WITH_STATUS = (TOOLBOXES, MCP_SERVERS, CONNECTIONS)


class MemoryKube:
    """Objects by resource and key. `writes` names every request of the operator that changed something."""

    def __init__(self, on_write: OnWrite):
        self.objects: dict[tuple[str, Key], Json] = {}
        self.on_write = on_write
        self.writes: list[str] = []
        self.before_write: Callable[[str], None] = lambda _: None
        self.after_write: Callable[[str], None] = lambda _: None
        self._version = 100
        self._time = datetime(2026, 1, 1, tzinfo=UTC)

    # ---- as a person with kubectl
    def apply(self, resource: Resource, body: Body) -> Json:
        """Create, or replace annotations, spec and data."""
        old = self.objects.get((resource.plural, Key.of(body)))
        if old is None:
            return self._insert(resource, copy.deepcopy(dict(body)))
        new = copy.deepcopy(old)
        for part in ("spec", "data", "type"):
            if part in body:
                new[part] = copy.deepcopy(body[part])
        if "annotations" in body["metadata"]:
            annotations: Json = old["metadata"].get("annotations") or {}
            new["metadata"]["annotations"] = {**annotations, **body["metadata"]["annotations"]}
        return self._store(resource, old, new)

    def edit(self, resource: Resource, key: Key, patch: Json) -> Json:
        """A merge patch by a person."""
        old = self.objects[(resource.plural, key)]
        return self._store(resource, old, cast("Json", merged(old, patch)))

    def remove(self, resource: Resource, key: Key) -> None:
        """`kubectl delete`."""
        self._delete(resource, key)

    def peek(self, resource: Resource, key: Key) -> Json | None:
        """The object as it is."""
        return self.objects.get((resource.plural, key))

    # ---- as the operator
    async def get(self, resource: Resource, key: Key) -> Body | None:
        return copy.deepcopy(self.objects.get((resource.plural, key)))

    async def list(self, resource: Resource, *, label_selector: str = "") -> tuple[Sequence[Body], str]:
        assert not label_selector, "no reconciler selects by label"
        items = [copy.deepcopy(body) for (plural, _), body in self.objects.items() if plural == resource.plural]
        return items, str(self._version)

    async def create(self, resource: Resource, body: Body) -> Body:
        name = f"create {resource.kind} {Key.of(body)}"
        self.before_write(name)
        if (resource.plural, Key.of(body)) in self.objects:
            raise AlreadyExists(409, "already exists")
        return self._written(name, self._insert(resource, copy.deepcopy(dict(body))))

    async def merge_patch(self, resource: Resource, key: Key, resource_version: str, patch: Json) -> Body:
        name = f"patch {resource.kind} {key}"
        self.before_write(name)
        old = self._current(resource, key, resource_version)
        new = cast("Json", merged(old, {part: value for part, value in patch.items() if part != "status"}))
        return self._written(name, self._store(resource, old, new))

    async def replace_status(self, resource: Resource, body: Body, status: Json) -> Body:
        name = f"status {resource.kind} {Key.of(body)}"
        self.before_write(name)
        old = self._current(resource, Key.of(body), body["metadata"]["resourceVersion"])
        if old["metadata"]["uid"] != body["metadata"]["uid"]:
            raise Conflict(409, "another object of this name")
        new = {**copy.deepcopy(old), "status": copy.deepcopy(status)}
        return self._written(name, self._store(resource, old, new))

    async def delete(self, resource: Resource, key: Key, *, uid: str, resource_version: str | None = None) -> None:
        name = f"delete {resource.kind} {key}"
        self.before_write(name)
        old = self.objects.get((resource.plural, key))
        if old is None:
            return
        if old["metadata"]["uid"] != uid:
            raise Conflict(409, "another object of this name")
        self._delete(resource, key)
        self.writes.append(name)
        self.after_write(name)

    # ---- inside
    def _written(self, name: str, body: Json) -> Body:
        self.writes.append(name)
        result = copy.deepcopy(body)
        self.after_write(name)
        return result

    def _current(self, resource: Resource, key: Key, version: str) -> Json:
        old = self.objects.get((resource.plural, key))
        if old is None:
            raise Missing(404, "not found")
        if old["metadata"]["resourceVersion"] != version:
            raise Conflict(409, "the object has been modified")
        return old

    def _insert(self, resource: Resource, body: Json) -> Json:
        meta: Json = {**body["metadata"]}
        meta.setdefault("uid", str(uuid.uuid5(uuid.NAMESPACE_OID, f"{resource.plural}{self._version}")))
        self._time += timedelta(seconds=1)
        meta.setdefault("creationTimestamp", self._time.isoformat())
        if resource in _WITH_STATUS:
            meta["generation"] = 1
            body.pop("status", None)
        return self._put(
            resource, {"apiVersion": resource.api_version, "kind": resource.kind, **body, "metadata": meta}
        )

    def _store(self, resource: Resource, old: Json, new: Json) -> Json:
        if new == old:
            return old
        before: set[str] = set(old["metadata"].get("finalizers") or ())
        added = set(new["metadata"].get("finalizers") or ()) - before
        if old["metadata"].get("deletionTimestamp") and added:
            raise Refused(422, "no new finalizers can be added if the object is being deleted")
        if resource in _WITH_STATUS and new.get("spec") != old.get("spec"):
            new["metadata"]["generation"] = old["metadata"]["generation"] + 1
        if new["metadata"].get("deletionTimestamp") and not new["metadata"].get("finalizers"):
            return self._gone(resource, new)
        return self._put(resource, new)

    def _delete(self, resource: Resource, key: Key) -> None:
        old = self.objects.get((resource.plural, key))
        if old is None or old["metadata"].get("deletionTimestamp"):
            return
        new = copy.deepcopy(old)
        self._time += timedelta(seconds=1)
        new["metadata"]["deletionTimestamp"] = self._time.isoformat()
        if "generation" in new["metadata"]:
            new["metadata"]["generation"] += 1
        if new["metadata"].get("finalizers"):
            self._put(resource, new)
        else:
            self._gone(resource, new)

    def _put(self, resource: Resource, body: Json) -> Json:
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        self.objects[(resource.plural, Key.of(body))] = body
        self.on_write(resource, copy.deepcopy(body), False)
        return body

    def _gone(self, resource: Resource, body: Json) -> Json:
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        self.objects.pop((resource.plural, Key.of(body)), None)
        self.on_write(resource, copy.deepcopy(body), True)
        self._collect(body["metadata"]["uid"])
        return body

    def _collect(self, uid: str) -> None:
        """What the garbage collector does with objects owned by one that is gone."""
        for (plural, key), body in list(self.objects.items()):
            owners: list[Json] = body["metadata"].get("ownerReferences") or []
            if any(owner["uid"] == uid for owner in owners):
                self._delete(Resource("", body["apiVersion"], plural, body["kind"]), key)


def merged(old: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result: Json = copy.deepcopy(cast("Json", old)) if isinstance(old, dict) else {}
    for name, value in cast("Json", patch).items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result
