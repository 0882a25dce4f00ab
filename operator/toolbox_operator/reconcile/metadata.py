"""Patches of metadata: finalizers and annotations."""

from __future__ import annotations

from typing import Any

from toolbox_operator.api.meta import Body, Key
from toolbox_operator.kube.api import Kube, Resource


async def patch_metadata(
    kube: Kube,
    resource: Resource,
    body: Body,
    *,
    add: str | None = None,
    remove: frozenset[str] = frozenset(),
    annotations: dict[str, str | None] | None = None,
) -> Body:
    """Add and remove finalizers and set annotations (None removes one) in one write; no write when nothing changes."""
    meta = body["metadata"]
    before: list[str] = list(meta.get("finalizers") or ())
    after = [name for name in before if name not in remove]
    if add is not None and add not in after:
        after.append(add)
    existing: dict[str, str] = meta.get("annotations") or {}
    changed = {name: value for name, value in (annotations or {}).items() if existing.get(name) != value}
    patch: dict[str, Any] = {}
    if after != before:
        patch["finalizers"] = after
    if changed:
        patch["annotations"] = changed
    if not patch:
        return body
    return await kube.merge_patch(resource, Key.of(body), meta["resourceVersion"], {"metadata": patch})
