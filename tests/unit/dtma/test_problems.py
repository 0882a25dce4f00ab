"""What a caller is told of errors that nobody foresaw."""

from __future__ import annotations

import errno

import pytest

from toolbox_dtma.management.problems import problem_response, unexpected
from toolbox_dtma.wire import Problem, ProblemCode


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_code_of_its_own(number: int) -> None:
    answer = problem_response(unexpected(OSError(number, "no space left on device", "/secret/path")))
    problem = Problem.model_validate_json(bytes(answer.body))
    assert (answer.status_code, problem.code) == (507, ProblemCode.DISK_FULL)
    assert "nothing was changed" in problem.detail


def test_another_error_tells_no_more_than_its_kind() -> None:
    assert unexpected(OSError(errno.EIO, "input/output error", "/secret/path")).detail == (
        "the host's state could not be written: input/output error"
    )
    assert unexpected(ValueError("a secret")).detail == "see the host's log (ValueError)"
