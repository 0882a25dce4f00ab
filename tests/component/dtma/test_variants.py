"""Modules of the tests that fault tests start DTMA by: they come up with the path that a local host gives them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from support.hosts.variants import settings_for

pytestmark = pytest.mark.component


@pytest.mark.parametrize("module", ["support.hosts.brisk_dtma", "support.hosts.patient_dtma"])
def test_dtma_of_a_fault_test_starts_without_the_local_stack_on_its_path(module: str) -> None:
    settings = settings_for(module)
    argv = [sys.executable, "-m", settings["serve_module"], "serve", "--help"]

    ended = subprocess.run(argv, env=settings["environment"], capture_output=True, text=True, timeout=60, check=False)

    assert ended.returncode == 0, ended.stderr
    assert "--state-dir" in ended.stdout
