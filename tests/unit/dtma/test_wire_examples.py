"""The examples in the wire models' docstrings are true."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from toolbox_dtma.wire import expose, grants, host, instances, limits, problems, volumes


@pytest.mark.parametrize(
    "module", [expose, grants, host, instances, limits, problems, volumes], ids=lambda module: module.__name__
)
def test_the_examples_of_a_wire_module_are_true(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
