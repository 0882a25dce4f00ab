"""What a real API server gives to watches of metadata, under the operator's own rights."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from localstack.kubernetes import Cluster
from support.async_poll import until
from toolbox_operator.api.meta import API_VERSION, Body, Key, Kind
from toolbox_operator.domain.inputs import Ref, Source
from toolbox_operator.kube.api import CONFIG_MAPS, NAMESPACES, SECRETS, Resource
from toolbox_operator.kube.cache import EventType
from toolbox_operator.kube.login import Login
from toolbox_operator.kube.metadata import MetadataWatch
from toolbox_operator.kube.rest import MERGE_PATCH, KubeRest, collection_path, object_path
from toolbox_operator.runtime import SystemClock

from .conftest import Running, Start

pytestmark = pytest.mark.integration


@dataclass
class Heard:
    """An audience that keeps everything."""

    beginnings: list[Sequence[Body]] = field(default_factory=list[Sequence[Body]])
    events: list[tuple[EventType, Body]] = field(default_factory=list[tuple[EventType, Body]])

    def begun(self, bodies: Sequence[Body]) -> None:
        self.beginnings.append(bodies)

    def changed(self, type_: EventType, body: Body) -> None:
        self.events.append((type_, body))

    def of(self, name: str) -> list[EventType]:
        return [type_ for type_, body in self.events if body["metadata"]["name"] == name]


async def write(rest: KubeRest, resource: Resource, key: Key, value: str) -> None:
    """Create, or change."""
    content: dict[str, Any] = {"stringData" if resource is SECRETS else "data": {"word": value}}
    path = object_path(resource, key)
    names = [
        item["metadata"]["name"] for item in (await rest.request("GET", path.rpartition("/")[0], deadline=10))["items"]
    ]
    if key.name in names:
        await rest.request("PATCH", path, deadline=10, body=content, content_type=MERGE_PATCH)
        return
    body = {"apiVersion": "v1", "kind": resource.kind, "metadata": {"name": key.name}, **content}
    await rest.request("POST", collection_path(resource, key.namespace), deadline=10, body=body)


async def relabel(rest: KubeRest, namespace: str, **labels: str | None) -> None:
    path = f"{collection_path(NAMESPACES)}/{namespace}"
    await rest.request("PATCH", path, deadline=10, body={"metadata": {"labels": labels}}, content_type=MERGE_PATCH)


@pytest.mark.parametrize("resource", [SECRETS, CONFIG_MAPS], ids=["secrets", "configmaps"])
async def test_a_watch_delivers_what_happens_and_nothing_of_what_is_inside(
    operator_account: Path, rest: KubeRest, namespace: str, resource: Resource
) -> None:
    heard, key = Heard(), Key(namespace, "words")
    await write(rest, resource, Key(namespace, "earlier"), "unheard")
    async with KubeRest(await Login(operator_account).configuration()) as own:
        watch = MetadataWatch(own, resource, heard, SystemClock(), listing=False)
        task = asyncio.create_task(watch.run())
        try:
            await until("begun", watch.begun.is_set)
            await write(rest, resource, key, "whispered")
            await until("added", lambda: heard.of("words") == ["ADDED"])
            await write(rest, resource, key, "shouted")
            await until("modified", lambda: heard.of("words") == ["ADDED", "MODIFIED"])
            await rest.request("DELETE", object_path(resource, key), deadline=10)
            await until("deleted", lambda: heard.of("words") == ["ADDED", "MODIFIED", "DELETED"])
        finally:
            task.cancel()
            await asyncio.wait([task])
    assert heard.beginnings == [()]
    assert heard.of("earlier") == []
    for _, body in heard.events:
        assert body["kind"] == "PartialObjectMetadata"
        assert body.keys() <= {"apiVersion", "kind", "metadata"}
    assert "whispered" not in json.dumps(heard.events) and "shouted" not in json.dumps(heard.events)


async def test_labels_of_namespaces_are_known_when_work_begins_and_follow_at_once(
    operator: Start, rest: KubeRest, namespace: str
) -> None:
    await relabel(rest, namespace, team="a")
    async with operator() as running:
        await until("started", lambda: running.seen.context)
        labels = running.context.labels
        await until("known", lambda: labels.of(namespace), lambda now: (now or {}).get("team") == "a")
        await relabel(rest, namespace, team="b", tier="front")
        await until("changed", lambda: (labels.of(namespace) or {}).get("team") == "b")
        await relabel(rest, namespace, team=None)
        await until("removed", lambda: "team" not in (labels.of(namespace) or {"team": "?"}))
        assert (labels.of(namespace) or {})["tier"] == "front"
        assert labels.of("no-such-namespace") is None


async def test_a_label_brings_back_the_servers_that_it_decides_about(
    operator: Start, rest: KubeRest, namespace: str
) -> None:
    async def create(kind: Kind, plural: str, spec: dict[str, Any]) -> None:
        body = {"apiVersion": API_VERSION, "kind": str(kind), "metadata": {"name": "x"}, "spec": spec}
        await rest.request("POST", f"/apis/{API_VERSION}/namespaces/{namespace}/{plural}", deadline=10, body=body)

    toolbox = {
        "endpoint": "https://127.0.0.1:1",
        "gatewayURL": "https://127.0.0.1:2",
        "authSecretRef": {"name": "a", "key": "token"},
        "allowedServers": {"namespaces": {"from": "Selector", "selector": {"matchLabels": {"tools": "yes"}}}},
    }
    server = {"toolboxRef": {"name": "x"}, "image": "i", "transport": "streamable-http", "port": 1}
    await create(Kind.TOOLBOX, "toolboxes", toolbox)
    await create(Kind.MCP_SERVER, "mcpservers", server)
    key = Key(namespace, "x")
    async with operator() as running:
        await until("seen", lambda: running.seen.of(Kind.MCP_SERVER, key) and running.seen.of(Kind.TOOLBOX, key))
        before = len(running.seen.of(Kind.MCP_SERVER, key)), len(running.seen.of(Kind.TOOLBOX, key))
        await relabel(rest, namespace, tools="yes")
        await until("the server again", lambda: len(running.seen.of(Kind.MCP_SERVER, key)) > before[0])
        await until("the Toolbox again", lambda: len(running.seen.of(Kind.TOOLBOX, key)) > before[1])


@pytest.mark.parametrize(
    ("source", "resource"), [(Source.SECRET, SECRETS), (Source.CONFIG_MAP, CONFIG_MAPS)], ids=["secrets", "configmaps"]
)
async def test_what_is_read_brings_its_readers_back_when_it_comes_changes_and_goes(
    operator: Start, rest: KubeRest, namespace: str, source: Source, resource: Resource
) -> None:
    reader, key = Key(namespace, "reader"), Key(namespace, "words")
    async with operator() as running:
        await until("started", lambda: running.seen.context)
        running.context.sources.reads((Kind.MCP_SERVER, reader), [Ref(source, "words")])
        await settled(running, rest, resource, reader, Key(namespace, "words"))
        for change in ("changed", "deleted", "again"):
            before = len(running.seen.of(Kind.MCP_SERVER, reader))
            if change == "deleted":
                await rest.request("DELETE", object_path(resource, key), deadline=10)
            else:
                await write(rest, resource, key, change)
            await until(change, lambda before=before: len(running.seen.of(Kind.MCP_SERVER, reader)) > before)


async def settled(running: Running, rest: KubeRest, resource: Resource, reader: Key, key: Key) -> None:
    """Returns once the watch is there: what was written before it began comes back later, and not at once."""
    async with asyncio.timeout(40):
        for attempt in itertools.count():
            await write(rest, resource, key, f"attempt {attempt}")
            if running.seen.of(Kind.MCP_SERVER, reader):
                return


async def test_an_operator_without_the_right_to_namespaces_starts_and_says_so(
    kubernetes: Cluster, operator: Start, rest: KubeRest, namespace: str
) -> None:
    role = json.loads(kubernetes.kubectl("get", "clusterrole", "magic-toolbox-operator", "-o", "json"))
    without = [rule for rule in role["rules"] if "namespaces" not in rule["resources"] or rule.get("resourceNames")]
    path = "/apis/rbac.authorization.k8s.io/v1/clusterroles/magic-toolbox-operator"
    await rest.request("PATCH", path, deadline=10, body={"rules": without}, content_type=MERGE_PATCH)
    try:
        async with operator() as running:
            await until("started", lambda: running.seen.context, seconds=30)
            reader = Key(namespace, "reader")
            running.context.sources.reads((Kind.MCP_SERVER, reader), [Ref(Source.SECRET, "words")])
            await settled(running, rest, SECRETS, reader, Key(namespace, "words"))
            assert running.context.labels.of(namespace) is None
    finally:
        await rest.request("PATCH", path, deadline=10, body={"rules": role["rules"]}, content_type=MERGE_PATCH)
