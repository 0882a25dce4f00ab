"""Operators and hosts of before `security.egress`."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import Field, ValidationError

from toolbox_dtma.wire import Egress, Security, canonical_hash
from toolbox_dtma.wire.base import Request


class FirstSecurity(Request):
    """`Security` before egress was in it."""

    read_only_root_filesystem: bool = True
    run_as_user: Annotated[int, Field(ge=1)] | None = None


def test_a_host_of_before_egress_takes_what_has_the_default_and_has_the_same_hash() -> None:
    told = Security(run_as_user=7, egress=Egress.INTERNET)
    old = FirstSecurity.model_validate_json(told.model_dump_json(by_alias=True))
    assert canonical_hash(old) == canonical_hash(told)


@pytest.mark.parametrize("egress", [Egress.NONE, Egress.ALL])
def test_a_host_of_before_egress_refuses_another_rather_than_not_see_it(egress: Egress) -> None:
    told = Security(egress=egress).model_dump_json(by_alias=True)
    with pytest.raises(ValidationError, match=r"egress\n +Extra inputs are not permitted"):
        FirstSecurity.model_validate_json(told)
    assert Security.model_validate_json(told).egress is egress


def test_what_an_operator_of_before_egress_asks_for_is_internet() -> None:
    told = FirstSecurity(run_as_user=7).model_dump_json(by_alias=True)
    assert Security.model_validate_json(told).egress is Egress.INTERNET
