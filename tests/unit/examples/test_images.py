from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
from mcp.client.client import Client

IMAGES = Path(__file__).parents[3] / "examples" / "images"


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


def test_the_npm_lock_pins_every_package_and_names_no_registry() -> None:
    lock = cast("dict[str, Any]", json.loads((IMAGES / "everything" / "package-lock.json").read_text()))
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert packages["node_modules/@modelcontextprotocol/server-everything"]["version"] == "2026.8.31"
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())
    assert not [name for name, package in packages.items() if "resolved" in package]


def test_the_python_lock_pins_every_package_with_hashes_and_names_no_index() -> None:
    text = (IMAGES / "hello" / "requirements.txt").read_text()
    pins = re.findall(r"^[a-z0-9-]+==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
    assert len(pins) == len(re.findall(r"^\S+==", text, re.MULTILINE)) > 20
    assert not re.search(r"https?://|^-", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["everything", "hello"])
def test_an_image_runs_as_a_numeric_user_that_is_not_root(name: str) -> None:
    users = re.findall(r"^USER (\d+):(\d+)$", (IMAGES / name / "Dockerfile").read_text(), re.MULTILINE)
    assert users == [("10001", "10001")]
