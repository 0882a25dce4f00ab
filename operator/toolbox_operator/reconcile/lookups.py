"""Reading the Secrets and ConfigMaps that a spec refers to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from toolbox_operator.api.meta import Body, Key
from toolbox_operator.domain.inputs import Ref, Source
from toolbox_operator.kube.api import CONFIG_MAPS, SECRETS
from toolbox_operator.reconcile.context import Context


async def read(ctx: Context, namespace: str, refs: Iterable[Ref]) -> dict[Ref, Body | None]:
    """Each referenced object as it is now, or None where the API server says that there is none."""
    wanted = tuple(refs)
    bodies = await asyncio.gather(
        *(
            ctx.kube.get(SECRETS if ref.source is Source.SECRET else CONFIG_MAPS, Key(namespace, ref.name))
            for ref in wanted
        )
    )
    return dict(zip(wanted, bodies, strict=True))
