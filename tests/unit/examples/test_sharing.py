from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import yaml

from toolbox_operator.api.mcpserver import MCPServerSpec

FILE = Path(__file__).parents[3] / "examples" / "sharing" / "by-labels.yaml"


def test_the_server_accepts_the_connection_for_as_long_as_its_namespace_has_the_label() -> None:
    documents = cast("list[dict[str, Any]]", list(yaml.safe_load_all(FILE.read_text())))
    namespace, server, connection = documents
    choice = MCPServerSpec.model_validate(server["spec"]).sharing.namespaces
    own, other = server["metadata"]["namespace"], connection["metadata"]["namespace"]
    assert other == namespace["metadata"]["name"]
    labels: dict[str, str] = namespace["metadata"]["labels"]
    assert choice.permits(own, other, labels)
    assert not choice.permits(own, other, {})
    assert not choice.permits(own, other, {**labels, "tier": "test"})
