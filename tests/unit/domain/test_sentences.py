"""What a person reads in the conditions of a server that has trouble."""

from __future__ import annotations

import pytest

from toolbox_dtma.wire import InstanceReason
from toolbox_operator.domain.policy import STDIO
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


def test_a_server_that_speaks_stdio_is_not_told_of_ports_and_of_containers_that_stay() -> None:
    for reason in InstanceReason:
        told = sentence(reason, "", stdio=True)
        assert not any(word in told for word in ("port", "path", "started again", "container runs")), told


@pytest.mark.parametrize("reason", InstanceReason)
def test_only_what_is_other_with_stdio_has_other_words(reason: InstanceReason) -> None:
    assert (sentence(reason, "", stdio=True) == sentence(reason, "")) == (reason not in STDIO)


def test_a_server_that_logs_to_standard_output_is_told_not_to() -> None:
    said = sentence(InstanceReason.PROBE_FAILED, "the server wrote a line that is no JSON: ready.", stdio=True)
    assert said == (
        "No MCP conversation came about: the server has to speak MCP on standard input and output, and to log to"
        " standard error only. The host says: the server wrote a line that is no JSON: ready."
    )
