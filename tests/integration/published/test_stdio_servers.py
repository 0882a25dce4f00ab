"""Published servers, from the images of the examples, speak MCP on their pipes under what a toolbox does to them."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import urllib.request
from collections.abc import Callable
from typing import Any, cast

import pytest
from mcp.client.client import Client
from mcp.client.sse import sse_client

from localstack import recipes
from localstack.docker import Engine
from support.engine.objects import desired_instance
from support.poll import until
from support.published.stdio import FLAGS, argv, conversation, text, tool_names
from toolbox_dtma.engine.names import HostNames
from toolbox_dtma.engine.spec import container_config

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="the local stack needs root"),
]

Published = Callable[[str], str]

EVERY = (*recipes.SERVERS, "everything")
STARTED_WITH = {"filesystem": ("/data",), "everything": ("stdio",)}
"""Arguments that a server does not start on its pipes without."""


def listening(address: str) -> None:
    """Waits until a container's port answers HTTP."""

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://{address}/sse", timeout=5) as answer:
                return answer.status == 200
        except (OSError, http.client.HTTPException):  # docker's proxy takes connections before the server does
            return False

    until("listening", answers, bool)


async def test_time_converts_between_zones_without_a_network(published: Published) -> None:
    async with conversation(published("time"), flags=["--network=none"]) as client:
        assert await tool_names(client) == {"get_current_time", "convert_time"}
        zones = {"source_timezone": "Asia/Tokyo", "target_timezone": "Asia/Kolkata"}
        converted = await client.call_tool("convert_time", {**zones, "time": "12:30"})
        assert not converted.is_error
        said = cast("dict[str, Any]", json.loads(text(converted)))
        assert said["time_difference"] == "-3.5h"
        assert "T09:00:00" in said["target"]["datetime"]
        unknown = await client.call_tool("convert_time", {**zones, "time": "12:30", "target_timezone": "Asia/Atlantis"})
        assert unknown.is_error


async def test_git_commits_to_a_repository_in_a_volume(
    published: Published, docker_engine: Engine, volume: str
) -> None:
    image, mount = published("git"), f"--volume={volume}:/data"
    made = "git init --quiet /data/repo && echo first > /data/repo/notes.txt"
    docker_engine.docker("run", "--rm", *FLAGS, mount, "--entrypoint=sh", image, "-c", made)
    roles = ("AUTHOR", "COMMITTER")
    identity = [f"--env=GIT_{role}_{key}" for role in roles for key in ("NAME=bot", "EMAIL=bot@example.com")]
    repository = {"repo_path": "/data/repo"}
    async with conversation(image, "--repository", "/data/repo", flags=[mount, *identity]) as client:
        assert {"git_status", "git_add", "git_commit", "git_log"} <= await tool_names(client)
        assert "notes.txt" in text(await client.call_tool("git_status", repository))
        added = await client.call_tool("git_add", {**repository, "files": ["notes.txt"]})
        assert not added.is_error, text(added)
        committed = await client.call_tool("git_commit", {**repository, "message": "Keep the notes"})
        assert not committed.is_error, text(committed)
    async with conversation(image, "--repository", "/data/repo", flags=[mount]) as client:
        assert "Keep the notes" in text(await client.call_tool("git_log", repository))
        outside = await client.call_tool("git_status", {"repo_path": "/tmp"})
        assert outside.is_error


async def test_fetch_reads_a_page_of_a_private_network_only_if_told_to(published: Published, page_network: str) -> None:
    flags = [f"--network={page_network}"]
    async with conversation(published("fetch"), "--allow-private-ips", flags=flags) as client:
        assert await tool_names(client) == {"fetch"}
        fetched = await client.call_tool("fetch", {"url": "http://page:8000/index.html"})
        assert not fetched.is_error, text(fetched)
        assert "Lighthouse" in text(fetched) and "It blinks." in text(fetched)
        missing = await client.call_tool("fetch", {"url": "http://page:8000/nothing"})
        assert missing.is_error and "404" in text(missing)
    async with conversation(published("fetch"), flags=flags) as client:
        refused = await client.call_tool("fetch", {"url": "http://page:8000/index.html"})
        assert refused.is_error and "not a public address" in text(refused)


async def test_fetch_without_a_network_answers_an_error_and_goes_on(published: Published) -> None:
    async with conversation(published("fetch"), flags=["--network=none"]) as client:
        for _ in range(2):
            failed = await client.call_tool("fetch", {"url": "http://example.com/"})
            assert failed.is_error
            assert "example.com" in text(failed)


async def test_memory_keeps_its_graph_in_a_volume(published: Published, volume: str) -> None:
    flags = [f"--volume={volume}:/data", "--env=MEMORY_FILE_PATH=/data/memory.jsonl"]
    ada = {"name": "Ada", "entityType": "person", "observations": ["writes programs"]}
    async with conversation(published("memory"), flags=flags) as client:
        assert {"create_entities", "read_graph"} <= await tool_names(client)
        created = await client.call_tool("create_entities", {"entities": [ada]})
        assert not created.is_error, text(created)
    async with conversation(published("memory"), flags=flags) as client:
        graph = await client.call_tool("read_graph", {})
        assert graph.structured_content == {"entities": [ada], "relations": []}


async def test_filesystem_writes_into_its_volume_and_nowhere_else(published: Published, volume: str) -> None:
    flags = [f"--volume={volume}:/data"]
    async with conversation(published("filesystem"), "/data", flags=flags) as client:
        assert {"write_file", "read_text_file", "list_directory"} <= await tool_names(client)
        written = await client.call_tool("write_file", {"path": "/data/note.txt", "content": "kept"})
        assert not written.is_error, text(written)
        refused = await client.call_tool("write_file", {"path": "/tmp/note.txt", "content": "lost"})
        assert refused.is_error and "outside allowed directories" in text(refused)
    async with conversation(published("filesystem"), "/data", flags=flags) as client:
        assert text(await client.call_tool("list_directory", {"path": "/data"})) == "[FILE] note.txt"
        assert text(await client.call_tool("read_text_file", {"path": "/data/note.txt"})) == "kept"


async def test_sequential_thinking_counts_thoughts(published: Published) -> None:
    async with conversation(published("sequential-thinking"), flags=["--network=none"]) as client:
        assert await tool_names(client) == {"sequentialthinking"}
        for number in (1, 2):
            thought = {"thought": "One thing after the other", "thoughtNumber": number, "totalThoughts": 2}
            thinking = await client.call_tool("sequentialthinking", {**thought, "nextThoughtNeeded": number < 2})
            assert not thinking.is_error, text(thinking)
            said = cast("dict[str, Any]", json.loads(text(thinking)))
            assert (said["thoughtNumber"], said["thoughtHistoryLength"]) == (number, number)


async def test_everything_speaks_on_its_pipes_too(published: Published) -> None:
    async with conversation(published("everything"), "stdio", flags=["--network=none"]) as client:
        assert {"echo", "get-sum"} <= await tool_names(client)
        assert "42" in text(await client.call_tool("get-sum", {"a": 40, "b": 2}))


async def test_everything_speaks_sse_on_its_port(published: Published, docker_engine: Engine, label: str) -> None:
    flags = ["--detach", "--rm", f"--label={label}", "--publish=127.0.0.1::3001", *FLAGS]
    container = docker_engine.docker("run", *flags, published("everything"), "sse").strip()
    try:
        address = docker_engine.docker("port", container, "3001").strip()
        await asyncio.to_thread(listening, address)
        async with asyncio.timeout(60), Client(sse_client(f"http://{address}/sse"), mode="legacy") as client:
            assert "42" in text(await client.call_tool("get-sum", {"a": 40, "b": 2}))
    finally:
        docker_engine.docker("rm", "--force", container)


@pytest.mark.parametrize(("name", "arguments"), [(name, STARTED_WITH.get(name, ())) for name in EVERY])
async def test_a_client_that_prefers_the_stateless_revision_finds_the_one_that_a_server_speaks(
    name: str, arguments: tuple[str, ...], published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client gives a process 10 s for its first word, its start included, and takes silence for an older revision.
    monkeypatch.setattr("mcp.client.session.DISCOVER_TIMEOUT_SECONDS", 60.0)
    async with conversation(published(name), *arguments, flags=["--network=none"], mode="auto") as client:
        assert client.protocol_version == ("2026-07-28" if name in recipes.PYPI else "2025-11-25")
        assert await tool_names(client)


@pytest.mark.parametrize("name", ["time", "memory"])
def test_a_server_is_not_root_and_writes_only_where_a_tmpfs_or_a_volume_is(
    name: str, published: Published, docker_engine: Engine, volume: str
) -> None:
    tried = "id -u; for at in /app /data /tmp /usr; do (echo > $at/x) 2>/dev/null && echo $at; done; true"
    flags = [*FLAGS, f"--volume={volume}:/data", "--entrypoint=sh"]
    assert docker_engine.docker("run", "--rm", *flags, published(name), "-c", tried).split() == [
        "10001",
        "/data",
        "/tmp",
    ]


def test_check_holds_a_container_as_a_toolbox_does(published: Published, docker_engine: Engine) -> None:
    config = container_config(HostNames("h"), "i", "o", desired_instance(), b"key", "network", "10.0.0.2")
    wanted = cast("dict[str, Any]", config["HostConfig"])
    container = docker_engine.docker("create", *argv(published("time"))[1:]).strip()
    try:
        (found,) = json.loads(docker_engine.docker("inspect", container))
    finally:
        docker_engine.docker("rm", container)
    # As Docker shows it, with what it adds.
    shown = wanted | {"RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}}
    own_network_and_log = {"NetworkMode", "LogConfig"}
    compared = shown.keys() - own_network_and_log
    assert {key: found["HostConfig"][key] for key in compared} == {key: shown[key] for key in compared}
    assert found["Config"]["Healthcheck"] == config["Healthcheck"]
