"""Both images at work: two operators as the Deployment runs them, a host whose DTMA and gateway are containers."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from localstack.kubernetes import OPERATOR_NAMESPACE
from support.install.containers import BEFORE, CONNECTION, NAMESPACE, SERVER, TOOLBOX, Ground, System, started
from support.install.installation import Installation, Permission
from support.poll import until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.install,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="a toolbox host needs root"),
]

AFTER = "operator-after"
NEVER_A_REQUEST = {("update", "magictoolbox.dev", "agentmcpconnections/finalizers")}
"""Asked about by an admission plugin, on behalf of a Secret's owner reference."""
NOT_ON_THIS_ROAD = {
    # Asked for once more before something that no object accounts for is removed from a host.
    *(("get", "magictoolbox.dev", kind) for kind in ("toolboxes", "mcpservers", "agentmcpconnections")),
    # An Event that happens again, and a server with a ConfigMap.
    ("get", "events.k8s.io", "events"),
    ("patch", "events.k8s.io", "events"),
    ("get", "", "configmaps"),
}


@pytest.fixture(scope="module")
def running(ground: Ground, installation: Installation, state_folder: Path) -> Generator[System]:
    with started(ground, installation, state_folder / "containers", replicas=2) as system:
        yield system


def test_both_replicas_are_ready_and_one_leads(running: System) -> None:
    running.await_leader()
    assert all(replica.ready()[0] == 200 for replica in running.replicas)


def test_the_operators_process_has_no_rights_on_its_machine(running: System) -> None:
    engine = running.engine
    for replica in running.replicas:
        pid = engine.docker("inspect", "--format", "{{.State.Pid}}", replica.name).strip()
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert fields["Uid"].split() == ["10002"] * 4
        assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
        assert fields["NoNewPrivs"].strip() == "1"
        written = engine.docker("diff", replica.name).splitlines()
        assert not [line for line in written if "serviceaccount" not in line and "/run" not in line], written


def test_from_init_on_the_host_to_an_agents_call(running: System) -> None:
    # A token is due to be replaced long before it ends; what comes of it, a later test asks.
    running.account.write("token", running.installation.token(AFTER).encode())
    running.deploy()
    assert running.call() == '{"said": "hello"}'


def test_no_token_can_be_read_from_objects_that_a_viewer_sees(running: System) -> None:
    cluster = running.installation.cluster
    seen = cluster.kubectl("get", "tbx,mcps,amc,events", "-n", NAMESPACE, "-o", "json")
    host = next(document for document in running.host.manifests if "token" in document.get("stringData", {}))
    assert host["stringData"]["token"] not in seen
    assert running.secret()["token"] not in seen


def test_dtma_is_replaced_while_agents_go_on(running: System) -> None:
    engine, before = running.engine, running.host.servers()
    engine.docker("stop", running.host.container("serve"), seconds=60)
    assert running.call() == '{"said": "hello"}'
    engine.docker("start", running.host.container("serve"), seconds=60)
    running.ready(TOOLBOX, SERVER)
    assert running.host.servers() == before
    assert running.call() == '{"said": "hello"}'


def test_a_stopped_pod_hands_over_and_ends_well(running: System) -> None:
    leader = running.await_leader()
    (other,) = [replica for replica in running.replicas if replica is not leader]
    running.engine.docker("stop", "--time=45", leader.name, seconds=60)
    other.await_leading()
    assert leader.exit_code() == 0
    other.await_ready()
    running.engine.docker("start", leader.name)
    leader.await_ready()
    assert running.leaders() == [other]


def test_an_edit_a_rotation_and_a_deletion_after_the_handover(running: System) -> None:
    kubectl = running.installation.cluster.kubectl
    token = running.secret()["token"]
    kubectl("annotate", CONNECTION.resource, "-n", NAMESPACE, "magictoolbox.dev/rotate=now")
    until("rotated", lambda: running.secret()["token"], lambda now: now != token)
    assert running.call() == '{"said": "hello"}'
    targets = (CONNECTION.resource, SERVER.resource, TOOLBOX.resource)
    kubectl("delete", *targets, "-n", NAMESPACE, "--timeout=60s", seconds=90)
    assert running.host.servers() == []


def test_a_token_that_was_replaced_in_the_mounted_folder_is_used(running: System) -> None:
    def bound_to() -> set[str]:
        """Pods whose tokens the last requests of all kinds came with, watches left out: those stay open."""
        recent = [each for each in running.installation.requests() if each["verb"] in ("get", "update")][-10:]
        return {pod for each in recent for pod in each["user"]["extra"]["authentication.kubernetes.io/pod-name"]}

    until("using the new token", bound_to, lambda pods: pods == {AFTER}, seconds=120)
    # The old one ends with its pod; whoever still uses it loses the Lease.
    running.installation.cluster.kubectl(
        "delete", "pod", BEFORE, "-n", OPERATOR_NAMESPACE, "--grace-period=0", "--force"
    )
    (leader,) = running.leaders()

    def renewed() -> str:
        lease = running.installation.cluster.get("lease", "magic-toolbox-operator", "-n", OPERATOR_NAMESPACE)
        return str(lease["spec"]["renewTime"])

    for _ in range(5):
        last = renewed()
        until("renewed", renewed, lambda now, last=last: now != last)
    assert running.leaders() == [leader]


def test_everything_that_was_asked_was_allowed_and_everything_allowed_was_asked(running: System) -> None:
    requests = running.installation.requests()
    refused = [each for each in requests if each.get("responseStatus", {}).get("code") in (401, 403)]
    assert not refused, json.dumps(refused[:3])
    used: set[Permission] = set()
    for each in requests:
        reference = each.get("objectRef", {})
        if not reference:
            # Discovery, which everybody may.
            continue
        name = reference["resource"] + (f"/{reference['subresource']}" if "subresource" in reference else "")
        used.add((each["verb"], reference.get("apiGroup", ""), name))
    granted: set[Permission] = {
        (verb, group, resource)
        for role in running.installation.objects
        if role["kind"] in ("ClusterRole", "Role") and role["metadata"]["name"].startswith("magic-toolbox-operator")
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert used <= granted
    assert granted - used - NEVER_A_REQUEST <= NOT_ON_THIS_ROAD
