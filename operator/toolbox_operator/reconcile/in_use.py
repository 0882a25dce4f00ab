"""The `in-use` finalizer: a Toolbox and its Secrets stay until the last server has left the host (ADR 0001).

The names of the Secrets held are kept in an annotation of the Toolbox, written before the first one is held,
so that one that the spec no longer refers to is still let go.
"""

from __future__ import annotations

from toolbox_operator.api.meta import FINALIZER_IN_USE, GROUP, Body, Key, Kind
from toolbox_operator.api.parse import ToolboxObject, parse_toolbox
from toolbox_operator.domain.toolbox import secret_refs
from toolbox_operator.kube.api import SECRETS, TOOLBOXES, Missing
from toolbox_operator.reconcile.context import Context
from toolbox_operator.reconcile.metadata import patch_metadata

ANNOTATION_HELD = f"{GROUP}/held-secrets"
"""On a Toolbox: names of the Secrets that carry our finalizer for it, comma-separated."""


def holds(toolbox: ToolboxObject) -> bool:
    """Whether the Toolbox and exactly the Secrets it refers to are held already."""
    return FINALIZER_IN_USE in toolbox.finalizers and _held(toolbox) == _wanted(toolbox)


async def hold(ctx: Context, toolbox: ToolboxObject) -> ToolboxObject:
    """Hold the Toolbox and its Secrets. The Toolbox must not be on its way out."""
    if holds(toolbox):
        return toolbox
    wanted, before = _wanted(toolbox), _held(toolbox)
    toolbox = await _note(ctx, toolbox, wanted | before)
    for name in sorted(wanted):
        key = Key(toolbox.key.namespace, name)
        secret = await ctx.kube.get(SECRETS, key)
        if secret is not None and not secret["metadata"].get("deletionTimestamp"):
            await patch_metadata(ctx.kube, SECRETS, secret, add=FINALIZER_IN_USE)
    for name in sorted(before - wanted):
        await _let_go(ctx, toolbox, name)
    # Last: its presence tells every other server that the Secrets are held.
    body = await patch_metadata(
        ctx.kube,
        TOOLBOXES,
        toolbox.body,
        add=FINALIZER_IN_USE,
        annotations={ANNOTATION_HELD: ",".join(sorted(wanted))},
    )
    return parse_toolbox(body)


async def let_go(ctx: Context, toolbox: ToolboxObject, *, also: frozenset[str] = frozenset()) -> ToolboxObject:
    """Let the Secrets go, then the Toolbox, together with its other finalizers in `also`."""
    for name in sorted(_held(toolbox)):
        await _let_go(ctx, toolbox, name)
    body = await patch_metadata(
        ctx.kube,
        TOOLBOXES,
        toolbox.body,
        remove=also | {FINALIZER_IN_USE},
        annotations={ANNOTATION_HELD: None},
    )
    return parse_toolbox(body)


async def _note(ctx: Context, toolbox: ToolboxObject, names: frozenset[str]) -> ToolboxObject:
    body = await patch_metadata(
        ctx.kube, TOOLBOXES, toolbox.body, annotations={ANNOTATION_HELD: ",".join(sorted(names))}
    )
    return parse_toolbox(body)


async def _let_go(ctx: Context, toolbox: ToolboxObject, name: str) -> None:
    if _held_by_another(ctx, toolbox, name):
        return
    secret = await ctx.kube.get(SECRETS, Key(toolbox.key.namespace, name))
    if secret is None:
        return
    try:
        await patch_metadata(ctx.kube, SECRETS, secret, remove=frozenset({FINALIZER_IN_USE}))
    except Missing:
        return  # gone meanwhile, which is what was wanted


def _held_by_another(ctx: Context, toolbox: ToolboxObject, name: str) -> bool:
    return any(
        Key.of(body).namespace == toolbox.key.namespace
        and body["metadata"]["uid"] != toolbox.uid
        and name in _names(body)
        for body in ctx.cache.all(Kind.TOOLBOX)
    )


def _held(toolbox: ToolboxObject) -> frozenset[str]:
    return _names(toolbox.body)


def _names(body: Body) -> frozenset[str]:
    annotations: dict[str, str] = body["metadata"].get("annotations") or {}
    text = annotations.get(ANNOTATION_HELD) or ""
    return frozenset(name for name in text.split(",") if name)


def _wanted(toolbox: ToolboxObject) -> frozenset[str]:
    # A spec that cannot be read holds on to what it held before.
    return _held(toolbox) if toolbox.spec is None else frozenset(ref.name for ref in secret_refs(toolbox.spec))
