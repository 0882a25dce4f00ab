"""Published servers that speak stdio, deployed by `kubectl apply`, and used by clients that agents are built with."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from localstack import agent, images, quickstart
from localstack.kubernetes import Manifest
from localstack.ports import accepts
from localstack.processes import Command, Supervisor
from localstack.quickstart import Target
from localstack.stack import LocalStack
from support import manifests
from support.gateway.others import run_client
from support.hosts import uplink
from support.poll import until
from support.published.servers import PAGE, SERVERS, Use
from support.published.stdio import text
from support.system.world import World

pytestmark = pytest.mark.e2e

NAMESPACE = "mcp-system"
TOOLBOX = Target("Toolbox", NAMESPACE, "tbx-1")
FENCED = "fetch-fenced"
"""`fetch` again, with what a server may reach by default: nothing private."""
CLIENTS = {
    "mcp SDK 1.x": "mcp1/calls.py",
    "langchain-mcp-adapters": "mcp1/langchain_calls.py",
    "TypeScript SDK": "node/calls.mjs",
    "FastMCP": "fastmcp/calls.py",
}
SDK = "mcp SDK 2.x"


@pytest.fixture(scope="module")
def page(supervisor: Supervisor, state_folder: Path) -> Generator[str]:
    """URL of a page at a private address beyond the host."""
    folder = state_folder / "page"
    folder.mkdir()
    (folder / "index.html").write_text(PAGE)
    link = uplink.make(supervisor)
    argv = [sys.executable, "-m", "http.server", "80", "--directory", str(folder)]
    child = supervisor.start(Command("page", argv, prefix=link.prefix))
    try:
        child.wait_until(lambda: accepts(80, link.address), 30, "serving")
        yield f"http://{link.address}/"
    finally:
        child.kill()
        link.close()


def _documents(stack: LocalStack) -> Generator[Manifest]:
    fenced = {**SERVERS["fetch"].spec, "security": {"egress": "Internet"}}
    specs = {name: (server.image, server.spec) for name, server in SERVERS.items()} | {FENCED: ("fetch", fenced)}
    for name, (image, spec) in specs.items():
        own = {"toolboxRef": {"name": TOOLBOX.name}, "image": images.built(stack.parts.engine, image)}
        yield manifests.manifest("MCPServer", NAMESPACE, name, {**own, "transport": "stdio", **spec})
        yield manifests.connection(NAMESPACE, f"bot-{name}", name)


@pytest.fixture(scope="module")
def world(stack: LocalStack) -> Generator[World]:
    """Every server of the table, Ready, with a connection that is too; nothing of them is left behind."""
    cluster = stack.parts.cluster
    cluster.kubectl("create", "namespace", NAMESPACE)
    world = World(stack)
    try:
        cluster.apply([*stack.host.manifests, *_documents(stack)])
        quickstart.wait_ready(cluster, TOOLBOX, 90)
        for kind in ("mcps", "amc"):
            flags = ("--all", "-n", NAMESPACE, "--for=condition=Ready", "--timeout=120s")
            cluster.kubectl("wait", kind, *flags, seconds=130)
        yield world
    finally:
        cluster.kubectl("delete", "amc,mcps,tbx", "--all", "-n", NAMESPACE, "--timeout=90s", seconds=100)
        cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=90s", seconds=100)
    assert world.containers() == [] and world.networks() == []


def _secret(world: World, server: str) -> dict[str, str]:
    found = world.secret(NAMESPACE, f"bot-{server}-mcp")
    assert found is not None
    return found


def _all_uses(client: str, page: str) -> dict[str, tuple[Use, ...]]:
    return {name: server.uses(client.lower().replace(" ", "-"), page) for name, server in SERVERS.items()}


def _check(server: str, uses: tuple[Use, ...], found: Mapping[str, Any]) -> None:
    assert {use.tool for use in uses} <= set(found["tools"]), server
    for use, answer in zip(uses, found["answers"], strict=True):
        assert (answer["error"], use.says in answer["text"]) == (use.error, True), (server, use, answer)


def test_every_server_is_ready_without_a_container_that_stands(world: World) -> None:
    listed = world.stack.parts.cluster.get("mcps", "-n", NAMESPACE)["items"]
    assert {item["metadata"]["name"] for item in listed} == {*SERVERS, FENCED}
    for item in listed:
        status = item["status"]
        assert status["phase"] == "Active" and status["serverInfo"]["name"], item
        assert status["toolsTotal"] == len(status["tools"]) > 0
        assert status["sessions"] == {"open": 0, "max": 10} and "container" not in status
    until("no process of a probe", world.containers, lambda found: not found)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_of_others_uses_every_server(world: World, page: str, tmp_path: Path, client: str) -> None:
    uses = _all_uses(client, page)
    servers: dict[str, Any] = {}
    for name, wanted in uses.items():
        secret = _secret(world, name)
        calls = [(use.tool, use.arguments) for use in wanted]
        servers[name] = {"url": secret["url"], "token": secret["token"], "calls": calls}
    found = run_client(CLIENTS[client], {"servers": servers}, world.stack.host.ca_file, tmp_path)
    for name, wanted in uses.items():
        _check(name, wanted, found[name])


@asynccontextmanager
async def _session(secret: Mapping[str, str]) -> AsyncGenerator[Client]:
    """The SDK of today, as it comes."""
    async with agent.http_client(secret) as http:
        async with Client(streamable_http_client(secret["url"], http_client=http)) as client:
            yield client


async def _used(secret: Mapping[str, str], uses: tuple[Use, ...]) -> dict[str, Any]:
    async with _session(secret) as client:
        found: dict[str, Any] = {"tools": [tool.name for tool in (await client.list_tools()).tools], "answers": []}
        for use in uses:
            answer = await client.call_tool(use.tool, dict(use.arguments))
            found["answers"].append({"text": text(answer), "error": answer.is_error})
        return found


async def test_the_sdk_of_today_uses_every_server_and_a_private_page_is_only_for_who_may_reach_it(
    world: World, page: str
) -> None:
    uses = {**_all_uses(SDK, page), FENCED: (Use("fetch", {"url": page}, "connection issue", error=True),)}
    found = await asyncio.gather(*(_used(_secret(world, name), wanted) for name, wanted in uses.items()))
    for (name, wanted), answers in zip(uses.items(), found, strict=True):
        _check(name, wanted, answers)


async def test_what_a_session_kept_in_a_volume_is_there_for_the_next_one(world: World) -> None:
    async def say(server: str, *uses: Use) -> None:
        _check(server, uses, await _used(_secret(world, server), uses))

    ada = {"name": "Ada", "entityType": "person", "observations": ["writes programs"]}
    repository = {"repo_path": "/data/repo"}
    kept: dict[str, tuple[Use, ...]] = {
        "memory": (Use("create_entities", {"entities": [ada]}, "Ada"),),
        "filesystem": (Use("write_file", {"path": "/data/kept.txt", "content": "kept"}, "Successfully wrote"),),
        "git": (
            Use("git_status", repository, "notes.txt"),
            Use("git_add", {**repository, "files": ["notes.txt"]}, "staged successfully"),
            Use("git_commit", {**repository, "message": "Keep the notes"}, "committed successfully"),
        ),
    }
    await asyncio.gather(*(say(server, *uses) for server, uses in kept.items()))
    await asyncio.gather(
        say("memory", Use("open_nodes", {"names": ["Ada"]}, "writes programs")),
        say("filesystem", Use("list_directory", {"path": "/data"}, "[FILE] kept.txt")),
        say("git", Use("git_log", repository, "Keep the notes"), Use("git_status", repository, "nothing to commit")),
    )
