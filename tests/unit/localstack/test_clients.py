from __future__ import annotations

import json
import re
from typing import Any, cast

import pytest

from localstack import clients


@pytest.mark.parametrize("name", (*clients.PYTHON_NAMES, *clients.BENCH_NAMES))
def test_a_python_environment_is_pinned_with_hashes_and_names_no_index(name: str) -> None:
    text = (clients.LOCKS / name / "requirements.txt").read_text()
    pins = re.findall(r"^[a-z0-9-]+==\S+ (?:; .+ )?\\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
    assert len(pins) == len(re.findall(r"^\S+==", text, re.MULTILINE)) > 20
    assert not re.search(r"https?://|^-", text, re.MULTILINE)


def test_the_npm_environment_is_pinned_with_hashes_and_names_no_registry() -> None:
    folder = clients.LOCKS / clients.NODE_NAME
    lock = cast("dict[str, Any]", json.loads((folder / "package-lock.json").read_text()))
    wanted = json.loads((folder / "package.json").read_text())["dependencies"]
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert {name: packages[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())
    assert not [name for name, package in packages.items() if "resolved" in package]


def test_every_environment_of_the_folder_is_known() -> None:
    folders = {path.name for path in clients.LOCKS.iterdir() if path.is_dir()}
    assert folders == {*clients.PYTHON_NAMES, *clients.BENCH_NAMES, clients.NODE_NAME}
