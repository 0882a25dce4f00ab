"""Every reason that a person may meet in a condition has its cure in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from toolbox_dtma.wire import InstanceReason
from toolbox_operator.api.conditions import Reason
from toolbox_operator.domain.cures import CURES, HOST_CURES, as_markdown

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_every_reason_has_a_cure() -> None:
    assert set(CURES) == set(Reason)
    assert set(HOST_CURES) == set(InstanceReason)


def test_the_page_is_what_the_table_says() -> None:
    assert (DOCS / "conditions.md").read_text(encoding="utf-8") == as_markdown(), "run make crds"


def test_a_cure_that_names_a_page_names_one_that_is_there() -> None:
    for page in re.findall(r"\]\(([\w./-]+\.md)\)", as_markdown()):
        assert (DOCS / page).is_file(), page


@pytest.mark.parametrize("reason", [*CURES, *HOST_CURES], ids=lambda r: f"{type(r).__name__}-{r}")
def test_a_reason_has_one_line(reason: Reason | InstanceReason) -> None:
    part = as_markdown().split("## Reasons a host reports")[isinstance(reason, InstanceReason)]
    assert sum(line.startswith(f"| {reason} |") for line in part.splitlines()) == 1
