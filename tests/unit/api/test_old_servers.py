"""What the local stack changes in a CRD before an old API server gets it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from localstack.kubernetes import for_old_servers
from toolbox_operator.api.crd import DEFINITIONS, Definition, manifest

Members = dict[str, Any]


def compare(before: Any, after: Any, path: str) -> None:
    """Fail where `after` differs in more than a missing rule or an added `nullable`."""
    if isinstance(before, list):
        pairs = zip(cast("list[Any]", before), cast("list[Any]", after), strict=True)
        for index, (old, new) in enumerate(pairs):
            compare(old, new, f"{path}[{index}]")
    elif isinstance(before, dict):
        old, new = cast("Members", before), cast("Members", after)
        added = new.keys() - old.keys()
        assert added <= {"nullable"}, path
        assert not added or (old["type"] == "string" and "minLength" not in old), path
        assert old.keys() - new.keys() <= {"x-kubernetes-validations"}, path
        for name in old.keys() & new.keys():
            compare(old[name], new[name], f"{path}.{name}")
    else:
        assert before == after, path


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda d: d.plural)
def test_only_rules_go_and_only_possibly_empty_strings_become_nullable(definition: Definition) -> None:
    crd = manifest(definition)
    compare(crd, for_old_servers(crd), "")
