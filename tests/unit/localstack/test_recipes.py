"""What images of the examples are built from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localstack import recipes
from localstack.progress import SetupError


def write(context: Path, **files: str) -> Path:
    for name, content in files.items():
        (context / name.replace("__", "-").replace("_", ".")).write_text(content)
    return context


def test_a_published_server_is_built_by_the_dockerfile_of_its_ecosystem() -> None:
    time, memory = recipes.recipe("time"), recipes.recipe("memory")
    assert (time.dockerfile, memory.dockerfile) == (
        recipes.CONTEXTS / "pypi" / "Dockerfile",
        recipes.CONTEXTS / "npm" / "Dockerfile",
    )
    assert time.arguments["PACKAGE"] == "mcp-server-time"
    assert memory.arguments["PACKAGE"] == "@modelcontextprotocol/server-memory"


def test_a_context_with_a_dockerfile_of_its_own_is_built_by_it() -> None:
    hello = recipes.recipe("hello")
    assert hello.dockerfile == hello.context / "Dockerfile"
    assert hello.arguments == {}


def test_only_the_server_that_calls_git_has_it_in_its_base() -> None:
    assert {name for name in recipes.SERVERS if recipes.recipe(name).base == "git"} == {"git"}


def test_a_change_of_the_common_dockerfile_changes_what_shapes_an_image() -> None:
    time = recipes.recipe("time")
    assert time.dockerfile.read_bytes() in time.parts()


def test_a_folder_without_a_lock_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="neither"):
        recipes.kind_of(tmp_path)


def test_the_pinned_package_is_read_beside_bounds_of_others(tmp_path: Path) -> None:
    context = write(tmp_path, requirements_txt="", requirements_in="# reason\nmcp-server-x==1.2\nother<3\n")
    assert recipes.pinned(context) == ("mcp-server-x", "1.2")


@pytest.mark.parametrize("dependencies", [{}, {"a": "1", "b": "2"}])
def test_a_lock_of_no_package_or_of_several_is_refused(dependencies: dict[str, str], tmp_path: Path) -> None:
    package = json.dumps({"dependencies": dependencies})
    context = write(tmp_path, package__lock_json="{}", package_json=package)
    with pytest.raises(SetupError, match="exactly one"):
        recipes.pinned(context)
