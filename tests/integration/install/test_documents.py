"""The commands of docs/backup.md and docs/uninstall.md, run as they stand there."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Generator
from pathlib import Path

import psycopg
import pytest

from localstack import postgres as postgres_module
from localstack.kubernetes import REPOSITORY
from localstack.processes import Supervisor
from support.install.containers import CONNECTION, NAMESPACE, SERVER, TOOLBOX, Ground, System, started
from support.install.installation import install
from support.poll import until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.install,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="a toolbox host needs root"),
]


@pytest.fixture(scope="module")
def system(ground: Ground, supervisor: Supervisor, state_folder: Path) -> Generator[System]:
    """An installation of its own, with a server and a connection: the last test removes all of it."""
    folder = state_folder / "documents"
    with started(ground, install(supervisor, folder), folder, replicas=1) as system:
        system.deploy()
        yield system


def blocks(page: str) -> list[str]:
    """The shell blocks of a page."""
    return re.findall(r"```sh\n(.*?)```", (REPOSITORY / "docs" / page).read_text(), re.DOTALL)


def block(page: str, text: str) -> str:
    """The one shell block of a page in which a text stands."""
    (found,) = [each for each in blocks(page) if text in each]
    return found


def run(script: str, system: System, folder: Path, **more: str) -> str:
    """Runs a block with kubectl for this cluster; its output."""
    cluster = system.installation.cluster
    tools = f"{postgres_module.binaries()}:{cluster.kubectl_path.parent}:{os.environ['PATH']}"
    environment = {"PATH": tools, "HOME": str(folder), "KUBECONFIG": str(cluster.admin_kubeconfig), **more}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows(system: System) -> list[tuple[object, ...]]:
    """Every row that stands for an object: what it is called, and whether it is open."""
    query = """
        SELECT id::text, name, deleted_at IS NULL FROM magic_toolbox.account_tool_instances
        UNION ALL SELECT id::text, name, deleted_at IS NULL FROM magic_toolbox.agent_mcp_connections ORDER BY 1"""
    with psycopg.connect(system.dsn, connect_timeout=10) as connection:
        return connection.execute(query).fetchall()


def test_a_dump_of_the_record_can_be_restored_while_the_operator_runs(system: System, tmp_path: Path) -> None:
    before = until("both rows open", lambda: rows(system), lambda found: len(found) == 2 and all(r[2] for r in found))
    run(block("backup.md", "pg_dump"), system, tmp_path, DSN=system.dsn)
    with psycopg.connect(system.dsn, connect_timeout=10, autocommit=True) as connection:
        connection.execute("UPDATE magic_toolbox.account_tool_instances SET name = 'spoilt'")
    run(block("backup.md", "pg_restore"), system, tmp_path, DSN=system.dsn)
    assert rows(system) == before
    # The operator goes on writing into what was restored.
    kubectl = system.installation.cluster.kubectl
    kubectl("patch", CONNECTION.resource, "-n", NAMESPACE, "--type=merge", "-p", '{"spec":{"active":false}}')

    def status() -> str:
        with psycopg.connect(system.dsn, connect_timeout=10) as connection:
            found = connection.execute("SELECT connection_status FROM magic_toolbox.agent_mcp_connections").fetchone()
        return str(found and found[0])

    until("written", status, lambda now: now == "disconnected", seconds=60)
    kubectl("patch", CONNECTION.resource, "-n", NAMESPACE, "--type=merge", "-p", '{"spec":{"active":true}}')
    system.ready(CONNECTION)


def test_exported_objects_come_back_under_their_ids(system: System, tmp_path: Path) -> None:
    kubectl = system.installation.cluster.kubectl
    (before,) = system.ready(SERVER)
    run(block("backup.md", "objects.json"), system, tmp_path)
    exported = json.loads((tmp_path / "objects.json").read_text())
    assert {item["kind"] for item in exported["items"]} == {"Toolbox", "MCPServer", "AgentMCPConnection"}
    assert not any("status" in item or "uid" in item["metadata"] for item in exported["items"])

    kubectl("delete", "-f", str(tmp_path / "objects.json"), "--timeout=90s", seconds=120)
    assert system.host.servers() == []
    kubectl("apply", "-f", str(tmp_path / "objects.json"))
    after, _ = system.ready(SERVER, CONNECTION)
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert after["status"]["instanceId"] == before["status"]["instanceId"]
    assert system.call() == '{"said": "hello"}'


def test_a_host_that_forgets_its_cluster_removes_what_it_ran(system: System) -> None:
    old = system.host.servers()
    words = block("backup.md", "rm -f /var/lib/magic-toolbox").splitlines()
    assert [words[0], words[2]] == ["systemctl stop toolbox-dtma", "systemctl start toolbox-dtma"]
    system.engine.docker("stop", system.host.container("serve"), seconds=60)
    here = words[1].replace("/var/lib/magic-toolbox", f"{system.host.folder}/var/lib/magic-toolbox")
    subprocess.run(["sh", "-c", here], check=True, timeout=10)
    system.engine.docker("start", system.host.container("serve"), seconds=60)
    until("removed", system.host.servers, lambda now: not set(old) & set(now), seconds=90)
    # This cluster is not gone: its operator has everything back at the next contact.
    system.ready(TOOLBOX, SERVER, CONNECTION)
    assert system.call() == '{"said": "hello"}'


def test_a_host_restored_from_its_archive_is_the_same_host(system: System, tmp_path: Path) -> None:
    command = block("backup.md", "tar --create").strip()
    root = str(system.host.folder)
    run(command.replace("--directory /", f"--directory {root}"), system, tmp_path)
    before = (system.host.folder / "var/lib/magic-toolbox/token").read_text()
    system.engine.docker("stop", system.host.container("gateway"), system.host.container("serve"), seconds=60)
    run("rm -r var/lib/magic-toolbox/* etc/magic-toolbox/*", system, system.host.folder)
    run(f"tar --extract --file {tmp_path}/host.tgz --directory {root}", system, tmp_path)
    assert (system.host.folder / "var/lib/magic-toolbox/token").read_text() == before
    system.engine.docker("start", system.host.container("serve"), system.host.container("gateway"), seconds=60)
    system.ready(TOOLBOX, SERVER, CONNECTION)
    assert system.call() == '{"said": "hello"}'


def test_an_operator_that_is_gone_leaves_finalizers_and_the_break_glass_removes_them(
    system: System, tmp_path: Path
) -> None:
    cluster, (operator,) = system.installation.cluster, system.replicas
    system.engine.docker("stop", "--time=45", operator.name, seconds=60)
    cluster.kubectl("delete", "mcps,amc,tbx", "--all", "-n", NAMESPACE, "--wait=false")
    for target in (CONNECTION, SERVER, TOOLBOX):
        held = cluster.get(target.resource, "-n", target.namespace)["metadata"]
        assert held["deletionTimestamp"] and held["finalizers"]
    for text in ("for kind in", "magictoolbox.dev/in-use"):
        run(block("uninstall.md", text), system, tmp_path)
    assert cluster.get("mcps,amc,tbx", "-A")["items"] == []
    secrets = cluster.get("secrets", "-n", NAMESPACE)["items"]
    assert not any("finalizers" in secret["metadata"] for secret in secrets)
    # The host was not asked: what runs there is still there, and goes when the operator sees it.
    assert len(system.host.servers()) == 1
    system.engine.docker("start", operator.name)
    operator.await_ready()
    system.deploy()
    until("only what is wanted", system.host.servers, lambda found: len(found) == 1, seconds=90)


def test_crds_that_are_deleted_first_wait_until_the_operator_has_cleaned_up(system: System) -> None:
    cluster, (operator,) = system.installation.cluster, system.replicas
    crds = [f"crd/{each}.magictoolbox.dev" for each in ("agentmcpconnections", "mcpservers", "toolboxes")]
    cluster.kubectl("delete", *crds, "--timeout=100s", seconds=120)
    assert system.host.servers() == []
    cluster.install_crds()
    # It ends when its watches no longer deliver, is started again as by a Deployment, and waits for its kinds.
    operator.await_ready()
    system.deploy()


def test_uninstalling_in_order_leaves_nothing_in_the_cluster(system: System, tmp_path: Path) -> None:
    cluster, (operator,) = system.installation.cluster, system.replicas
    run(block("uninstall.md", "# 1."), system, tmp_path)
    assert system.host.servers() == []
    # The namespace's end would end the pod; here it is a container.
    system.engine.docker("stop", "--time=45", operator.name, seconds=60)
    run(block("uninstall.md", "# 3."), system, tmp_path)
    found = cluster.kubectl("get", "crd,clusterrole,clusterrolebinding,namespace", "-o", "name").splitlines()
    assert not [name for name in found if "magic" in name or "mcp-admin" in name or "mcp-user" in name]
