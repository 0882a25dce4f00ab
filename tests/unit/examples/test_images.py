from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
from mcp.client.client import Client

from localstack import recipes

IMAGES = recipes.CONTEXTS


def loaded_hello() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hello_server", IMAGES / "hello" / "server.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hello() -> ModuleType:
    return loaded_hello()


async def test_hello_has_the_tools_that_the_quickstart_names(hello: ModuleType) -> None:
    async with Client(hello.server) as client:
        listed = await client.list_tools()
        assert {tool.name for tool in listed.tools} == {"greet", "word_count", "fail"}


async def test_hello_answers_calls_with_text_and_with_structured_content(hello: ModuleType) -> None:
    async with Client(hello.server) as client:
        greeted = await client.call_tool("greet", {"name": "Ada"})
        assert greeted.structured_content == {"result": "Hello, Ada!"}
        counted = await client.call_tool("word_count", {"text": "one two\nthree"})
        assert counted.structured_content == {"words": 3, "characters": 13, "lines": 2}


async def test_hello_keeps_notes_where_it_is_told_to_and_finds_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTES", str(tmp_path / "notes.txt"))
    async with Client(loaded_hello().server) as client:
        assert (await client.call_tool("recall")).structured_content == {"result": []}
        await client.call_tool("remember", {"note": "first"})
        assert (await client.call_tool("remember", {"note": "two\nlines"})).is_error
    async with Client(loaded_hello().server) as client:
        await client.call_tool("remember", {"note": "zweite ö"})
        assert (await client.call_tool("recall")).structured_content == {"result": ["first", "zweite ö"]}


async def test_hello_tells_the_agent_why_a_tool_failed(hello: ModuleType) -> None:
    async with Client(hello.server) as client:
        failed = await client.call_tool("fail", {"reason": "no paper"})
        assert failed.is_error
        assert "no paper" in str(failed.content)


@pytest.mark.parametrize("name", ["everything", *recipes.NPM])
def test_an_npm_lock_pins_every_package_and_names_no_registry(name: str) -> None:
    lock = cast("dict[str, Any]", json.loads((IMAGES / name / "package-lock.json").read_text()))
    packages = {place: package for place, package in lock["packages"].items() if place}
    own, version = recipes.pinned(IMAGES / name)
    assert packages[f"node_modules/{own}"]["version"] == version
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())
    assert not [place for place, package in packages.items() if "resolved" in package]


@pytest.mark.parametrize("name", ["hello", *recipes.PYPI])
def test_a_python_lock_pins_every_package_with_hashes_and_names_no_index(name: str) -> None:
    text = (IMAGES / name / "requirements.txt").read_text()
    pins = re.findall(r"^[a-z0-9-]+==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
    assert len(pins) == len(re.findall(r"^\S+==", text, re.MULTILINE)) > 20
    assert not re.search(r"https?://|^-", text, re.MULTILINE)


@pytest.mark.parametrize("name", recipes.PYPI)
def test_a_published_python_server_is_locked_at_the_version_that_is_asked_for(name: str) -> None:
    package, version = recipes.pinned(IMAGES / name)
    assert f"\n{package}=={version} \\\n" in (IMAGES / name / "requirements.txt").read_text()


@pytest.mark.parametrize("name", ["everything", "hello", "pypi", "npm"])
def test_an_image_runs_as_a_numeric_user_that_is_not_root(name: str) -> None:
    users = re.findall(r"^USER (\d+):(\d+)$", (IMAGES / name / "Dockerfile").read_text(), re.MULTILINE)
    assert users == [("10001", "10001")]


def test_the_table_names_every_folder() -> None:
    table = re.findall(r"^\| `([a-z-]+)/` \|", (IMAGES / "README.md").read_text(), re.MULTILINE)
    assert sorted(table) == sorted(path.name for path in IMAGES.iterdir() if path.is_dir())
