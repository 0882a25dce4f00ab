"""The manifests hold together, ask for no more than they need, and fit the program they start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from localstack.kubernetes import REPOSITORY, Manifest, load_manifests
from support.install.pods import arguments, breaks_restricted, named, pod_of, values
from toolbox_operator import settings, wiring
from toolbox_operator.kube import elector

MANIFESTS = REPOSITORY / "manifests"
KUSTOMIZATIONS = sorted(MANIFESTS.rglob("kustomization.yaml"))
OPERATOR = load_manifests(MANIFESTS / "operator")
DEV = load_manifests(MANIFESTS / "overlays" / "dev")
RBAC = load_manifests(MANIFESTS / "rbac")
# In 1.20 and in everything since 1.30.
SERVED = {"v1", "apps/v1", "rbac.authorization.k8s.io/v1", "networking.k8s.io/v1"}
OURS = {"toolboxes", "mcpservers", "agentmcpconnections"}
READ = {"get", "list", "watch"}


def kustomization(path: Path) -> dict[str, Any]:
    return cast("dict[str, Any]", yaml.safe_load(path.read_text()))


def rules(name: str) -> Iterator[dict[str, Any]]:
    yield from named(RBAC, "ClusterRole", name)["rules"]


def test_every_file_a_kustomization_names_is_there_and_inside_its_own_folder() -> None:
    for path in KUSTOMIZATIONS:
        for resource in kustomization(path)["resources"]:
            target = (path.parent / resource).resolve()
            if target.is_dir():
                assert (target / "kustomization.yaml").is_file(), f"{path}: {resource}"
            else:
                assert target.is_file() and target.parent == path.parent, f"{path}: {resource}"


def test_every_manifest_belongs_to_a_kustomization() -> None:
    named_files = {
        (path.parent / resource).resolve() for path in KUSTOMIZATIONS for resource in kustomization(path)["resources"]
    }
    found = {path for path in MANIFESTS.rglob("*.yaml") if path.name != "kustomization.yaml"}
    assert found - named_files == {MANIFESTS / "kind" / "cluster.yaml"}


def test_only_api_versions_are_used_that_old_and_new_servers_have() -> None:
    assert {each["apiVersion"] for each in [*OPERATOR, *DEV, *RBAC]} <= SERVED


def test_the_namespace_enforces_the_restricted_standard() -> None:
    labels = named(OPERATOR, "Namespace", "magic-toolbox-system")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize(
    "workload", [each for each in [*OPERATOR, *DEV] if each["kind"] in ("Deployment", "StatefulSet")]
)
def test_every_pod_satisfies_the_restricted_standard(workload: Manifest) -> None:
    assert breaks_restricted(pod_of(workload)) == []
    assert (
        workload["spec"]["selector"]["matchLabels"].items()
        <= workload["spec"]["template"]["metadata"]["labels"].items()
    )


def test_the_operator_understands_the_arguments_of_its_pod() -> None:
    deployment = named(OPERATOR, "Deployment", "magic-toolbox-operator")
    (container,) = pod_of(deployment)["containers"]
    environment = values(container, {"POD_NAMESPACE": "elsewhere", "DATABASE_URL": "postgresql://db/x"})
    parsed = settings.parse(arguments(container, environment), environment)
    assert parsed.namespace == "elsewhere"
    assert parsed.database_url == "postgresql://db/x"
    assert parsed.kubeconfig is None
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"metrics": parsed.metrics_port, "health": parsed.health_port}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "health"}
    starting = container["startupProbe"]
    assert starting["httpGet"] == container["livenessProbe"]["httpGet"]
    assert starting["periodSeconds"] * starting["failureThreshold"] >= 120
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "health"}
    assert deployment["spec"]["replicas"] == 2


def test_the_record_is_optional_and_its_address_is_never_an_argument() -> None:
    (container,) = pod_of(named(OPERATOR, "Deployment", "magic-toolbox-operator"))["containers"]
    (variable,) = [each for each in container["env"] if each["name"] == "DATABASE_URL"]
    assert variable["valueFrom"]["secretKeyRef"] == {"name": "magic-toolbox-database", "key": "dsn", "optional": True}
    assert not any("database" in argument for argument in container["args"])


def test_a_pod_that_is_stopped_has_the_time_that_the_operator_takes() -> None:
    grace = pod_of(named(OPERATOR, "Deployment", "magic-toolbox-operator"))["terminationGracePeriodSeconds"]
    longest = wiring.DRAIN + 2 * wiring.FLUSH + elector.REQUEST_DEADLINE
    assert grace > longest + 5


def test_no_role_has_a_wildcard() -> None:
    for role in RBAC:
        for rule in role.get("rules", []):
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]], role["metadata"]["name"]


def test_only_reading_our_kinds_is_added_to_a_built_in_role() -> None:
    aggregated = [
        role
        for role in RBAC
        if any(label.startswith("rbac.authorization.k8s.io/aggregate") for label in role["metadata"].get("labels", {}))
    ]
    assert [role["metadata"]["name"] for role in aggregated] == ["magic-toolbox-view"]
    (view,) = aggregated
    assert view["metadata"]["labels"] == {"rbac.authorization.k8s.io/aggregate-to-view": "true"}
    (rule,) = view["rules"]
    assert set(rule["resources"]) == OURS and set(rule["verbs"]) == READ


def test_people_get_no_secrets_and_no_status_from_our_roles() -> None:
    for name in ("mcp-admin", "mcp-user", "magic-toolbox-view"):
        resources = {resource for rule in rules(name) for resource in rule["resources"]}
        assert resources <= OURS | {"events"}, name


def test_the_operator_may_not_create_or_delete_what_people_write() -> None:
    for rule in rules("magic-toolbox-operator"):
        if OURS & set(rule["resources"]):
            assert not {"create", "delete", "deletecollection", "update"} & set(rule["verbs"])
