"""The whole system as the local stack runs it: who runs as whom, with which rights."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from localstack.docker import SOCKET
from localstack.host import GATEWAY_USER
from localstack.kubernetes import OPERATOR_ACCOUNT, OPERATOR_NAMESPACE
from localstack.processes import Command, launcher
from localstack.progress import SetupError
from localstack.stack import LocalStack

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="a toolbox host needs root"),
]


def test_the_gateway_runs_under_its_own_uid_without_groups(stack: LocalStack) -> None:
    assert stack.host.gateway is not None
    status = Path(f"/proc/{stack.host.gateway.pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in status)
    assert fields["Uid"].split() == [str(GATEWAY_USER.uid)] * 4
    assert fields["Groups"].split() in ([], [str(GATEWAY_USER.gid)])
    assert int(fields["CapEff"], 16) == 0


def test_the_gateways_user_cannot_reach_docker(stack: LocalStack) -> None:
    connect = f"import socket; socket.socket(socket.AF_UNIX).connect({str(SOCKET.resolve())!r})"
    argv = launcher(Command("probe", ["/usr/bin/python3", "-c", connect], user=GATEWAY_USER))
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode != 0
    assert "PermissionError" in done.stderr


def test_the_operator_is_no_cluster_admin(stack: LocalStack) -> None:
    account = f"system:serviceaccount:{OPERATOR_NAMESPACE}:{OPERATOR_ACCOUNT}"
    with pytest.raises(SetupError, match="no"):
        stack.parts.cluster.kubectl("auth", "can-i", "*", "*", f"--as={account}")


def test_a_killed_operator_can_be_started_again(stack: LocalStack) -> None:
    assert stack.operator.child is not None
    stack.operator.child.kill()
    # The Lease of the killed one has to run out first.
    stack.operator.start()
    assert stack.operator.child.running()
