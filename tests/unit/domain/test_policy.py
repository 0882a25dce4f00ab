"""The table of failures is complete, and what it says can be acted on."""

from __future__ import annotations

from toolbox_dtma.wire import InstanceReason, ProblemCode
from toolbox_operator.domain.policy import INSTANCES, PROBLEMS, Next, as_markdown, unknown_fields, unknown_transport


def test_every_code_that_a_host_can_give_is_decided_on() -> None:
    assert set(PROBLEMS) == set(ProblemCode)
    assert set(INSTANCES) == set(InstanceReason)


def test_only_what_an_edit_of_the_object_cures_is_stalled() -> None:
    assert {code for code, policy in PROBLEMS.items() if policy.next is Next.STALLED} == {
        ProblemCode.OWNER_MISMATCH,
        ProblemCode.IDENTITY_MISMATCH,
        ProblemCode.DELETED,
        ProblemCode.TOO_LARGE,
    }
    assert [code for code, policy in PROBLEMS.items() if policy.next is Next.FENCED] == [ProblemCode.FENCED_EPOCH]


def test_the_documentations_table_has_a_line_for_each() -> None:
    lines = as_markdown().splitlines()
    for code in (*ProblemCode, *InstanceReason):
        assert any(line.startswith(f"| {code} |") for line in lines)


def test_fields_that_a_host_does_not_know_are_read_out_of_what_it_says() -> None:
    extra = "Extra inputs are not permitted"
    assert unknown_fields(f"body.limits: {extra}") == ("limits",)
    assert unknown_fields(f"body.expose.prompts: {extra}; body.name: too long; body.limits: {extra}") == (
        "expose.prompts",
        "limits",
    )
    assert unknown_fields("body.name: String should match pattern") == ()


def test_a_host_that_does_not_know_a_transport_is_told_from_one_that_refuses_another_field() -> None:
    assert unknown_transport("body.uid: Field required; body.transport: Input should be 'streamable-http'")
    assert not unknown_transport("body.sessions: Extra inputs are not permitted")
    assert not unknown_transport("body.transport: Field required")
