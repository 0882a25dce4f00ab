"""Runs the official conformance suite against a URL and reads what each check said."""

from __future__ import annotations

import json
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localstack import clients, node
from localstack.processes import base_environment

PATIENT = Path(__file__).with_name("patient.cjs")
SCENARIO_SECONDS = 120
PROGRAM = Path("@modelcontextprotocol") / "conformance" / "dist" / "index.js"
NEWEST = "newest"
"""Every scenario, each at the newest revision that has it; extensions, which belong to no revision, run only so."""
REVISIONS = (NEWEST, "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28")

_SEVERITY = ("FAILURE", "WARNING", "SUCCESS", "SKIPPED", "INFO")
"""Worst first: a check that is repeated counts as its worst occurrence."""


UNCHECKED = "nothing was checked"


class SuiteError(Exception):
    """The suite itself did not run as it should; the message has the end of its output."""


@dataclass(frozen=True, slots=True)
class Check:
    """The name of a check within one run."""

    scenario: str
    id: str

    def __str__(self) -> str:
        return f"{self.scenario}:{self.id}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the suite said about a check."""

    status: str
    message: str = ""

    @property
    def passed(self) -> bool:
        """Neither a failure nor a warning."""
        return self.status not in ("FAILURE", "WARNING")


Verdicts = Mapping[Check, Verdict]


class Run:
    """The suite at work."""

    def __init__(self, url: str, revision: str, folder: Path):
        self._folder = folder
        self._log = folder / "output.txt"
        folder.mkdir()
        argv = [str(node.program()), "--require", str(PATIENT), str(clients.node_modules() / PROGRAM), "server"]
        argv += ["--url", url, "--suite", "all", "--timeout", str(SCENARIO_SECONDS * 1000)]
        argv += [] if revision == NEWEST else ["--spec-version", revision]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*argv, "--output-dir", str(folder / "results")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=base_environment(),
                cwd=folder,
            )

    def stop(self) -> None:
        """Ends it, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)

    def verdicts(self, *, seconds: float = 240.0) -> Verdicts:
        """Waits for the end; the worst verdict of every check.

        Raises:
            SuiteError: It did not end in time, or some scenario left no results.
        """
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise SuiteError(f"not done after {seconds:.0f} s:\n{self._output()}") from error
        found: defaultdict[Check, list[Verdict]] = defaultdict(list)
        results = sorted((self._folder / "results").glob("server-*/checks.json"))
        if not results or len(results) != self._announced():
            raise SuiteError(f"{len(results)} results of {self._announced()} scenarios:\n{self._output()}")
        for path in results:
            scenario = _scenario(path.parent.name)
            for check in json.loads(path.read_text()):
                found[Check(scenario, check["id"])].append(_verdict(check))
        return {check: min(verdicts, key=lambda v: _SEVERITY.index(v.status)) for check, verdicts in found.items()}

    def _output(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]

    def _announced(self) -> int:
        return self._log.read_text(errors="replace").count("=== Running scenario: ")


def _scenario(folder: str) -> str:
    """`server-NAME-2026-01-31T10-11-12-345Z` without the two ends."""
    return folder.removeprefix("server-").rsplit("-", 6)[0]


def _verdict(check: Mapping[str, Any]) -> Verdict:
    return Verdict(check["status"], str(check.get("errorMessage") or ""))


def not_passed(verdicts: Verdicts) -> dict[str, str]:
    """Scenarios of which a check failed, or none said anything, and what they said."""
    scenarios = {check.scenario for check in verdicts}
    # Valid messages are checked in every scenario, whatever it is about.
    own = {check: said for check, said in verdicts.items() if check.id != "wire-schema-valid"}
    passed = {check.scenario for check, said in own.items() if said.status == "SUCCESS"}
    found = dict.fromkeys(sorted(scenarios - passed), UNCHECKED)
    for check, said in verdicts.items():
        if not said.passed:
            found[check.scenario] = f"{check.id}: {said.status}: {said.message}"
    return found
