"""The client: fenced, guarded, bounded in time, and precise about what went wrong."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web

from support.reconcilers.fake_kube import FakeKube, failure
from support.reconcilers.fakes import Leading, body_of
from toolbox_operator.api.meta import Body, Key, Kind
from toolbox_operator.kube.api import (
    SECRETS,
    TOOLBOXES,
    AlreadyExists,
    Conflict,
    KubeError,
    Missing,
    Refused,
    Resource,
)
from toolbox_operator.kube.client import KubeClient
from toolbox_operator.kube.rest import KubeRest
from toolbox_operator.runtime import Fenced

KEY = Key("ns", "a")
PATH = "/apis/magictoolbox.dev/v1alpha1/namespaces/ns/toolboxes/a"


@pytest.fixture
def leading() -> Leading:
    return Leading()


@pytest.fixture
def kube(rest: KubeRest, leading: Leading) -> KubeClient:
    return KubeClient(rest, leading)


async def created(kube: KubeClient, name: str = "a") -> Body:
    body = body_of(Kind.TOOLBOX, name, 0, spec={})
    del body["metadata"]["resourceVersion"]
    return await kube.create(TOOLBOXES, body)


async def test_what_was_created_can_be_read_and_absence_is_none(kube: KubeClient) -> None:
    assert await kube.get(TOOLBOXES, KEY) is None
    body = await created(kube)
    assert await kube.get(TOOLBOXES, KEY) == body


async def test_an_answer_older_than_one_before_is_an_error(kube: KubeClient, fake: FakeKube) -> None:
    older = await created(kube)
    newer = await kube.merge_patch(TOOLBOXES, KEY, older["metadata"]["resourceVersion"], {"metadata": {"labels": {}}})
    fake.objects[PATH] = dict(older)
    with pytest.raises(KubeError, match="older"):
        await kube.get(TOOLBOXES, KEY)
    fake.objects[PATH] = dict(newer)
    assert await kube.get(TOOLBOXES, KEY) == newer


async def test_an_object_made_again_after_its_absence_was_seen_counts_anew(kube: KubeClient, fake: FakeKube) -> None:
    body = await created(kube)
    del fake.objects[PATH]
    assert await kube.get(TOOLBOXES, KEY) is None
    fake.objects[PATH] = {**body, "metadata": {**body["metadata"], "resourceVersion": "1"}}
    assert await kube.get(TOOLBOXES, KEY) is not None


async def test_an_unknown_kind_is_an_error_and_not_an_absence(kube: KubeClient, fake: FakeKube) -> None:
    fake.fault = lambda method, path: web.Response(status=404, text="404 page not found\n")
    with pytest.raises(KubeError) as caught:
        await kube.get(TOOLBOXES, KEY)
    assert not isinstance(caught.value, Missing)


async def test_no_write_leaves_the_process_once_leadership_is_gone(
    kube: KubeClient, fake: FakeKube, leading: Leading
) -> None:
    body = await created(kube)
    before, leading.held = len(fake.writes()), False
    attempts: list[Any] = [
        kube.create(TOOLBOXES, body),
        kube.merge_patch(TOOLBOXES, KEY, "1", {}),
        kube.replace_status(TOOLBOXES, body, {}),
        kube.delete(TOOLBOXES, KEY, uid="u"),
    ]
    for attempt in attempts:
        with pytest.raises(Fenced):
            await attempt
    assert len(fake.writes()) == before


async def test_writes_on_a_body_that_moved_on_conflict(kube: KubeClient) -> None:
    stale = await created(kube)
    await kube.merge_patch(TOOLBOXES, KEY, stale["metadata"]["resourceVersion"], {"metadata": {"labels": {"a": "b"}}})
    with pytest.raises(Conflict):
        await kube.replace_status(TOOLBOXES, stale, {"phase": "Ready"})
    with pytest.raises(Conflict):
        await kube.merge_patch(TOOLBOXES, KEY, stale["metadata"]["resourceVersion"], {})


async def test_status_is_replaced_as_a_whole(kube: KubeClient, fake: FakeKube) -> None:
    body = await kube.replace_status(TOOLBOXES, await created(kube), {"phase": "Ready", "hostId": "x"})
    await kube.replace_status(TOOLBOXES, body, {"phase": "Lost"})
    assert fake.objects[PATH]["status"] == {"phase": "Lost"}


async def test_creating_twice_is_told_apart_from_other_conflicts(kube: KubeClient) -> None:
    await created(kube)
    with pytest.raises(AlreadyExists):
        await created(kube)


async def test_deleting_what_is_absent_is_success_and_another_incarnation_is_spared(
    kube: KubeClient, fake: FakeKube
) -> None:
    await kube.delete(TOOLBOXES, KEY, uid="u")
    body = await created(kube)
    with pytest.raises(Conflict):
        await kube.delete(TOOLBOXES, KEY, uid="another")
    await kube.delete(TOOLBOXES, KEY, uid=body["metadata"]["uid"])
    assert PATH not in fake.objects


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [(403, "Forbidden", Refused), (422, "Invalid", Refused), (409, "Conflict", Conflict), (500, "Internal", KubeError)],
)
async def test_refusals_come_as_types_with_the_servers_words(
    kube: KubeClient, fake: FakeKube, status: int, reason: str, expected: type[KubeError]
) -> None:
    fake.fault = lambda method, path: failure(status, reason, "because of this")
    with pytest.raises(expected, match="because of this") as caught:
        await created(kube)
    assert caught.value.status == status


async def test_a_server_that_is_busy_says_for_how_long(kube: KubeClient, fake: FakeKube) -> None:
    fake.fault = lambda method, path: failure(429, "TooManyRequests", **{"Retry-After": "7"})
    with pytest.raises(KubeError) as caught:
        await kube.get(TOOLBOXES, KEY)
    assert caught.value.retry_after == 7.0


async def test_a_write_without_an_answer_ends_within_its_deadline(
    rest: KubeRest, leading: Leading, fake: FakeKube
) -> None:
    fake.fault = lambda method, path: 30.0
    with pytest.raises(KubeError, match="no answer"):
        await created(KubeClient(rest, leading, write_deadline=0.3))


async def test_a_server_that_is_away_is_a_typed_error(fake: FakeKube, kube: KubeClient, rest: KubeRest) -> None:
    rest._host = "http://127.0.0.1:9"  # pyright: ignore[reportPrivateUsage] # the discard port: nobody listens
    with pytest.raises(KubeError) as caught:
        await kube.get(TOOLBOXES, KEY)
    assert caught.value.status == 0


@pytest.mark.parametrize("text", ["<html>", "[]", "null", '{"items": []}', '{"metadata": {"resourceVersion": "1"}}'])
async def test_an_answer_that_is_not_a_complete_list_is_an_error_and_never_an_empty_list(
    kube: KubeClient, fake: FakeKube, text: str
) -> None:
    fake.fault = lambda method, path: web.Response(text=text, content_type="application/json")
    with pytest.raises(KubeError):
        await kube.list(TOOLBOXES)


async def test_a_list_is_read_to_its_last_chunk(kube: KubeClient) -> None:
    for name in "abcde":
        await created(kube, name)
    items, version = await kube.list(TOOLBOXES)
    assert [item["metadata"]["name"] for item in items] == list("abcde")
    assert version == "105"


async def test_a_list_whose_snapshot_expires_half_way_starts_over(kube: KubeClient, fake: FakeKube) -> None:
    for name in "abcde":
        await created(kube, name)
    fake.requests.clear()

    def expire_once(method: str, path: str) -> web.Response | None:
        return failure(410, "Expired") if len(fake.requests) == 2 else None

    fake.fault = expire_once
    items, _ = await kube.list(TOOLBOXES)
    assert len(items) == 5
    assert len(fake.requests) == 5


async def test_items_of_core_kinds_get_the_kind_that_the_server_leaves_out(kube: KubeClient, fake: FakeKube) -> None:
    fake.objects["/api/v1/namespaces/ns/secrets/s"] = {
        "metadata": {"name": "s", "namespace": "ns", "managedFields": []}
    }
    items, _ = await kube.list(SECRETS)
    assert (items[0]["apiVersion"], items[0]["kind"]) == ("v1", "Secret")
    assert "managedFields" not in items[0]["metadata"]


async def test_bodies_that_were_written_are_passed_on(rest: KubeRest, leading: Leading) -> None:
    seen: list[tuple[Resource, str]] = []
    kube = KubeClient(rest, leading, written=lambda resource, body: seen.append((resource, body["metadata"]["name"])))
    await created(kube)
    assert seen == [(TOOLBOXES, "a")]
