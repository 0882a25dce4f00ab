"""The main job, from `kubectl apply` to an agent's tool call and back to an empty host, on real parts."""

from __future__ import annotations

import ssl
from collections.abc import Generator
from datetime import UTC, datetime

import pytest
import yaml
from mcp.shared.exceptions import MCPError
from mcp_types import TextContent

from localstack import quickstart
from localstack.quickstart import Target
from localstack.stack import LocalStack
from support.gateway.sse_client import sdk_sse_client
from support.poll import until
from support.system import changing_server
from support.system.world import World

pytestmark = pytest.mark.e2e

TOOLBOX = Target("Toolbox", "mcp-system", "tbx-1")
EVERYTHING = Target("MCPServer", "mcp-system", "everything")
HELLO = Target("MCPServer", "mcp-system", "hello")
CONNECTION = Target("AgentMCPConnection", "team-a", "research-bot-everything")
SECRET = ("team-a", "research-bot-everything-mcp")
NAMESPACES = ("mcp-system", "team-a")
ECHO = {"message": "round trip"}


@pytest.fixture(scope="module")
def world(stack: LocalStack) -> Generator[World]:
    """The quickstart applied and Ready, for all tests here; the last of them deletes it."""
    cluster = stack.parts.cluster
    documents = quickstart.load(stack.host.manifests, stack.image)
    cluster.apply([document for document in documents if document["kind"] == "Namespace"])
    cluster.apply([document for document in documents if document["kind"] != "Namespace"])
    try:
        for target in (TOOLBOX, EVERYTHING, HELLO, CONNECTION):
            quickstart.wait_ready(cluster, target, 90)
        yield World(stack)
    finally:
        cluster.kubectl("delete", "namespace", *NAMESPACES, "--ignore-not-found", "--timeout=90s", seconds=120)


def connection_secret(world: World) -> dict[str, str]:
    """The Secret an agent would be given."""
    secret = world.secret(*SECRET)
    assert secret is not None
    return secret


def test_kubectl_get_shows_what_a_person_wants_to_know(world: World) -> None:
    kubectl = world.stack.parts.cluster.kubectl
    servers = kubectl("get", "mcps", "-A").splitlines()
    assert servers[0].split()[:2] == ["NAMESPACE", "NAME"]
    for column in ("PHASE", "READY", "TOOLBOX", "IMAGE", "TOOLS", "CONNECTIONS", "AGE"):
        assert column in servers[0]
    row = next(line for line in servers if " everything " in line).split()
    assert "Active" in row and "True" in row and "tbx-1" in " ".join(row)
    assert "Connected" in kubectl("get", "amc", "-A")
    assert "Ready" in kubectl("get", "tbx", "-A")
    assert "everything" in kubectl("get", "mcp", "-A"), "the category"


def test_describe_tells_the_story_in_events(world: World) -> None:
    def described() -> str:
        return world.stack.parts.cluster.kubectl("describe", EVERYTHING.resource, "-n", EVERYTHING.namespace)

    until("an event about readiness", described, lambda text: "Events:" in text and "Ready" in text.split("Events:")[1])


def test_an_idle_system_writes_nothing_but_the_lease(world: World) -> None:
    get = world.stack.parts.cluster.get

    def renewed() -> str:
        lease = get("lease", "magic-toolbox-operator", "-n", "magic-toolbox-system")
        return str(lease["spec"]["renewTime"])

    def versions() -> dict[str, str]:
        items = get("tbx,mcps,amc,secrets", "-A")["items"]
        return {item["metadata"]["uid"]: item["metadata"]["resourceVersion"] for item in items}

    def after_renewals(count: int) -> dict[str, str]:
        for _ in range(count):
            last = renewed()
            until("renewed", renewed, lambda now, last=last: now != last)
        return versions()

    settled = after_renewals(2)
    assert after_renewals(4) == settled


def test_an_agents_calls_become_rows_and_show_in_the_status_of_its_connection(world: World) -> None:
    secret, before = connection_secret(world), datetime.now(UTC).replace(microsecond=0)
    assert "calls" not in world.status(CONNECTION)
    assert "round trip" in world.call(secret, "echo", ECHO).text
    assert world.refusal(secret, "get-env", {}) is not None, "the server's deny list"
    asked = """
        SELECT k.tool, k.outcome, a.name, i.name, k.bytes_in > 0, k.bytes_out > 0 FROM agent_mcp_calls k
        JOIN agents a ON a.id = k.agent_id JOIN account_tool_instances i ON i.id = k.instance_id
        JOIN agent_mcp_connections c ON c.id = k.connection_id
        WHERE c.name = 'research-bot-everything' ORDER BY k.created_at"""
    expected = [
        ("echo", "ok", "research-bot", "everything", True, True),
        ("get-env", "denied", "research-bot", "everything", True, True),
    ]
    assert until("rows", lambda: world.rows(asked), lambda rows: len(rows) == 2, seconds=60) == expected
    # At once if both came in one batch; what came after the first waits for its minute.
    status = until("shown", lambda: world.status(CONNECTION), lambda now: now.get("calls") == 2, seconds=90)
    assert before <= datetime.fromisoformat(status["lastUsedTime"]) <= datetime.now(UTC)
    shown = world.stack.parts.cluster.kubectl("get", "amc", "-A").splitlines()
    assert "LAST USED" in shown[0]
    counted = "SELECT calls FROM agent_mcp_usage u JOIN agent_mcp_connections c ON c.id = u.connection_id"
    assert world.rows(f"{counted} WHERE c.name = 'research-bot-everything'") == [(2,)]


async def test_an_agent_that_speaks_http_sse_reaches_the_same_server_with_the_same_secret(world: World) -> None:
    secret = connection_secret(world)
    context = ssl.create_default_context(cadata=secret["ca.crt"])
    async with sdk_sse_client(secret["url"].removesuffix("/mcp") + "/sse", secret["token"], context) as client:
        (said,) = (await client.call_tool("echo", ECHO)).content
        assert isinstance(said, TextContent) and "round trip" in said.text
        with pytest.raises(MCPError):
            await client.call_tool("get-env", {})


def test_a_container_removed_by_hand_comes_back(world: World) -> None:
    lost = world.status(HELLO)["container"]["id"]
    world.stack.parts.engine.docker("rm", "--force", lost)

    def replaced() -> str | None:
        status = world.status(HELLO)
        return str(status["container"]["id"]) if status["phase"] == "Active" else None

    found = until("replaced", replaced, lambda id_: id_ not in (None, lost), seconds=60)
    assert found in world.containers(running_only=True)


def test_a_connection_from_a_namespace_that_is_not_shared_with_is_denied(world: World) -> None:
    world.patch(HELLO, {"spec": {"sharing": {"namespaces": {"from": "Same"}}}})
    denied = Target("AgentMCPConnection", "team-a", "outsider")
    world.stack.parts.cluster.apply(
        [
            {
                "apiVersion": "magictoolbox.dev/v1alpha1",
                "kind": "AgentMCPConnection",
                "metadata": {"name": denied.name, "namespace": denied.namespace},
                "spec": {"agent": {"name": "bot"}, "serverRef": {"name": "hello", "namespace": "mcp-system"}},
            }
        ]
    )
    condition = world.await_condition(denied, "Accepted", "False", "NotPermitted")
    assert "sharing" in condition["message"]
    assert world.status(denied)["phase"] == "Denied"
    world.patch(HELLO, {"spec": {"sharing": {"namespaces": {"from": "All"}}}})
    world.await_status(denied, phase="Connected")
    world.stack.parts.cluster.kubectl("delete", denied.resource, "-n", denied.namespace, "--timeout=30s")


def test_a_tool_that_changes_is_hidden_until_its_new_hash_is_accepted(world: World) -> None:
    server = Target("MCPServer", "mcp-system", "changing")
    connection = Target("AgentMCPConnection", "mcp-system", "bot-changing")
    kubectl = world.stack.parts.cluster.kubectl
    server_spec = changing_server.spec(world.status(HELLO)["resolved"]["image"])
    connection_spec = {"agent": {"name": "bot"}, "serverRef": {"name": server.name}}
    world.stack.parts.cluster.apply(
        [
            {
                "apiVersion": "magictoolbox.dev/v1alpha1",
                "kind": target.kind,
                "metadata": {"name": target.name, "namespace": target.namespace},
                "spec": spec,
            }
            for target, spec in ((server, server_spec), (connection, connection_spec))
        ]
    )
    world.await_condition(connection, "Ready", "True")

    def accept() -> str:
        hash_ = str(world.status(server)["toolsHash"])
        world.patch(server, {"spec": {"expose": {"tools": {"approvedHash": hash_}}}})
        # Its status, true before, stays so; its grant says from when on the host holds it to the hash.
        until(
            "the hash in the grant",
            lambda: world.grant(connection).get("serverExpose"),
            lambda expose: expose is not None and expose.get("approvedHash") == hash_,
        )
        world.await_condition(server, "Ready", "True")
        world.await_condition(connection, "Ready", "True")
        return hash_

    approved = accept()
    secret = world.secret(connection.namespace, f"{connection.name}-mcp")
    assert secret is not None
    assert world.call(secret, "turn", {}).tools == ("get_time", "turn")
    # From the same moment on, without waiting for a probe.
    assert world.call(secret, "turn", {}).tools == ("turn",)
    hidden = world.await_condition(server, "ToolsChanged", "True", "ToolsNotApproved")
    assert "get_time" in hidden["message"] and world.status(server)["toolsHash"] in hidden["message"]
    world.await_status(connection, tools=1)
    assert world.refusal(secret, "get_time", {}) is not None
    described = until(
        "an event about tools",
        lambda: kubectl("describe", server.resource, "-n", server.namespace),
        lambda text: "ToolsNotApproved" in text.partition("Events:")[2],
    )
    assert "changed get_time" in described.partition("Events:")[2]
    status = world.status(server)
    row = f"SELECT tools -> 0 ->> 'hash' FROM account_tool_instances WHERE id = '{status['instanceId']}'"  # noqa: S608 - an id of our own
    until("the hash in the record", lambda: world.rows(row), lambda rows: rows == [(status["tools"][0]["hash"],)])

    assert accept() != approved

    def conditions() -> set[str]:
        return {condition["type"] for condition in world.status(server)["conditions"]}

    until("without the condition", conditions, lambda types: "ToolsChanged" not in types)
    # The grant may come a moment after the instance.
    until("shown again", lambda: world.refusal(secret, "get_time", {}), lambda refusal: refusal is None)
    answer = world.call(secret, "get_time", {})
    assert (answer.tools, answer.text) == (("get_time", "turn"), "get_time was called")
    for target in (connection, server):
        kubectl("delete", target.resource, "-n", target.namespace, "--timeout=60s")


def test_the_operator_killed_and_started_again_changes_nothing(world: World) -> None:
    before = world.status(EVERYTHING)["container"]["id"]
    secret = connection_secret(world)
    operator = world.stack.operator
    assert operator.child is not None
    operator.child.kill()
    try:
        assert "round trip" in world.call(secret, "echo", ECHO).text, "agents work without the operator"
    finally:
        operator.start()
    world.await_condition(EVERYTHING, "Ready", "True")
    assert world.status(EVERYTHING)["container"]["id"] == before
    assert connection_secret(world) == secret


def test_a_server_and_its_connection_live_from_apply_to_delete_and_leave_nothing(world: World) -> None:
    secret = connection_secret(world)
    assert set(secret) == {"url", "token", "transport", "ca.crt", "mcp.json"}
    answer = world.call(secret, "echo", ECHO)
    assert "round trip" in answer.text
    assert "echo" in answer.tools
    assert "get-env" not in answer.tools, "the server's deny list"
    assert world.status(CONNECTION)["tools"] == len(answer.tools)

    first = world.status(EVERYTHING)
    assert first["phase"] == "Active"
    assert first["connections"] == 1
    assert first["serverInfo"]["name"]
    assert first["container"]["id"] in world.containers(running_only=True)

    # Stop: the container ends, the connection stays and waits.
    world.patch(EVERYTHING, {"spec": {"state": "Stopped"}})
    world.await_status(EVERYTHING, phase="Stopped")
    assert first["container"]["id"] not in world.containers(running_only=True)
    world.await_condition(CONNECTION, "Ready", "Unknown", "ServerNotReady")
    assert world.refusal(secret, "echo", ECHO) is not None

    # Start: the same token works again, without anybody's help.
    world.patch(EVERYTHING, {"spec": {"state": "Running"}})
    world.await_condition(EVERYTHING, "Ready", "True")
    world.await_condition(CONNECTION, "Ready", "True")
    assert "round trip" in world.call(secret, "echo", ECHO).text

    # Another image: the container is replaced, grants survive.
    image = world.status(EVERYTHING)["resolved"]["image"]
    edited = f"{image}-edited"
    docker = world.stack.parts.engine.docker
    docker("tag", image, edited)
    try:
        docker("push", "--quiet", edited)
    finally:
        docker("rmi", "--no-prune", edited)
    before = world.status(EVERYTHING)["container"]["id"]
    world.patch(EVERYTHING, {"spec": {"image": edited}})
    world.await_condition(EVERYTHING, "Ready", "True")
    after = world.status(EVERYTHING)["container"]
    assert after["id"] != before
    assert after["image"] == edited
    assert before not in world.containers()
    world.await_condition(CONNECTION, "Ready", "True")
    assert "round trip" in world.call(secret, "echo", ECHO).text

    # Rotation: a new token in the Secret; the old one is still good for ten minutes.
    world.patch(CONNECTION, {"metadata": {"annotations": {"magictoolbox.dev/rotate": "first"}}})
    until("rotated", lambda: connection_secret(world)["token"], lambda token: token != secret["token"])
    rotated = connection_secret(world)
    # A worker that does not take up the changed grant in time is replaced, and what it was doing is lost with it.
    until("let in", lambda: world.refusal(rotated, "echo", ECHO), lambda refusal: refusal is None)
    assert "round trip" in world.call(rotated, "echo", ECHO).text
    assert "round trip" in world.call(secret, "echo", ECHO).text

    # Deactivation refuses both, reactivation brings the new one back.
    world.patch(CONNECTION, {"spec": {"active": False}})
    world.await_status(CONNECTION, phase="Disconnected")
    assert world.refusal(rotated, "echo", ECHO) is not None
    assert world.refusal(secret, "echo", ECHO) is not None
    world.patch(CONNECTION, {"spec": {"active": True}})
    world.await_status(CONNECTION, phase="Connected")
    assert "round trip" in world.call(connection_secret(world), "echo", ECHO).text

    # Everything deleted in one go, the Secrets with the host's token included.
    instance = world.status(EVERYTHING)["instanceId"]
    connection = world.status(CONNECTION)["connectionId"]
    current = connection_secret(world)
    documents = [d for d in quickstart.load(world.stack.host.manifests, world.stack.image) if d["kind"] != "Namespace"]
    text = yaml.safe_dump_all(documents)
    world.stack.parts.cluster.kubectl("delete", "-f", "-", "--timeout=60s", stdin=text, seconds=90)
    for target in (CONNECTION, EVERYTHING, HELLO, TOOLBOX):
        assert world.find(target) is None
    assert world.containers() == []
    assert world.networks() == []
    assert world.grants_on_disk() == []
    # Left to the garbage collector, which learns of new kinds every 30 s, and retries owners of such with long pauses.
    until("without its Secret", lambda: world.secret(*SECRET) is None, seconds=120)
    assert world.refusal(current, "echo", ECHO) is not None
    closed = f"""
        SELECT i.delete_reason, c.delete_reason FROM account_tool_instances i
        JOIN agent_mcp_connections c ON c.mcp_server_instance_id = i.id
        WHERE i.id = '{instance}' AND c.id = '{connection}'
          AND i.deleted_at IS NOT NULL AND c.deleted_at IS NOT NULL"""  # noqa: S608 - ids of our own objects
    assert until("closed rows", lambda: world.rows(closed)) == [("deleted", "deleted")]
