"""`Kube` over REST: fenced writes guarded by resourceVersion, complete lists."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from toolbox_operator.api.meta import Body, Key
from toolbox_operator.kube.api import EVENTS, KubeError, Missing, Resource
from toolbox_operator.kube.rest import MERGE_PATCH, KubeRest, collection_path, object_path
from toolbox_operator.runtime import Leadership

READ_DEADLINE = 10.0
WRITE_DEADLINE = 5.0
"""Not above leaseDuration - renewDeadline: a write that began under a valid lease ends before another can lead."""
LIST_DEADLINE = 15.0
"""Per chunk."""
CHUNK = 500
RELISTS = 3
"""How often a list whose continue token expired starts over before it fails."""
REMEMBERED = 20_000
"""Objects whose newest version is kept in mind; of more, those that were met longest ago are forgotten."""

Written = Callable[[Resource, Body], None]


def slim(body: Mapping[str, Any], resource: Resource) -> dict[str, Any]:
    """A body without managedFields, and with the apiVersion and kind that list items of core kinds lack."""
    metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
    return {"apiVersion": resource.api_version, "kind": resource.kind, **body, "metadata": metadata}


class KubeClient:
    """The operator's Kubernetes. `written` is told of every body a write came back with."""

    def __init__(
        self,
        rest: KubeRest,
        leadership: Leadership,
        *,
        written: Written | None = None,
        write_deadline: float = WRITE_DEADLINE,
    ) -> None:
        self._rest = rest
        self._leadership = leadership
        self._written = written
        self._write_deadline = write_deadline
        self._newest: OrderedDict[tuple[Resource, Key], int] = OrderedDict()

    async def get(self, resource: Resource, key: Key) -> Body | None:
        known = self._newest.get((resource, key), 0)
        try:
            body = await self._rest.request("GET", object_path(resource, key), deadline=READ_DEADLINE)
        except Missing:
            self._newest.pop((resource, key), None)
            return None
        if int(body["metadata"]["resourceVersion"]) < known:
            # A server that lags, or was restored. A grant made from a replaced Secret would revoke the token in use.
            raise KubeError(200, f"{resource.plural} {key}: the answer is older than one before")
        self._remember(resource, key, body)
        return slim(body, resource)

    def _remember(self, resource: Resource, key: Key, body: Mapping[str, Any]) -> None:
        if resource is EVENTS:
            return  # many, and nothing is decided on them
        version = int(body["metadata"]["resourceVersion"])
        self._newest[resource, key] = max(version, self._newest.get((resource, key), 0))
        self._newest.move_to_end((resource, key))
        if len(self._newest) > REMEMBERED:
            self._newest.popitem(last=False)

    async def list(self, resource: Resource, *, label_selector: str = "") -> tuple[Sequence[Body], str]:
        for _ in range(RELISTS):
            try:
                return await self._list(resource, label_selector)
            except KubeError as error:
                if error.status != 410:
                    raise
        raise KubeError(410, f"list of {resource.plural}: the snapshot expired {RELISTS} times while reading it")

    async def _list(self, resource: Resource, label_selector: str) -> tuple[Sequence[Body], str]:
        query = {"limit": str(CHUNK)}
        if label_selector:
            query["labelSelector"] = label_selector
        items: list[Body] = []
        version = ""
        while True:
            page = await self._rest.request("GET", collection_path(resource), deadline=LIST_DEADLINE, query=query)
            found: Any = page.get("items")
            metadata: Any = page.get("metadata")
            if not isinstance(found, list) or not isinstance(metadata, dict) or "resourceVersion" not in metadata:
                raise KubeError(200, f"list of {resource.plural}: the answer is not a complete list")
            page_items = cast("list[Body]", found)
            page_metadata = cast("dict[str, str]", metadata)
            items.extend(slim(item, resource) for item in page_items)
            version = version or page_metadata["resourceVersion"]
            if not page_metadata.get("continue"):
                return items, version
            query["continue"] = page_metadata["continue"]

    async def create(self, resource: Resource, body: Body) -> Body:
        path = collection_path(resource, body["metadata"]["namespace"])
        return await self._write("POST", path, resource, body)

    async def merge_patch(self, resource: Resource, key: Key, resource_version: str, patch: dict[str, Any]) -> Body:
        metadata = {**patch.get("metadata", {}), "resourceVersion": resource_version}
        guarded = {**patch, "metadata": metadata}
        return await self._write("PATCH", object_path(resource, key), resource, guarded, content_type=MERGE_PATCH)

    async def replace_status(self, resource: Resource, body: Body, status: dict[str, Any]) -> Body:
        path = object_path(resource, Key.of(body), "status")
        return await self._write("PUT", path, resource, {**slim(body, resource), "status": status})

    async def delete(self, resource: Resource, key: Key, *, uid: str, resource_version: str | None = None) -> None:
        preconditions = {"uid": uid}
        if resource_version is not None:
            preconditions["resourceVersion"] = resource_version
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions}
        self._leadership.check()
        try:
            await self._rest.request("DELETE", object_path(resource, key), deadline=self._write_deadline, body=options)
        except Missing:
            return

    async def _write(
        self,
        method: str,
        path: str,
        resource: Resource,
        body: Body,
        *,
        content_type: str = "application/json",
    ) -> Body:
        self._leadership.check()
        answer = await self._rest.request(
            method, path, deadline=self._write_deadline, body=body, content_type=content_type
        )
        result = slim(answer, resource)
        self._remember(resource, Key.of(result), result)
        if self._written is not None:
            self._written(resource, result)
        return result
