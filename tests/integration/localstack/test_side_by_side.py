"""Several processes at once: each group of tests in one of them, so that no server is started twice."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict

import pytest

from support.side_by_side import TESTS, group_of

pytestmark = pytest.mark.integration

SOME = ("unit/delivery", "unit/localstack/test_side_by_side.py", "unit/api/test_docs.py", "unit/api/test_quantity.py")


def test_a_group_of_tests_runs_in_one_process() -> None:
    argv = [sys.executable, "-m", "pytest", "-n", "2", "--no-loadscope-reorder", "-v", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*argv, *(str(TESTS / place) for place in SOME)], capture_output=True, text=True, cwd=TESTS.parent, timeout=120
    )
    assert run.returncode == 0, run.stdout
    processes: defaultdict[str, set[str]] = defaultdict(set)
    for passed in re.finditer(r"^\[(gw\d)\] \[ *\d+%\] PASSED (\S+)", run.stdout, re.MULTILINE):
        processes[group_of(passed[2])].add(passed[1])
    assert len(processes) == 5, run.stdout
    assert all(len(each) == 1 for each in processes.values()), processes
    assert len({process for each in processes.values() for process in each}) == 2, processes
