"""From an object in the API server to a reconcile, and back to rest."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

import pytest

from localstack.kubernetes import Cluster
from support.async_poll import until
from toolbox_operator.api.meta import API_VERSION, LABEL_CONNECTION, Body, Key, Kind
from toolbox_operator.kube.api import KubeError, Missing
from toolbox_operator.kube.cache import ObjectCache
from toolbox_operator.kube.client import CHUNK
from toolbox_operator.kube.recorder import Recorder
from toolbox_operator.kube.rest import KubeRest
from toolbox_operator.store.sql import SqlStore

from .conftest import Start

pytestmark = pytest.mark.integration


def toolbox(namespace: str, name: str) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "Toolbox",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "endpoint": "https://127.0.0.1:1",
            "gatewayURL": "https://127.0.0.1:2",
            "authSecretRef": {"name": "a", "key": "token"},
        },
    }


def boxes(namespace: str) -> str:
    return f"/apis/{API_VERSION}/namespaces/{namespace}/toolboxes"


async def create(rest: KubeRest, namespace: str, name: str) -> Body:
    return await rest.request("POST", boxes(namespace), deadline=10, body=toolbox(namespace, name))


async def test_an_object_is_reconciled_when_it_appears_when_it_changes_and_when_it_is_gone(
    operator: Start, rest: KubeRest, namespace: str
) -> None:
    key = Key(namespace, "t")
    async with operator() as running:
        await create(rest, namespace, "t")
        await until("seen", lambda: running.seen.of(Kind.TOOLBOX, key))
        patch = {"metadata": {"annotations": {"changed": "yes"}}}
        path = f"{boxes(namespace)}/t"
        await rest.request("PATCH", path, deadline=10, body=patch, content_type="application/merge-patch+json")

        def annotated() -> bool:
            last = running.seen.of(Kind.TOOLBOX, key)[-1]
            return last is not None and last["metadata"].get("annotations", {}).get("changed") == "yes"

        await until("the change seen", annotated)
        await rest.request("DELETE", path, deadline=10)
        await until("the end seen", lambda: running.seen.of(Kind.TOOLBOX, key)[-1] is None)
    assert running.task.result() == 0


async def test_objects_that_were_there_before_are_reconciled_after_the_start(
    operator: Start, rest: KubeRest, namespace: str
) -> None:
    await create(rest, namespace, "old")
    async with operator() as running:
        await until("seen", lambda: running.seen.of(Kind.TOOLBOX, Key(namespace, "old")))


async def test_no_reconcile_runs_before_all_three_kinds_were_listed(
    operator: Start, rest: KubeRest, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(rest, namespace, "early")
    open_, attempts = asyncio.Event(), list[str]()
    request = KubeRest.request

    async def without_servers(self: KubeRest, method: str, path: str, **more: Any) -> Mapping[str, Any]:
        query: dict[str, str] = more.get("query") or {}
        whole = query.get("limit") == str(CHUNK)
        if whole and path.endswith("/mcpservers") and not open_.is_set():
            attempts.append(path)
            raise KubeError(503, "not now")
        return await request(self, method, path, **more)

    monkeypatch.setattr(KubeRest, "request", without_servers)
    monkeypatch.setattr("toolbox_operator.wiring.RELIST_RETRY", 0.1)
    async with operator() as running:
        await until("the list tried thrice", lambda: len(attempts), lambda times: times >= 3)
        # It delivers already, so a worker would have something to do.
        await until("delivered", lambda: running.context.cache.get(Kind.TOOLBOX, Key(namespace, "early")))
        assert running.seen.calls == []
        open_.set()
        await until("seen", lambda: running.seen.of(Kind.TOOLBOX, Key(namespace, "early")))


async def test_an_operator_that_is_there_before_its_kinds_waits_for_them(
    operator: Start, rest: KubeRest, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed, attempts = asyncio.Event(), list[str]()
    request = KubeRest.request

    async def before_the_crds(self: KubeRest, method: str, path: str, **more: Any) -> Mapping[str, Any]:
        if path.endswith("/agentmcpconnections") and not installed.is_set():
            attempts.append(path)
            raise KubeError(404, "404 page not found")
        return await request(self, method, path, **more)

    monkeypatch.setattr(KubeRest, "request", before_the_crds)
    monkeypatch.setattr("toolbox_operator.wiring.RELIST_RETRY", 0.5)
    await create(rest, namespace, "t")
    async with operator(watch_fresh=10.0) as running:
        await until("looked for during more than that", lambda: len(attempts), lambda times: times >= 26, seconds=60)
        assert not running.task.done()
        installed.set()
        await until("seen", lambda: running.seen.of(Kind.TOOLBOX, Key(namespace, "t")))


async def test_rows_are_written_when_there_is_a_database(
    operator: Start, postgres: str, rest: KubeRest, namespace: str
) -> None:
    async with operator(database_url=postgres) as running:
        await until("started", lambda: running.seen.context)
        store = running.context.store
        assert isinstance(store, SqlStore)
        await until("healthy", lambda: store.healthy, seconds=30)


async def test_what_vanished_unseen_is_let_go_by_the_next_relist(operator: Start, namespace: str) -> None:
    key = Key(namespace, "ghost")
    async with operator(resync=1.0) as running:
        await until("started", lambda: running.seen.context)
        cache = running.context.cache
        assert isinstance(cache, ObjectCache)
        ghost = {**toolbox(namespace, "ghost")}
        ghost["metadata"] = {**ghost["metadata"], "uid": "u", "resourceVersion": "1"}
        cache.apply(Kind.TOOLBOX, "ADDED", ghost)
        await until("let go", lambda: cache.get(Kind.TOOLBOX, key) is None)
        await until("reconciled as gone", lambda: running.seen.of(Kind.TOOLBOX, key)[-1:] == [None])


async def test_every_object_comes_back_with_each_resync(operator: Start, rest: KubeRest, namespace: str) -> None:
    await create(rest, namespace, "t")
    async with operator(resync=0.5) as running:
        runs = lambda: len(running.seen.of(Kind.TOOLBOX, Key(namespace, "t")))  # noqa: E731 # a condition to poll
        await until("reconciled thrice without any change", runs, lambda times: times >= 3)


async def test_a_labelled_secret_wakes_its_connection_and_others_are_not_seen(
    operator: Start, rest: KubeRest, namespace: str
) -> None:
    secrets = f"/api/v1/namespaces/{namespace}/secrets"
    connections = f"/apis/{API_VERSION}/namespaces/{namespace}/agentmcpconnections"
    uids: dict[str, str] = {}
    for name in ("c", "other"):
        spec = {"agent": {"name": "bot"}, "serverRef": {"name": "s"}}
        body = {"apiVersion": API_VERSION, "kind": "AgentMCPConnection", "metadata": {"name": name}, "spec": spec}
        uids[name] = (await rest.request("POST", connections, deadline=10, body=body))["metadata"]["uid"]

    def secret(name: str, owner: str, **metadata: Any) -> dict[str, Any]:
        reference = {"apiVersion": API_VERSION, "kind": "AgentMCPConnection", "name": owner, "uid": uids[owner]}
        return {"metadata": {"name": name, "ownerReferences": [reference], **metadata}}

    async with operator() as running:

        def seen(name: str) -> int:
            return len(running.seen.of(Kind.CONNECTION, Key(namespace, name)))

        await until("both reconciled", lambda: seen("c") and seen("other"))
        before = seen("other")
        await rest.request("POST", secrets, deadline=10, body=secret("plain", "other"))
        await rest.request("POST", secrets, deadline=10, body=secret("s", "c", labels={LABEL_CONNECTION: uids["c"]}))
        await until("woken", lambda: seen("c") >= 2)
        await rest.request("DELETE", f"{secrets}/s", deadline=10)
        await until("woken again", lambda: seen("c") >= 3)
        assert seen("other") == before


async def test_an_operator_whose_watches_cannot_connect_ends_instead_of_being_blind(
    operator: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolbox_operator.kube.watch.LABEL_LEASE", "magictoolbox.dev/nobody-has-this")
    async with operator(watch_fresh=1.5) as running:
        assert await asyncio.wait_for(running.task, 20) == 1
    assert running.seen.calls == []


async def test_events_read_well_in_kubectl_and_repeats_are_counted(
    operator: Start, rest: KubeRest, kubernetes: Cluster, namespace: str
) -> None:
    body = await create(rest, namespace, "t")
    events = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
    async with operator() as running:
        await until("started", lambda: running.seen.context)
        for _ in range(3):
            running.context.events.record(body, "Warning", "HostUnreachable", "The host is away.", "Connect")
        recorder = running.context.events
        assert isinstance(recorder, Recorder)
        await recorder.flush(30)
    items = (await rest.request("GET", events, deadline=10))["items"]
    assert [item["series"]["count"] for item in items] == [3]
    described = await asyncio.to_thread(kubernetes.kubectl, "describe", "toolbox", "t", "-n", namespace)
    assert re.search(r"Warning\s+HostUnreachable\s+.*magictoolbox.dev/operator\s+The host is away\.", described), (
        described
    )


async def test_an_idle_operator_writes_nothing_but_its_lease(operator: Start, rest: KubeRest, namespace: str) -> None:
    body = await create(rest, namespace, "t")
    async with operator() as running:
        await until("seen", lambda: running.seen.of(Kind.TOOLBOX, Key(namespace, "t")))
        await asyncio.sleep(1.0)  # idle time is what this test is about
    after = await rest.request("GET", f"{boxes(namespace)}/t", deadline=10)
    assert after["metadata"]["resourceVersion"] == body["metadata"]["resourceVersion"]
    assert "finalizers" not in after["metadata"]


async def test_absence_and_an_unknown_namespace_are_told_apart_from_an_unknown_kind(rest: KubeRest) -> None:
    with pytest.raises(Missing):
        await rest.request("GET", "/api/v1/namespaces/no-such-namespace/secrets/x", deadline=10)
    with pytest.raises(KubeError) as caught:
        await rest.request("GET", "/apis/magictoolbox.dev/v1alpha1/namespaces/default/nosuchkinds/x", deadline=10)
    assert not isinstance(caught.value, Missing)
