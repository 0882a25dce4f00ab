"""The spec pages name every field and word of the resources."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from toolbox_operator.api.crd import DEFINITIONS, Definition
from toolbox_operator.api.schema import structural

PAGES = Path(__file__).resolve().parents[3] / "docs" / "resources"


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda d: d.plural)
def test_the_page_of_a_kind_names_every_field(definition: Definition) -> None:
    page = (PAGES / f"{definition.kind.lower()}.md").read_text(encoding="utf-8")
    for model, part in ((definition.spec, "spec"), (definition.status, "status")):
        schema = structural(model, defaults=False)
        for name in cast("dict[str, Any]", schema["properties"]):
            assert name in page, f"{part}.{name}"
        for phase in schema["properties"].get("phase", {}).get("enum", ()):
            assert phase in page, phase
