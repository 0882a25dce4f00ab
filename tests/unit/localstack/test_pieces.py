"""Pure pieces of the local stack."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from localstack import agent, firewall, images, kubernetes, quickstart, recipes
from localstack.kube_binaries import parse_version
from localstack.ports import free_port
from localstack.processes import Command, User, launcher
from localstack.progress import SetupError, run_step, tail

SAVED = """\
*filter
:INPUT ACCEPT [0:0]
:MTB-abc123-IN - [0:0]
:MTB-ffffff-IN - [0:0]
-A INPUT -i mtbabc123+ -j MTB-abc123-IN
-A INPUT -i mtbffffff+ -j MTB-ffffff-IN
-A MTB-abc123-IN -m comment --comment "two words" -j DROP
COMMIT
*nat
:POSTROUTING ACCEPT [0:0]
COMMIT
"""


def test_only_the_named_hosts_rules_are_removed_and_rules_before_chains() -> None:
    assert firewall.removals(SAVED, "MTB-abc123-") == [
        ["-t", "filter", "-D", "INPUT", "-i", "mtbabc123+", "-j", "MTB-abc123-IN"],
        ["-t", "filter", "-D", "MTB-abc123-IN", "-m", "comment", "--comment", "two words", "-j", "DROP"],
        ["-t", "filter", "-F", "MTB-abc123-IN"],
        ["-t", "filter", "-X", "MTB-abc123-IN"],
    ]


def test_a_text_that_could_match_anything_removes_no_rule() -> None:
    with pytest.raises(ValueError, match="too short"):
        firewall.remove("MTB-")


def test_cel_rules_are_stripped_at_every_depth_and_nothing_else() -> None:
    rule: dict[str, Any] = {"x-kubernetes-validations": [{"rule": "true"}]}
    crd = {**rule, "properties": {"a": {"type": "object", **rule, "items": [rule, {"enum": ["x"]}]}}}
    assert kubernetes.strip_validations(crd) == {
        "properties": {"a": {"type": "object", "items": [{}, {"enum": ["x"]}]}}
    }


def test_a_version_is_read_from_what_the_api_server_prints() -> None:
    assert parse_version("Kubernetes v1.30.0\n") == (1, 30, 0)


def test_text_without_a_version_is_refused() -> None:
    with pytest.raises(SetupError, match="no Kubernetes version"):
        parse_version("command not found")


def test_ports_are_not_given_out_twice() -> None:
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50


def test_a_child_is_launched_with_a_death_signal_and_as_its_user() -> None:
    command = Command("x", ["prog", "--flag"], user=User(1234, 5678), death_signal="TERM")
    if os.geteuid() == 0:
        switch = ["--reuid=1234", "--regid=5678", "--clear-groups", "--", "/usr/bin/env"]
    else:
        switch = ["--"]
    assert launcher(command) == ["setpriv", "--pdeathsig", "TERM", *switch, "prog", "--flag"]


def test_the_quickstart_gets_the_hosts_toolbox_and_local_images() -> None:
    documents: list[dict[str, Any]] = [
        {"kind": "Namespace", "metadata": {"name": "n"}},
        {"kind": "Toolbox", "metadata": {"name": "tbx-1"}, "spec": {"endpoint": "https://placeholder"}},
        {"kind": "MCPServer", "spec": {"image": f"{images.QUICKSTART_PREFIX}hello:1.0.0", "port": 8000}},
    ]
    printed: list[dict[str, Any]] = [{"kind": "Secret"}, {"kind": "Toolbox", "spec": {"endpoint": "https://real"}}]
    result = quickstart.localized(documents, printed, lambda name: f"127.0.0.1:5/mcp-{name}:abc")
    assert result == [
        documents[0],
        *printed,
        {"kind": "MCPServer", "spec": {"image": "127.0.0.1:5/mcp-hello:abc", "port": 8000}},
    ]


def test_a_foreign_image_in_the_quickstart_is_refused() -> None:
    documents: list[dict[str, Any]] = [{"kind": "MCPServer", "spec": {"image": "example.org/other:1"}}]
    with pytest.raises(SetupError, match="begin with"):
        quickstart.localized(documents, [], lambda name: name)


def test_every_image_of_the_quickstart_has_a_build_context() -> None:
    used: list[str] = []
    quickstart.load([], lambda name: used.append(name) or name)
    assert sorted(used) == sorted(recipes.QUICKSTART)
    assert {recipes.recipe(name).kind for name in used} == {"node", "python"}


def test_a_failing_step_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="the reason"):
        run_step("failing", ["sh", "-c", "echo the reason; exit 3"], tmp_path / "log", seconds=10)


def test_a_step_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="not done"):
        run_step("endless", ["sleep", "60"], tmp_path / "log", seconds=0.2)


def test_the_tail_of_a_missing_log_is_empty(tmp_path: Path) -> None:
    assert tail(tmp_path / "none", 5) == []


def test_a_failed_conversation_becomes_one_sentence() -> None:
    nested = ExceptionGroup("tasks", [ExceptionGroup("inner", [ConnectionError("refused")]), TimeoutError("late")])
    with pytest.raises(SetupError, match="ConnectionError: refused; TimeoutError: late"), agent.readable_errors():
        raise nested


def test_a_defect_in_a_conversation_stays_what_it_is() -> None:
    with pytest.raises(ExceptionGroup), agent.readable_errors():
        raise ExceptionGroup("tasks", [ConnectionError("refused"), TypeError("a defect")])
