"""The manifests on a real API server."""

from __future__ import annotations

import json

import pytest
import yaml

from delivery import manifests
from localstack.kubernetes import OPERATOR_NAMESPACE
from support.install.installation import Installation, rendered
from support.install.pods import named, pod_of

pytestmark = [pytest.mark.integration, pytest.mark.install]

needs_kustomize = pytest.mark.skipif(manifests.builder() is None, reason="no kustomize >= 5, no kubectl >= 1.27")


def test_everything_is_applied_in_one_go(installation: Installation) -> None:
    lines = installation.said.splitlines()
    assert len(lines) == len(installation.objects)
    assert all(line.endswith(" created") for line in lines), lines


def test_applying_it_again_changes_nothing(installation: Installation) -> None:
    cluster = installation.cluster
    text = yaml.safe_dump_all(
        installation.objects if cluster.has_cel else manifests.adapted(installation.objects), sort_keys=False
    )

    def versions() -> dict[str, str]:
        items = json.loads(cluster.kubectl("get", "-f", "-", "-o", "json", stdin=text))["items"]
        return {f"{each['kind']}/{each['metadata']['name']}": each["metadata"]["resourceVersion"] for each in items}

    before = versions()
    cluster.kubectl("apply", "-f", "-", stdin=text)
    assert versions() == before


@needs_kustomize
def test_kustomize_puts_the_namespace_and_the_crds_first() -> None:
    kinds = [each["kind"] for each in rendered()]
    assert kinds[0] == "Namespace"
    assert kinds[1:4] == ["CustomResourceDefinition"] * 3
    assert kinds[-1] == "Deployment"


@needs_kustomize
def test_the_dev_overlay_names_images_that_can_be_had() -> None:
    objects = rendered(dev=True)
    (operator,) = pod_of(named(objects, "Deployment", "magic-toolbox-operator"))["containers"]
    (postgres,) = pod_of(named(objects, "StatefulSet", "magic-toolbox-postgres"))["containers"]
    assert operator["image"] == "localhost/magic-toolbox/operator:dev"
    assert postgres["image"].startswith("docker.io/library/postgres:")


@needs_kustomize
def test_another_namespace_takes_every_reference_with_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    # kustomize takes no base by an absolute path.
    folder = manifests.FOLDER / "overlays" / f"test-{tmp_path_factory.mktemp('x').parent.name}"
    folder.mkdir()
    try:
        text = {"resources": ["../../default"], "namespace": "elsewhere"}
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(text))
        found = yaml.safe_dump_all(manifests.build(folder))
    finally:
        (folder / "kustomization.yaml").unlink(missing_ok=True)
        folder.rmdir()
    assert OPERATOR_NAMESPACE not in found
    assert "namespace: elsewhere" in found


def test_the_deployment_is_what_the_server_understood(installation: Installation) -> None:
    live = installation.cluster.get("deployment", "magic-toolbox-operator", "-n", OPERATOR_NAMESPACE)
    pod = pod_of(live)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
