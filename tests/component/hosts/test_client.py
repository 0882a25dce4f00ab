"""`HttpHost`: what every kind of answer means."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from support.certificates import CA_PEM
from support.reconcilers.fakes import Leading
from toolbox_dtma.wire import (
    EPOCH_HEADER,
    HTTP_STATUS,
    OWNER_HEADER,
    Grant,
    HostConfig,
    InstanceReport,
    ProblemCode,
    VolumePolicy,
)
from toolbox_operator.hosts.api import (
    HostProblem,
    HostSettings,
    HostUnauthorized,
    HostUnreachable,
    HostUntrusted,
)
from toolbox_operator.hosts.client import MAX_ANSWER, HttpHost, trust
from toolbox_operator.runtime import Fenced, Timings

pytestmark = pytest.mark.component

Handler = Callable[[httpx.Request], httpx.Response]
SETTINGS = HostSettings(endpoint="https://10.0.0.1:30000/", token="secret-token", gateway_url="https://t.example.com")
GRANT = Grant(namespace="a", name="b", generation=1, instance="i", agent="bot", credentials=())


def host(handler: Handler, leadership: Leading | None = None) -> HttpHost:
    transport = httpx.MockTransport(handler)
    return HttpHost(SETTINGS, leadership or Leading(epoch=3), Timings(), transport=transport)


def problem(code: ProblemCode, **more: Any) -> httpx.Response:
    status = HTTP_STATUS[code]
    body = {"title": "t", "status": status, "code": code.value, "detail": "because", **more}
    return httpx.Response(status, json=body, headers={"Content-Type": "application/problem+json"})


def answering(*responses: httpx.Response) -> tuple[Handler, list[httpx.Request]]:
    """Answers in this order, then the last one for ever; and the requests that came."""
    left, seen = list(responses), list[httpx.Request]()

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return left.pop(0) if len(left) > 1 else left[0]

    return handle, seen


CLAIMED = {"epoch": 3, "hostId": "h"}


async def test_every_call_names_the_owner_and_carries_the_token_and_changes_carry_the_epoch() -> None:
    handle, seen = answering(httpx.Response(200, json={"bootId": 1, "complete": True, "items": []}))
    await host(handle).list_grants()
    handle, more = answering(httpx.Response(204))
    await host(handle).configure(HostConfig(gateway_url="https://t.example.com"))
    (read,), (write,) = seen, more
    assert read.headers["Authorization"] == write.headers["Authorization"] == "Bearer secret-token"
    assert read.headers[OWNER_HEADER] == Leading().owner
    assert EPOCH_HEADER not in read.headers
    assert write.headers[EPOCH_HEADER] == "3"
    assert json.loads(write.content)["gatewayURL"] == "https://t.example.com"


async def test_a_deletion_says_whose_object_it_means() -> None:
    handle, seen = answering(httpx.Response(204))
    await host(handle).delete_instance("i-1", uid="u", namespace="ns", name="n")
    assert seen[0].url.raw_path == b"/v2/instances/i-1?uid=u&namespace=ns&name=n"


async def test_a_deletion_has_the_last_word_about_volumes() -> None:
    handle, seen = answering(httpx.Response(204))
    await host(handle).delete_instance("i-1", uid="u", namespace="ns", name="n", volume_policy=VolumePolicy.RETAIN)
    assert seen[0].url.params["volumePolicy"] == "Retain"


@pytest.mark.parametrize("code", [ProblemCode.NOT_FOUND, ProblemCode.DELETED])
async def test_deleting_what_is_absent_is_success(code: ProblemCode) -> None:
    handle, _ = answering(problem(code))
    await host(handle).delete_grant("u", namespace="ns", name="n")


UNUSABLE = {
    "a page of a proxy": httpx.Response(200, text="<html>ok</html>", headers={"Content-Type": "text/html"}),
    "nothing": httpx.Response(200, content=b"", headers={"Content-Type": "application/json"}),
    "no content at all": httpx.Response(204),
    "half an answer": httpx.Response(200, text='{"bootId": 1, "items"', headers={"Content-Type": "application/json"}),
    "another shape": httpx.Response(200, json=[]),
    "an incomplete list": httpx.Response(200, json={"bootId": 1, "cursor": "1:1", "complete": False, "items": []}),
    "a list that does not say it is complete": httpx.Response(200, json={"bootId": 1, "cursor": "1:1", "items": []}),
    "a redirect": httpx.Response(302, headers={"Location": "https://evil.example.com/"}),
    "a gateway's timeout": httpx.Response(504, text="timeout"),
    "an unknown problem": httpx.Response(409, json={"title": "t", "status": 409, "code": "New"}),
    "too much": httpx.Response(200, content=b" " * (MAX_ANSWER + 1), headers={"Content-Type": "application/json"}),
}


@pytest.mark.parametrize("name", UNUSABLE)
async def test_an_answer_that_cannot_be_used_means_unknown_never_nothing(name: str) -> None:
    handle, seen = answering(UNUSABLE[name])
    with pytest.raises(HostUnreachable):
        await host(handle).list_instances()
    assert len(seen) == 1


async def test_a_refused_connection_and_a_timeout_mean_unknown() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    def stall(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("", request=request)

    for handler in (refuse, stall):
        with pytest.raises(HostUnreachable):
            await host(handler).facts()


async def test_a_certificate_that_does_not_verify_is_its_own_error() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        cause = ssl.SSLCertVerificationError(1, "certificate verify failed")
        cause.verify_message = "self-signed certificate"
        raise httpx.ConnectError("tls", request=request) from cause

    with pytest.raises(HostUntrusted, match="self-signed"):
        await host(handle).facts()


@pytest.mark.parametrize("response", [problem(ProblemCode.UNAUTHENTICATED), httpx.Response(403, text="no")])
async def test_a_refused_token_is_its_own_error(response: httpx.Response) -> None:
    handle, _ = answering(response)
    with pytest.raises(HostUnauthorized):
        await host(handle).facts()


async def test_a_problem_keeps_its_code() -> None:
    handle, _ = answering(problem(ProblemCode.ACK_PENDING))
    with pytest.raises(HostProblem) as caught:
        await host(handle).put_grant("u", GRANT)
    assert caught.value.code is ProblemCode.ACK_PENDING
    assert caught.value.detail == "because"


async def test_an_unclaimed_host_is_claimed_and_the_call_repeated() -> None:
    handle, seen = answering(problem(ProblemCode.NOT_CLAIMED), httpx.Response(200, json=CLAIMED), httpx.Response(204))
    await host(handle).configure(HostConfig(gateway_url="https://t.example.com"))
    assert [request.url.path for request in seen] == [
        "/v2/host/config",
        f"/v2/owners/{Leading().owner}",
        "/v2/host/config",
    ]


async def test_a_higher_epoch_at_the_host_raises_ours_while_we_hold_the_lease() -> None:
    leadership = Leading(epoch=3)
    handle, seen = answering(
        problem(ProblemCode.FENCED_EPOCH, current=8),
        httpx.Response(200, json={"epoch": 9, "hostId": "h"}),
        httpx.Response(204),
    )
    await host(handle, leadership).configure(HostConfig(gateway_url="https://t.example.com"))
    assert leadership.epoch == 9
    assert [request.headers.get(EPOCH_HEADER) for request in seen] == ["3", "9", "9"]


async def test_a_leader_that_is_fenced_twice_stops() -> None:
    handle, _ = answering(problem(ProblemCode.FENCED_EPOCH, current=8))
    with pytest.raises(Fenced):
        await host(handle).configure(HostConfig(gateway_url="https://t.example.com"))


async def test_nobody_writes_to_a_host_after_losing_the_lease() -> None:
    handle, seen = answering(httpx.Response(204))
    with pytest.raises(Fenced):
        await host(handle, Leading(held=False)).put_grant("u", GRANT)
    assert seen == []


async def test_events_are_read_until_the_stream_ends() -> None:
    stream = (
        b': heartbeat\n\nevent: deleted\nid: 1:5\ndata: {"id": "i",\ndata: "uid": "u"}\n\nevent: news\ndata: {}\n\n'
    )
    handle, seen = answering(httpx.Response(200, content=stream, headers={"Content-Type": "text/event-stream"}))
    events = [event async for event in host(handle).watch("1:4")]
    assert seen[0].url.params["after"] == "1:4"
    (deleted,) = [event for event in events if event.data is not None]
    assert deleted.cursor == "1:5"
    assert not isinstance(deleted.data, InstanceReport)


async def test_a_cursor_that_is_gone_and_a_damaged_event_end_the_watch() -> None:
    handle, _ = answering(problem(ProblemCode.GONE))
    with pytest.raises(HostProblem):
        [event async for event in host(handle).watch("1:4")]
    damaged = httpx.Response(200, content=b"event: grant\ndata: {}\n\n", headers={"Content-Type": "text/event-stream"})
    handle, _ = answering(damaged)
    with pytest.raises(HostUnreachable):
        [event async for event in host(handle).watch("1:4")]


def test_trust_wants_the_certificate_of_a_ca() -> None:
    assert trust(CA_PEM).verify_mode is ssl.CERT_REQUIRED
    with pytest.raises(ValueError, match="PEM"):
        trust("no certificate")


def test_the_token_is_not_in_a_repr() -> None:
    assert "secret-token" not in repr(SETTINGS)


CALL = {
    "id": "01976b5e-0000-7000-8000-000000000001",
    "connection": "c-1",
    "namespace": "team-a",
    "agent": "bot",
    "instance": "i-1",
    "tool": "now",
    "outcome": "ok",
    "startedAt": "2026-06-01T12:00:00Z",
    "durationMs": 3,
    "bytesIn": 10,
    "bytesOut": 20,
}


async def test_calls_are_asked_for_from_the_start_or_behind_a_cursor() -> None:
    handle, seen = answering(httpx.Response(200, json={"cursor": "7:a/b", "items": [CALL], "dropped": 2}))
    pulled = await host(handle).calls(None)
    await host(handle).calls(pulled.batch.cursor)
    assert [request.url.raw_path for request in seen] == [b"/v2/calls", b"/v2/calls?after=7%3Aa%2Fb"]
    assert (len(pulled.batch.items), pulled.batch.dropped, pulled.unreadable) == (1, 2, 0)
    assert EPOCH_HEADER not in seen[0].headers


@pytest.mark.parametrize(
    "odd",
    [
        CALL | {"outcome": "of a newer host"},
        CALL | {"durationMs": -1},
        CALL | {"startedAt": "2026-06-01T12:00:00"},
        CALL | {"connection": "\ud800"},
        "not a record",
        None,
    ],
)
async def test_a_record_that_cannot_be_read_is_left_out_and_counted(odd: object) -> None:
    body = json.dumps({"cursor": "2", "items": [odd, CALL]})
    handle, _ = answering(httpx.Response(200, text=body, headers={"Content-Type": "application/json"}))
    pulled = await host(handle).calls(None)
    assert ([call.tool for call in pulled.batch.items], pulled.unreadable) == (["now"], 1)


@pytest.mark.parametrize("answer", [[], {"cursor": "1"}, {"items": []}, {"cursor": "1", "items": {}}, 7])
async def test_an_answer_that_is_no_batch_acknowledges_nothing(answer: object) -> None:
    handle, _ = answering(httpx.Response(200, json=answer))
    with pytest.raises(HostUnreachable, match="CallBatch"):
        await host(handle).calls(None)


async def test_a_host_without_call_records_says_so() -> None:
    handle, _ = answering(problem(ProblemCode.NOT_FOUND))
    with pytest.raises(HostProblem) as caught:
        await host(handle).calls(None)
    assert caught.value.code is ProblemCode.NOT_FOUND
