"""Who may do what, as the API server itself decides it."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable

import pytest

from localstack.kubernetes import OPERATOR_NAMESPACE, Manifest
from localstack.progress import SetupError
from support.install.installation import ACCOUNT, Installation
from support.poll import until

pytestmark = [pytest.mark.integration, pytest.mark.install]

TEAM = "team-rights"
GROUP = "magictoolbox.dev"
KINDS = ("toolboxes", "mcpservers", "agentmcpconnections")
READ = frozenset({"get", "list", "watch"})
WRITE = READ | {"create", "update", "patch", "delete", "deletecollection"}
NOTHING: frozenset[str] = frozenset()
EVERYWHERE = {
    *((verb, GROUP, kind, "") for verb in (*READ, "patch") for kind in KINDS),
    *(("update", GROUP, f"{kind}/status", "") for kind in KINDS),
    ("update", GROUP, "agentmcpconnections/finalizers", ""),
    *((verb, "", "secrets", "") for verb in (*READ, "create", "patch")),
    *((verb, "", "configmaps", "") for verb in READ),
    *((verb, "events.k8s.io", "events", "") for verb in ("get", "create", "patch")),
    *((verb, "coordination.k8s.io", "leases", "") for verb in ("list", "watch")),
    *((verb, "", "namespaces", "") for verb in ("list", "watch")),
    ("get", "", "namespaces", "kube-system"),
}
AT_HOME = {
    ("create", "coordination.k8s.io", "leases", ""),
    *((verb, "coordination.k8s.io", "leases", "magic-toolbox-operator") for verb in ("get", "update")),
}
PEOPLE = {
    "view": (READ, READ, READ, NOTHING),
    "edit": (READ, READ, READ, WRITE),
    "admin": (READ, READ, READ, WRITE),
    "mcp-user": (READ, READ, WRITE, NOTHING),
    "mcp-admin": (WRITE, WRITE, WRITE, NOTHING),
}
"""Verbs on toolboxes, mcpservers, agentmcpconnections and secrets, by the role that is bound in one namespace."""


def rules(installation: Installation, namespace: str, user: str, *groups: str) -> list[Manifest]:
    """Every rule the API server applies to somebody in a namespace."""
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    flags = [f"--as={user}", *(f"--as-group={group}" for group in ("system:authenticated", *groups))]
    made = installation.cluster.kubectl("create", "-f", "-", "-o", "json", *flags, stdin=json.dumps(body))
    status = json.loads(made)["status"]
    assert not status["incomplete"]
    return status["resourceRules"]


def flat(found: Iterable[Manifest]) -> set[tuple[str, str, str, str]]:
    """(verb, group, resource, name) of every rule; the name is empty where any is meant."""
    return {
        (verb, group, resource, name)
        for rule in found
        for verb in rule["verbs"]
        for group in rule.get("apiGroups", [""])
        for resource in rule["resources"]
        for name in rule.get("resourceNames") or [""]
        # What everybody may: ask about oneself.
        if not resource.startswith("selfsubject")
    }


def verbs(found: Iterable[Manifest], group: str, resource: str) -> frozenset[str]:
    return frozenset(verb for verb, of, what, _ in flat(found) if (of, what) == (group, resource))


@pytest.fixture(scope="module")
def team(installation: Installation) -> Generator[str]:
    """A namespace in which each role is bound to a person of its name."""
    kubectl = installation.cluster.kubectl
    kubectl("create", "namespace", TEAM)
    for role in PEOPLE:
        kubectl("create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}", "-n", TEAM)
    yield TEAM
    kubectl("delete", "namespace", TEAM, "--wait=false")


@pytest.mark.parametrize("namespace", ["default", "kube-system"])
def test_the_operator_may_do_this_everywhere_and_nothing_else(installation: Installation, namespace: str) -> None:
    assert flat(rules(installation, namespace, ACCOUNT)) == EVERYWHERE


def test_the_operator_may_keep_its_lease_in_its_own_namespace_too(installation: Installation) -> None:
    assert flat(rules(installation, OPERATOR_NAMESPACE, ACCOUNT)) == EVERYWHERE | AT_HOME


@pytest.mark.parametrize(
    "question",
    [
        ("create", "mcpservers.magictoolbox.dev"),
        ("delete", "toolboxes.magictoolbox.dev"),
        ("create", "pods"),
        ("get", "pods"),
        ("create", "configmaps"),
        ("patch", "configmaps"),
        ("update", "secrets"),
        ("delete", "secrets"),
        ("get", "namespaces"),
        ("patch", "namespaces"),
        ("create", "clusterrolebindings.rbac.authorization.k8s.io"),
        ("impersonate", "users"),
        ("create", "serviceaccounts/token"),
    ],
    ids=" ".join,
)
def test_the_operator_is_refused_what_it_does_not_need(installation: Installation, question: tuple[str, str]) -> None:
    with pytest.raises(SetupError, match="no"):
        installation.cluster.kubectl("auth", "can-i", *question, f"--as={ACCOUNT}", "-n", "default")


@pytest.mark.parametrize("role", PEOPLE)
def test_a_persons_role_gives_this_in_its_namespace(installation: Installation, team: str, role: str) -> None:
    expected = PEOPLE[role]

    def seen() -> tuple[frozenset[str], ...]:
        found = rules(installation, team, role)
        return (*(verbs(found, GROUP, kind) for kind in KINDS), verbs(found, "", "secrets"))

    # Built-in roles are put together by a controller.
    until(f"the rights of {role}", seen, lambda now: now == expected)
    for kind in KINDS:
        assert verbs(rules(installation, team, role), GROUP, f"{kind}/status") == NOTHING
    elsewhere = rules(installation, "default", role)
    assert not any(verbs(elsewhere, GROUP, kind) for kind in KINDS)


def test_somebody_who_may_view_sees_our_objects_and_is_refused_their_secrets(
    installation: Installation, team: str
) -> None:
    kubectl = installation.cluster.kubectl
    until("viewing", lambda: kubectl("auth", "can-i", "list", "mcpservers.magictoolbox.dev", "--as=admin", "-n", team))
    assert kubectl("get", "tbx,mcps,amc", "-n", team, "--as=view") == ""
    with pytest.raises(SetupError, match="forbidden"):
        kubectl("get", "secrets", "-n", team, "--as=view")


def test_an_editor_cannot_deploy_a_server(installation: Installation, team: str) -> None:
    body = {
        "apiVersion": f"{GROUP}/v1alpha1",
        "kind": "MCPServer",
        "metadata": {"name": "mine", "namespace": team},
        "spec": {"toolboxRef": {"name": "t"}, "image": "x", "transport": "streamable-http", "port": 1},
    }
    with pytest.raises(SetupError, match="forbidden"):
        installation.cluster.kubectl("create", "-f", "-", "--as=edit", stdin=json.dumps(body))
    installation.cluster.kubectl("create", "-f", "-", "--as=mcp-admin", stdin=json.dumps(body))
