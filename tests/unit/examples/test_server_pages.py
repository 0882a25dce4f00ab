"""docs/servers: what the pages have deployed and built is what the models and the examples say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from localstack import recipes
from localstack.kubernetes import REPOSITORY
from toolbox_operator.api.mcpserver import MCPServerSpec
from toolbox_operator.api.meta import API_VERSION, Kind

PAGES = sorted((REPOSITORY / "docs" / "servers").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_deploys_the_image_that_it_builds(page: Path) -> None:
    text = page.read_text()
    built = set(re.findall(r"--tag (\S+)", text))
    found = re.findall(r"^```yaml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    documents = [cast("dict[str, Any]", yaml.safe_load(block)) for block in found]
    for document in documents:
        assert (document["apiVersion"], document["kind"]) == (API_VERSION, Kind.MCP_SERVER)
        assert MCPServerSpec.model_validate(document["spec"]).image in built
    assert documents


@pytest.mark.parametrize(("page", "name"), [("pypi", "time"), ("npm", "memory")])
def test_a_page_builds_what_an_example_pins(page: str, name: str) -> None:
    package, version = recipes.pinned(recipes.CONTEXTS / name)
    text = (REPOSITORY / "docs" / "servers" / f"{page}.md").read_text()
    assert f"--build-arg PACKAGE={package} --build-arg VERSION={version} " in text


def test_the_table_of_what_a_toolbox_does_has_the_limits_that_check_has() -> None:
    text = (REPOSITORY / "docs" / "servers" / "own-image.md").read_text()
    script = (recipes.CONTEXTS / "check.py").read_text()
    assert "512 MiB without swap, 1 CPU, 256" in text
    assert all(flag in script for flag in ("--memory=512m", "--memory-swap=512m", "--cpus=1", "--pids-limit=256"))
