"""The wheel: what is in it, and that it works where nothing else of this repository is."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from delivery import wheels
from localstack.kubernetes import REPOSITORY

pytestmark = [pytest.mark.integration, pytest.mark.install]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheels.build_own(tmp_path_factory.mktemp("wheel"))


def test_it_holds_both_packages_whole(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = {
        str(path.relative_to(REPOSITORY / part))
        for part in ("operator", "dtma")
        for path in (REPOSITORY / part).rglob("*.py")
    }
    assert sources <= names
    crds = {f"toolbox_operator/_crds/{path.name}" for path in (REPOSITORY / "crds").iterdir()}
    assert crds | {"toolbox_operator/py.typed", "toolbox_dtma/py.typed"} <= names
    assert not any("__pycache__" in name or name.startswith("tests/") for name in names)


def test_the_same_sources_give_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    assert wheels.build_own(tmp_path).read_bytes() == wheel.read_bytes()


def test_its_programs_start_away_from_the_repository(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-compile", "--target", str(target), str(wheel)], check=True, timeout=120)
    for program, word in (("toolbox-operator", "run"), ("toolbox-dtma", "gateway")):
        done = subprocess.run(
            [sys.executable, str(target / "bin" / program), "--help"],
            cwd="/",
            env={"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert word in done.stdout
    # Migrations are found beside the package, not in a work tree.
    code = "from toolbox_operator.store import migrate; import pathlib; print(pathlib.Path(migrate.__file__).parent)"
    where = subprocess.run(
        [sys.executable, "-c", code],
        cwd="/",
        env={"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin", "HOME": "/"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout.strip()
    assert where.startswith(str(target))
    assert list((Path(where) / "migrations" / "versions").glob("0001_*.py"))
