"""What a person reads in the conditions of a server that has trouble."""

from __future__ import annotations

import pytest

from toolbox_dtma.wire import InstanceReason
from toolbox_operator.domain.server_status import sentence


@pytest.mark.parametrize(
    ("reason", "said", "expected"),
    [
        (
            InstanceReason.IMAGE_NOT_FOUND,
            "r.example.com/nope:1 does not exist in its registry; check spec.image.",
            "There is no such image: check spec.image or push it."
            " The host says: r.example.com/nope:1 does not exist in its registry; check spec.image.",
        ),
        (
            InstanceReason.PORT_NOT_LISTENING,
            "nothing listens on its port",
            "Nothing listens on spec.port. The host says: nothing listens on its port.",
        ),
        (
            InstanceReason.PROBE_FAILED,
            "MCPError: Not Found",
            "No MCP conversation came about: check port and path. The host says: MCPError: Not Found.",
        ),
        (InstanceReason.PULLING, " ", "The image is being pulled."),
    ],
)
def test_the_hosts_own_words_follow_ours_as_a_sentence_of_their_own(
    reason: InstanceReason, said: str, expected: str
) -> None:
    assert sentence(reason, said) == expected
