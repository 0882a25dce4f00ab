"""Reading what an object refers to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from toolbox_operator.api.meta import Body, Key, Kind
from toolbox_operator.domain.inputs import Ref, Source
from toolbox_operator.kube.api import CONFIG_MAPS, RESOURCE_OF, SECRETS
from toolbox_operator.reconcile.context import Context


async def make_known(ctx: Context, kind: Kind, key: Key | None) -> None:
    """Have the cache know the object that another one names, if the API server has it. Raises `KubeError`.

    The watches of two kinds are not in step: of objects that are created together, the one that refers may be seen
    first, and must not be told that the other does not exist.
    """
    if key is None or ctx.cache.get(kind, key) is not None:
        return
    body = await ctx.kube.get(RESOURCE_OF[kind], key)
    if body is not None:
        ctx.cache.absorb(RESOURCE_OF[kind], body)


async def read(ctx: Context, namespace: str, refs: Iterable[Ref]) -> dict[Ref, Body | None]:
    """Each referenced Secret and ConfigMap as it is now, or None where the API server says that there is none."""
    wanted = tuple(refs)
    bodies = await asyncio.gather(
        *(
            ctx.kube.get(SECRETS if ref.source is Source.SECRET else CONFIG_MAPS, Key(namespace, ref.name))
            for ref in wanted
        )
    )
    return dict(zip(wanted, bodies, strict=True))
